"""The page of `hsal play` in headless Chromium: a 3 and a 7 are drawn with the pointer and named; an image is dropped."""

import io

import numpy as np
import pytest
from browser_parts import chromium, phone, scheme, stand_out  # noqa: F401
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
from play_parts import served, strokes_of

import hsal_cli as hsal
from hsal_cli.play.app import make_app
from hsal_cli.play.canvas import SIDE


@pytest.fixture(scope="module")
def address():
    with served(make_app(hsal.load("mnist-multiset", "cpu"))) as address:
        yield address


@pytest.fixture
def page(chromium, address):  # noqa: F811
    """The page as it opens; afterwards it has logged no error and asked nothing but its own server."""
    chromium.get(address)
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if "favicon" not in entry["message"]] == []
    fetched = chromium.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith(("data:", address)) for name in fetched)


def draw(page, strokes):
    """Moves the pointer along strokes."""
    paper = page.find_element(By.ID, "paper")
    scale = paper.rect["width"] / SIDE
    for stroke in strokes:
        moves = ActionChains(page, duration=5)
        for place, (x, y) in enumerate(stroke[::8] + stroke[-1:]):
            moves.move_to_element_with_offset(paper, (x - SIDE / 2) * scale, (y - SIDE / 2) * scale)
            if place == 0:
                moves.click_and_hold()
        moves.release().perform()


def title_becomes(page, title):
    """Waits until all that was asked is answered and the title is this; then the steps stand still."""
    asks = "return busy || waiting !== null || document.getElementById('title').textContent !== arguments[0]"
    WebDriverWait(page, 60).until(lambda page: not page.execute_script(asks, title))
    page.execute_script("play(false)")


def test_a_3_and_a_7_are_drawn_and_named_and_the_steps_can_be_watched(page):
    assert not page.find_element(By.ID, "title").is_displayed()
    draw(page, strokes_of(3, 14, 30))
    title_becomes(page, "predicted {3}")
    draw(page, strokes_of(7, 58, 28))
    title_becomes(page, "predicted {3, 7}")
    page.find_element(By.ID, "slider").send_keys(Keys.HOME)
    first = page.find_element(By.CSS_SELECTOR, "[data-map=saliency] [data-cell='2,2']").value_of_css_property("background-color")
    assert page.find_element(By.ID, "said").text.startswith("Step 1 of 3: names ")
    page.find_element(By.ID, "forward").click()
    page.find_element(By.ID, "forward").click()
    assert "names stop" in page.find_element(By.ID, "said").text
    assert first != page.find_element(By.CSS_SELECTOR, "[data-map=saliency] [data-cell='2,2']").value_of_css_property("background-color")
    page.find_element(By.ID, "undo").click()
    title_becomes(page, "predicted {3}")
    page.find_element(By.ID, "clear").click()
    assert not page.find_element(By.ID, "title").is_displayed() and not page.find_element(By.ID, "clear").is_enabled()


def test_a_dropped_image_is_named_and_what_is_no_image_is_told(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "png")
    drop = """
        const moved = new DataTransfer();
        moved.items.add(new File([new Uint8Array(arguments[0])], arguments[1]));
        document.dispatchEvent(new DragEvent("drop", {dataTransfer: moved, bubbles: true, cancelable: true}));"""
    page.execute_script(drop, list(stream.getvalue()), "noise.png")
    WebDriverWait(page, 60).until(lambda page: page.find_element(By.ID, "warnings").is_displayed())
    assert page.find_element(By.ID, "warnings").text.startswith("Warning: unlike the images of training")
    assert page.find_element(By.ID, "subtitle").text.startswith("noise.png")
    page.execute_script(drop, list(b"no image"), "words.png")
    WebDriverWait(page, 60).until(lambda page: "words.png is not a picture" in page.find_element(By.ID, "state").text)
    page.get_log("browser")  # Chromium logs the refusal itself


@pytest.mark.parametrize("name", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(page, name):
    stand_out(page, name, ("#pad h2", "#pad .faint", "#pick"))


def test_a_phone_needs_no_scrolling_sideways_and_draws_under_the_finger(page):
    phone(page)
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    assert page.find_element(By.ID, "paper").rect["width"] > 300
    assert page.find_element(By.ID, "paper").value_of_css_property("touch-action") == "none"
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
