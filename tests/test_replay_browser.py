"""The replay page in headless Chromium: keys, buttons, pointer, screen reader text, light and dark, a phone."""

import pytest
from browser_parts import chromium, phone, scheme, stand_out  # noqa: F401
from picture_parts import a_look
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from hsal_cli.pictures.replay import replay_page


@pytest.fixture
def page(chromium, tmp_path):  # noqa: F811
    """Opens a page of two looks, the first with known labels; afterwards it has logged no error and fetched nothing."""
    looks = [a_look(labels=("3", "5")), a_look(labels=("5",), size=(200, 600), name="wide.png")]
    (tmp_path / "a.html").write_text(replay_page(looks, [["3", "3"], None]), encoding="utf-8")
    chromium.get((tmp_path / "a.html").as_uri())
    chromium.looks = looks
    yield chromium
    assert chromium.get_log("browser") == []
    fetched = chromium.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in fetched)


def said(page):
    return page.find_element(By.ID, "said").text


def press(page, *keys):
    page.switch_to.active_element.send_keys(*keys)


def test_arrow_keys_and_buttons_step_and_each_step_is_said_in_words(page):
    assert said(page).startswith(
        "Step 1 of 3: names 3 with probability 0.75, a hit, reward +1. Glimpses at row 0, column 1 and row 2, column 0."
    )
    assert said(page).endswith("To find before this step: 3, 3.")
    press(page, Keys.ARROW_RIGHT)
    assert said(page).startswith("Step 2 of 3: names 5") and "a miss, reward -1" in said(page)
    page.find_element(By.ID, "forward").click()
    assert "names stop" in said(page) and "Missed: 3." in said(page)
    assert not page.find_element(By.ID, "forward").is_enabled()
    page.find_element(By.ID, "back").click()
    assert said(page).startswith("Step 2 of 3")
    press(page, Keys.HOME)
    assert said(page).startswith("Step 1 of 3")
    page.find_element(By.CSS_SELECTOR, "#steps button[aria-label='Go to step 2']").click()
    assert said(page).startswith("Step 2 of 3")
    assert len(page.find_elements(By.CSS_SELECTOR, "#steps tr[aria-current=step]")) == 1


def test_pointer_and_keyboard_read_the_maps_in_a_cell(page):
    step = page.looks[0].steps[0]

    def reading(row, column):
        s, m, p = (f"{part[row, column]:.2f}" for part in (step.saliency, step.mask, step.priority))
        return f"row {row}, column {column}: S {s}, M {m}, P {p}"

    for selector, cell in (("#cells", (1, 3)), ("[data-map=mask]", (2, 2))):
        element = page.find_element(By.CSS_SELECTOR, f"{selector} [data-cell='{cell[0]},{cell[1]}']")
        ActionChains(page).move_to_element(element).perform()
        assert page.find_element(By.ID, "cell").text == reading(*cell)
    ActionChains(page).move_to_element(page.find_element(By.ID, "title")).perform()
    page.execute_script("document.querySelector('#cells [tabindex=\"0\"]').focus()")
    press(page, Keys.ARROW_UP)
    press(page, Keys.ARROW_LEFT)
    focused = page.switch_to.active_element
    assert focused.get_attribute("aria-label") == page.find_element(By.ID, "cell").text == reading(1, 1)
    press(page, Keys.ARROW_UP)
    assert page.switch_to.active_element.get_attribute("aria-label") == reading(0, 1) + ", glimpse 1"
    assert said(page).startswith("Step 1 of 3")  # arrows in the image move the cell, not the step
    press(page, Keys.PAGE_DOWN)
    assert said(page).startswith("Step 2 of 3")


def test_marks_lie_where_the_glimpses_are_and_bars_are_as_long_as_probabilities(page):
    panel = page.find_element(By.ID, "look").rect
    for cell in ((0, 1), (2, 0)):
        mark = page.find_element(By.CSS_SELECTOR, f"#marks [data-glimpse='{cell[0]},{cell[1]}']").rect
        assert mark["x"] + mark["width"] / 2 == pytest.approx(panel["x"] + (cell[1] + 0.5) / 4 * panel["width"], abs=3)
        assert mark["y"] + mark["height"] / 2 == pytest.approx(panel["y"] + (cell[0] + 0.5) / 3 * panel["height"], abs=3)
    assert panel["width"] / panel["height"] == pytest.approx(1.5, rel=0.01)
    tracks, lengths = (page.find_elements(By.CSS_SELECTOR, f"#classes .{name}") for name in ("track", "length"))
    shares = [length.rect["width"] / track.rect["width"] for track, length in zip(tracks, lengths, strict=True)]
    assert shares == pytest.approx([0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3], abs=0.02)
    page.execute_script("const which = document.getElementById('which'); which.selectedIndex = 1; which.dispatchEvent(new Event('change'))")
    panel = page.find_element(By.ID, "look").rect
    assert panel["width"] / panel["height"] == pytest.approx(3, rel=0.01)
    assert "hit" not in said(page) and said(page).startswith("Step 1 of 2: names 5")


@pytest.mark.parametrize("name", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(page, name):
    stand_out(page, name, ("#title", "#subtitle", "#steps .hit", "#steps .miss", "#said", "figcaption", "button:enabled"))


def test_a_phone_needs_no_scrolling_sideways(page):
    phone(page)
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    assert page.find_element(By.ID, "look").rect["width"] > 300
    for name in ("first", "back", "forward", "play"):
        assert page.find_element(By.ID, name).rect["height"] >= 44
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
