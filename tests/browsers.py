"""A real browser without a window: Chromium, by its own driver, both from the distribution; nothing is downloaded."""

import shutil

from selenium import webdriver


def found() -> tuple[str, str] | None:
    """The program and its driver, where both are installed."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (program, driver) if program and driver else None


def start(width: int = 1280, height: int = 800) -> webdriver.Chrome:
    """A page of this size; its log has every request that the page makes."""
    program, driver = found()
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return browser
