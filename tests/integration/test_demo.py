"""The demo in a browser, over a run of the quickstart's model with random weights."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from jaxattn.config import base
from jaxattn.demo import __main__ as command_line
from jaxattn.demo.server import Server
from tests.browser import console, drop, overflow, show
from tests.runs import untrained


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where the demo is."""
    config = base()
    config.model.width = 8
    config.evaluation.grad_cam = "stage3_block1"
    names = ("a_rather_long_class_name_without_any_break", "mel", "nv")
    run = untrained(tmp_path_factory.mktemp("demo") / "run", config, names=names)
    with Server(run, port=0) as server:
        server.warm_up()
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    path = tmp_path / "läsion 1.jpg"
    Image.fromarray(pixels).resize((600, 450)).save(path)
    return path


def wait(browser, condition):
    deadline = time.monotonic() + 60
    while not browser.execute_script(f"return {condition}"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def text(browser, name):
    return browser.execute_script(f"return document.getElementById('{name}').innerText")


def check_answer(browser):
    """The probabilities sum to one, and the overlay lies over the image."""
    wait(browser, "!document.getElementById('result').hidden && document.images[1].complete")
    rows = [row.split("%")[0].split() for row in text(browser, "bars").splitlines() if "%" in row]
    assert sum(float(row[-1]) for row in rows) == pytest.approx(100, abs=0.2)
    assert text(browser, "predicted")
    seen, overlay = browser.execute_script(
        "return [...document.images].map((each) => [each.naturalWidth, each.naturalHeight,"
        "each.getBoundingClientRect().toJSON(), getComputedStyle(each).opacity]);"
    )
    assert seen[:2] == overlay[:2] == [600, 450]
    assert seen[2] == overlay[2]
    assert seen[2]["width"] > 300
    assert (seen[3], overlay[3]) == ("1", "0.5")


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)])
def test_a_dropped_image_is_answered(browser, url, photo, width, dark):
    show(browser, width=width, dark=dark)
    browser.get(url)
    assert overflow(browser) == []
    drop(browser, "#drop", photo)
    check_answer(browser)
    assert text(browser, "status") == photo.name
    assert overflow(browser) == []
    assert console(browser) == []
    loaded = browser.execute_script("return performance.getEntries().map((each) => each.name)")
    assert all(name.startswith((url, "data:")) or "/" not in name for name in loaded)


def test_a_chosen_image_by_keyboard(browser, url, photo):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser)
    browser.get(url)
    browser.find_element(By.ID, "file").send_keys(str(photo))
    check_answer(browser)
    first, *_, none = browser.find_elements(By.NAME, "map")
    assert first.get_attribute("value") == "Soft attention"
    assert "8 × 8 positions, 16 heads summed" in text(browser, "note")
    first.send_keys(Keys.ARROW_RIGHT)
    assert text(browser, "note").startswith("4 × 4 positions")
    assert browser.execute_script("return document.getElementById('overlay').alt") == (
        "Grad-CAM over the image"
    )
    slider = browser.find_element(By.ID, "opacity")
    slider.send_keys(Keys.END)
    wait(browser, "getComputedStyle(document.getElementById('overlay')).opacity === '1'")
    assert text(browser, "percent") == "100%"
    none.find_element(By.XPATH, "..").click()
    wait(browser, "document.getElementById('overlay').hidden")
    assert console(browser) == []


def test_what_is_no_image_is_refused(browser, url, photo, tmp_path):
    show(browser)
    browser.get(url)
    notes, wrong = tmp_path / "notes.txt", tmp_path / "wrong.jpg"
    for path in (notes, wrong):
        path.write_text("no image")
    drop(browser, "#drop", photo)
    check_answer(browser)
    drop(browser, "#drop", notes)
    wait(browser, "document.getElementById('status').textContent.startsWith('notes.txt is no')")
    assert browser.execute_script("return document.getElementById('result').hidden")
    assert console(browser) == []  # nothing was sent
    drop(browser, "#drop", wrong)
    wait(browser, "document.getElementById('status').textContent.startsWith('This is no image')")
    assert browser.execute_script("return document.getElementById('result').hidden")
    (message,) = console(browser)
    assert "415" in message
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate((32 << 20) + 1)
    drop(browser, "#drop", large)
    wait(browser, "document.getElementById('status').textContent.includes('32 MB are allowed')")
    assert console(browser) == []


def test_a_folder_without_a_run_is_one_clear_error(command, tmp_path):
    status, out, err = command(command_line, f"--run={tmp_path}", "--port=0")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
