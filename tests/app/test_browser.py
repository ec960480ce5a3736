"""The page in a real browser: Chromium without a window, by its driver; one browser and one server for all."""

import json
import re
import time

import pytest
from app_desks import alone, desk, parts

pytest.importorskip("gradio")
pytest.importorskip("matplotlib")
pytest.importorskip("selenium")
import browsers
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from lineas_app import page
from lineas_app.makers import Sampling

pytestmark = [
    pytest.mark.slow, pytest.mark.process,
    pytest.mark.skipif(not browsers.found(), reason="needs chromium and chromedriver, which distributions have"),
]  # fmt: skip
SAMPLING = Sampling(24, 1.0, 0)  # that of the page
PATIENCE = 60  # seconds for an answer


def alone_at(on):
    return [" ".join(text.split()) for text in alone(on, sampling=SAMPLING)]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        blocks, address = page.serve(desk(may_open=True))
        yield address
        blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser(address):
    found = browsers.start()
    yield found
    found.quit()


@pytest.fixture
def visit(browser, address):
    browser.get(address)
    until(lambda: made(browser))
    return browser


def until(condition, patience=PATIENCE):
    """What a condition gives once it holds."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, "no answer"
        time.sleep(0.05)
    return found


def made(browser):
    """Base and steered texts, by turns."""
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, "#results .made")]


def head(browser):
    return browser.find_element(By.CSS_SELECTOR, "#results .head:nth-child(2)").text


def number_box(browser, k):
    return browser.find_element(By.CSS_SELECTOR, f"#slider-{k} input[type=number]")


def enter(browser, k, number, leave):
    """A number into a slider's box as a hand types it, key by key, and the key that leaves the box."""
    box = number_box(browser, k)
    box.click()
    box.send_keys(Keys.CONTROL, "a")
    for key in (*number, leave):
        box.send_keys(key)
        time.sleep(0.3)  # in which the page takes up what is there so far


def drag(browser, k, share):
    """A slider, by the mouse, to a share of its length."""
    track = browser.find_element(By.CSS_SELECTOR, f"#slider-{k} input[type=range]")
    width, value, low, high = (
        track.size["width"],
        *(float(track.get_attribute(name)) for name in ("value", "min", "max")),
    )
    knob = 8  # half of it is beyond either end
    at, to = ((x - 0.5) * (width - 2 * knob) for x in ((value - low) / (high - low), share))
    steps = ActionChains(browser).move_to_element_with_offset(track, round(at), 0).click_and_hold()
    steps.move_by_offset(round(to) - round(at), 0).release().perform()


def strength_of(browser):
    return float(re.search(r"casual: strength ([0-9.]+)", head(browser)).group(1))


def toast(browser):
    """What the page says went wrong."""
    return " ".join(element.text for element in browser.find_elements(By.CSS_SELECTOR, ".toast-body"))


def test_a_slider_that_is_moved_gives_other_text_and_that_of_its_strength(visit):
    first = until(lambda: made(visit))
    assert first[0::2] == alone_at([])
    assert first[1::2] == alone_at([("casual", 1.0)]), "5% of perplexity"
    drag(visit, 0, 1.0)
    until(lambda: strength_of(visit) > 1.5)
    price = float(number_box(visit, 0).get_attribute("value"))
    assert price == 27.0
    second, strength = made(visit), desk().controls[0].strength(price, "price")
    assert second[0::2] == first[0::2], "the base model stays"
    assert second[1::2] == alone_at([("casual", strength)]) != first[1::2]
    assert strength_of(visit) == pytest.approx(strength, rel=1e-2)
    drag(visit, 0, 0.0)
    until(lambda: "all sliders at 0" in head(visit))
    third = made(visit)
    assert third[0::2] == third[1::2] == first[0::2]


