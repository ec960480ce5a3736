"""The picture of `make app` in README.md, docs/app.png: python docs/app_picture.py

What a visitor sees, in a real browser (chromium and chromium-driver); the steering is that of `make app`.
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

import app  # noqa: E402
import browsers  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

from lineas_app import page  # noqa: E402

PATIENCE, FIGURES = 120, 2  # seconds; pictures below the texts


def main() -> None:
    served, address = page.serve(app.language(None))
    browser = browsers.start()
    try:
        browser.get(address)
        end = time.monotonic() + PATIENCE
        while len(browser.find_elements(By.CSS_SELECTOR, "#figures img")) < FIGURES:
            if time.monotonic() > end:
                raise TimeoutError("the page shows no figures")
            time.sleep(0.1)
        time.sleep(1)  # until they are drawn
        browser.save_screenshot(str(ROOT / "docs" / "app.png"))
    finally:
        browser.quit()
        served.close(verbose=False)


if __name__ == "__main__":
    main()
