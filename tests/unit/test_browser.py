"""That the tests of pages can fail: the browser's helpers see what is wrong with a page."""

from PIL import Image

from tests.browser import console, drop, overflow, screenshot, show

PAGE = """<!DOCTYPE html><meta charset=utf-8><link rel=icon href="data:,">
<style>body { margin: 0; background: white } #wide { width: 600px; height: 50px }
@media (prefers-color-scheme: dark) { body { background: black } }</style>
<div id=wide></div>
<script>
  const wide = document.querySelector("#wide");
  wide.ondragover = (event) => event.preventDefault();
  wide.ondrop = (event) => {
    event.preventDefault();
    document.title = event.dataTransfer.files[0].name;
  };
  if (location.hash) missing();
</script>"""


def test_what_is_wrong_with_a_page_is_seen(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(PAGE)
    show(browser, width=700)
    browser.get(page.as_uri())
    assert console(browser) == []
    assert overflow(browser) == []
    show(browser, width=390, dark=True)
    (found,) = overflow(browser)
    assert 'id="wide"' in found
    drop(browser, "#wide", page)
    assert browser.title == "page.html"
    screenshot(browser, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as taken:
        assert taken.size == (600, 900)  # all of the page
        assert taken.convert("RGB").getpixel((5, 5)) == (0, 0, 0)
    browser.get("about:blank")
    browser.get(f"{page.as_uri()}#error")
    (message,) = console(browser)
    assert "missing is not defined" in message
