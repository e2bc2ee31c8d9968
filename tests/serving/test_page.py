"""The page at / in headless Chromium: by keyboard, on a phone, with nothing from elsewhere."""

import shutil
import socket
import threading

import pytest
import uvicorn

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def address(server):
  """The address of the models' server, in a thread."""
  taken = socket.create_server(("127.0.0.1", 0))
  config = uvicorn.Config(server.app, lifespan="off", log_level="warning", ws="none")
  running = uvicorn.Server(config)
  thread = threading.Thread(target=running.run, kwargs={"sockets": [taken]}, daemon=True)
  thread.start()
  yield f"http://127.0.0.1:{taken.getsockname()[1]}/"
  running.should_exit = True
  thread.join(60)


@pytest.fixture(scope="module")
def browser():
  driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
  if CHROMIUM is None:
    pytest.skip("chromium is not installed: the page is not tested in a browser")
  with driver.sync_playwright() as playwright:
    yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(browser, address):
  """A page that has loaded, as `open(width)`; it fails for any error or request elsewhere."""
  context = browser.new_context()
  opened, faults = context.new_page(), []
  opened.on("pageerror", lambda error: faults.append(str(error)))
  opened.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
  opened.on("request", lambda r: None if r.url.startswith(address) else faults.append(r.url))
  opened.goto(address)
  opened.wait_for_selector("[role=tab]")
  yield opened
  context.close()
  # The favicon is empty, and a refusal is the subject of a test.
  assert not [f for f in faults if not f.startswith("data:") and "status of 422" not in f]


def choose(page, model, tab):
  page.select_option("#model", model)
  page.click(f"#tab-{tab}")


@pytest.mark.slow
def test_each_use_shows_its_result(page):
  choose(page, "classifier", "predict")
  page.fill("#field-0", "the cat")
  page.click("#panel-predict button[type=submit]")
  page.wait_for_selector("#panel-predict .bars")
  assert page.locator("#panel-predict .bars li").count() == 3
  choose(page, "tagger", "predict")
  page.fill("#field-0", "the \U0001f600 cat")
  page.click("#panel-predict button[type=submit]")
  text = page.locator("#panel-predict .text")
  text.wait_for()
  assert "the \U0001f600 cat" in text.inner_text().replace("PER", "")
  choose(page, "bert", "fill_mask")
  page.fill("#blank-text", "the [MASK] house")
  page.click("#panel-fill_mask button[type=submit]")
  page.wait_for_selector("#panel-fill_mask mark")
  choose(page, "bert", "attention")
  page.fill("#attention-text", "the cat")
  page.click("#panel-attention button[type=submit]")
  page.locator("#panel-attention .tokens button").last.click()
  assert "reads from" in page.locator("#panel-attention .hint").inner_text()
  choose(page, "bert", "encode")
  page.fill("#query", "the cat")
  page.fill("#lines", "a house\nthe cat")
  page.click("#panel-encode button[type=submit]")
  page.wait_for_selector("#panel-encode .bars")
  assert page.locator("#panel-encode .bars li").count() == 2
  assert "1.000" in page.locator("#panel-encode .best").last.inner_text()


def test_a_text_is_written_as_it_comes(page):
  choose(page, "gpt", "generate")
  page.fill("#prompt", "the")
  page.fill("#max_length", "20")
  page.click("#panel-generate button[type=submit]")
  page.wait_for_selector("#panel-generate .hint:text('tokens')")
  assert page.locator("#panel-generate .given").inner_text() == "the"
  assert page.is_disabled("#stop")


def test_an_error_is_shown_in_its_sentence(page):
  choose(page, "bert", "fill_mask")
  page.fill("#blank-text", "no blank")
  page.click("#panel-fill_mask button[type=submit]")
  page.wait_for_selector("#panel-fill_mask .error")
  assert "there is no [MASK]" in page.locator("#panel-fill_mask .error").inner_text()
  faults = page.locator("[role=alert]:visible")
  assert faults.count() == 1


def test_the_keyboard_is_enough(page):
  page.select_option("#model", "bert")
  page.focus("#tab-fill_mask")
  page.keyboard.press("ArrowRight")
  assert page.evaluate("document.activeElement.id") == "tab-attention"
  assert page.get_attribute("#tab-attention", "aria-selected") == "true"
  page.keyboard.press("Tab")
  assert page.evaluate("document.activeElement.id") == "attention-text"
  page.keyboard.press("Control+A")
  page.keyboard.type("the cat")
  page.keyboard.press("Control+Enter")
  page.wait_for_selector("#panel-attention .tokens button")


def test_every_field_has_a_label_and_a_phone_needs_no_sideways_scrolling(page):
  unlabelled = (
    "[...document.querySelectorAll('input,textarea,select')].filter(f => !f.labels[0]).length"
  )
  page.set_viewport_size({"width": 390, "height": 800})
  for model, tab in (("classifier", "predict"), ("gpt", "generate"), ("bert", "attention")):
    choose(page, model, tab)
    assert page.evaluate(unlabelled) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