def test_two_browser_windows_at_different_strengths_do_not_meet(visit, address):
    mine = visit.current_window_handle
    visit.switch_to.new_window("window")
    other = visit.current_window_handle
    visit.get(address)
    until(lambda: made(visit))
    try:
        drag(visit, 0, 1.0)  # and, without waiting for what comes of it:
        visit.switch_to.window(mine)
        drag(visit, 1, 1.0)
        until(lambda: "plain" in head(visit))
        assert made(visit)[1::2] == alone_at([("casual", 1.0), ("plain", 2.0)])
        visit.switch_to.window(other)
        until(lambda: strength_of(visit) > 1.5)
        strength = desk().controls[0].strength(27.0, "price")
        assert made(visit)[1::2] == alone_at([("casual", strength)])
        assert float(number_box(visit, 1).get_attribute("value")) == 0
    finally:
        visit.switch_to.window(other)
        visit.close()
        visit.switch_to.window(mine)


def test_units_are_switched_and_the_steering_stays(visit):
    before = until(lambda: made(visit))
    visit.find_element(By.CSS_SELECTOR, "input[type=radio][value=strength]").click()
    until(lambda: number_box(visit, 0).get_attribute("value") == "1")
    visit.find_element(By.ID, "make").click()
    time.sleep(0.2)
    until(lambda: made(visit) == before)
    drag(visit, 0, 1.0)
    until(lambda: strength_of(visit) == 2)
    assert made(visit)[1::2] == alone_at([("casual", 2.0)])


def test_a_bad_folder_gets_a_clear_word_and_a_good_one_a_slider(visit, tmp_path):
    box = visit.find_element(By.CSS_SELECTOR, "#folder textarea, #folder input")
    box.send_keys(str(tmp_path / "none"), Keys.ENTER)
    said = until(lambda: toast(visit))
    assert "expected the folder of a steering, there is no folder" in said
    assert "Traceback" not in said
    parts()[2]["casual"].save_pretrained(tmp_path / "more")
    box.clear()
    box.send_keys(str(tmp_path / "more"), Keys.ENTER)
    until(lambda: "more (% perplexity)" in visit.find_element(By.TAG_NAME, "body").text)
    drag(visit, 2, 1.0)
    until(lambda: "more: strength" in head(visit))


@pytest.mark.parametrize(("number", "end", "leave"), [("1e9", "27", Keys.TAB), ("-3", "0", Keys.ENTER)])
def test_an_absurd_number_becomes_the_end_of_the_slider_and_the_head_says_so(visit, number, end, leave):
    """The page sends it as it was typed, and shows the end."""
    enter(visit, 0, number, leave)
    until(lambda: number_box(visit, 0).get_attribute("value") == end)
    at = desk().controls[0].said(desk().controls[0].strength(float(end), "price"))
    until(lambda: ("casual: " + at if float(end) else "all sliders at 0") in head(visit))
    visit.find_element(By.CSS_SELECTOR, "input[type=radio][value=strength]").click()
    until(lambda: number_box(visit, 0).get_attribute("value") == ("2" if float(end) else "0"))
    assert toast(visit) == ""


def test_no_prompt_gets_a_word(visit):
    box = visit.find_element(By.CSS_SELECTOR, "#prompts textarea")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    visit.find_element(By.ID, "make").click()
    assert "prompts: expected 1 to 16, one a line, got 0" in until(lambda: toast(visit))


def test_no_request_leaves_for_another_host(visit, address):
    until(lambda: len(visit.find_elements(By.CSS_SELECTOR, "#figures img")) == 3)
    visit.find_element(By.CSS_SELECTOR, "#figures summary").click()
    time.sleep(1)  # what loads late
    events = (json.loads(entry["message"])["message"] for entry in visit.get_log("performance"))
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(sent) > 20, "the page's own files"
    own = (address, "data:", "blob:")
    assert [url for url in sent if not url.startswith(own)] == []
    broken = visit.execute_script("return [...document.images].filter(i => !i.naturalWidth).length")
    assert broken == 0
    assert [entry for entry in visit.get_log("browser") if entry["level"] == "SEVERE"] == []
