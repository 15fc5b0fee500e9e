"""Headless Chromium, for the tests of pages; skipped where there is none."""

import shutil

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def chromium():
    if not (BROWSER and DRIVER):
        pytest.skip("there is no Chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1100,900"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def luminance(colour):
    """WCAG's relative luminance of a colour as the browser computes it, rgb(...)."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def scheme(page, name):
    """Has the page believe that its reader prefers a colour scheme; "": whatever is usual."""
    features = [{"name": "prefers-color-scheme", "value": name}] if name else []
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def phone(page, width=360):
    """Shows the page as a phone of this width, px."""
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": True})


def stand_out(page, name: str, selectors: tuple[str, ...]) -> None:
    """In the scheme light or dark, words stand out from the page at 4.5 to 1 at least (WCAG 2, AA)."""
    scheme(page, name)
    back = luminance(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert (back < 0.05) == (name == "dark")
    for selector in selectors:
        words = luminance(page.execute_script(f"return getComputedStyle(document.querySelector('{selector}')).color"))
        assert (max(words, back) + 0.05) / (min(words, back) + 0.05) >= 4.5, selector
    scheme(page, "")
