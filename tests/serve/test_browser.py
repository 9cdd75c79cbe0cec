"""The page in Chromium: what a person sees and does, with a model that says nothing sensible."""

import json
import shutil
import threading
import time

import pytest

from tests.serve.browser import browser
from tests.serve.server import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="no chromedriver here"),
]
ANSWERED = "!document.getElementById('send').hidden && document.querySelectorAll('article').length"
LAST = "document.querySelector('article.assistant:last-child p').textContent"


@pytest.fixture(scope="module")
def window():
    with browser() as window:
        yield window


@pytest.fixture
def page(window, server):
    """The page, with nothing kept from before; the console must be empty in the end."""
    url = f"http://127.0.0.1:{server.port}/"
    window.open(url)
    window.run("localStorage.clear(); sessionStorage.clear()")
    window.size(1200, 800)
    window.dark(False)
    window.open(url)
    window.wait("document.getElementById('model').textContent === 'tiny'")
    window.complaints()
    window.write("#max_tokens", "12")
    yield window
    assert window.complaints() == []


def say(page, text, articles):
    page.run("const b = document.getElementById('box'); b.value = arguments[0]; b.focus()", text)
    page.press("Enter")
    page.wait(f"{ANSWERED} === {articles}")


def test_it_answers_repeats_a_seed_and_keeps_conversations(page, tmp_path):
    page.write("#seed", "3")
    say(page, "Hi", 2)
    first = page.run(f"return {LAST}")
    assert first
    note = page.run("return document.querySelector('article:last-child footer').textContent")
    assert "seed 3" in note
    assert "cut at the limit" in note
    page.click("article:last-child button[aria-label='Draw another answer']")
    page.wait(f"{ANSWERED} === 2")
    assert page.run(f"return {LAST}") == first
    page.run("location.reload()")
    page.wait(f"document.getElementById('model').textContent === 'tiny' && {ANSWERED} === 2")
    assert page.run(f"return {LAST}") == first
    page.click("#new")
    page.wait("document.querySelectorAll('article').length === 0")
    assert page.run("return document.querySelectorAll('#list li').length") == 1


@pytest.mark.parametrize(
    "text",
    ["<img src=x onerror=alert(1)><script>alert(2)</script> &lt;b&gt;", "שלום עולם, (a) 12 b!",
     "x" * 10_000, "line one\nline two\n\n\tindented"],
    ids=["markup", "right to left", "long", "lines"],
)  # fmt: skip
def test_a_message_is_shown_as_it_is(page, text, tmp_path):
    page.run("document.getElementById('mode').value = 'text'")
    page.run("const b = document.getElementById('box'); b.value = arguments[0]; b.focus()", text)
    page.press("Enter")
    page.wait(f"{ANSWERED} === 2")
    shown = page.run("return document.querySelector('article.user p').textContent")
    assert shown == text
    assert page.run("return document.querySelectorAll('article img, article script').length") == 0
    way = "return getComputedStyle(document.querySelector('article.user p')).direction"
    assert page.run(way) == ("rtl" if text.startswith("ש") else "ltr")
    # Nothing is wider than the window.
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    if len(text) > 1000:  # more than the context holds: the server's words, and no answer
        said = page.run("return document.querySelector('.failed').textContent")
        assert "maximum context length is 64" in said
        page.complaints()  # the browser notes the status 400


def test_the_keyboard_alone_is_enough(page):
    page.press("Tab")
    assert page.run("return document.activeElement.className") == "skip"
    page.press("Enter")
    page.run("document.getElementById('box').focus()")
    page.press("H", "i")
    page.press("Enter")
    page.wait(f"{ANSWERED} === 2")
    assert page.run("return document.activeElement.id") == "box"
    reached = []
    page.run("document.body.tabIndex = -1; document.body.focus()")
    for _ in range(40):
        page.press("Tab")
        reached.append(
            page.run(
                "const e = document.activeElement; return e.id || e.getAttribute('aria-label')"
            )
        )
    for name in ("new", "export", "import", "mode", "system", "temperature", "seed", "box", "send"):
        assert name in reached
    assert "Draw another answer" in reached
    assert "Edit this message" in reached


def test_probabilities_stand_by_the_tokens_and_spell_the_answer(page):
    page.click("#probabilities")
    say(page, "Hi", 2)
    spans = page.run("return document.querySelectorAll('article:last-child .token').length")
    assert spans > 3
    assert " %" in page.run("return document.querySelector('.token').title")


def test_a_connection_that_drops_is_said_and_can_be_tried_again(
    window, engine, served, monkeypatch
):
    real = engine._device.draw
    monkeypatch.setattr(
        engine._device, "draw", lambda drawing, steps: time.sleep(0.2) or real(drawing, 1)
    )
    with running(engine, served) as server:
        window.open(f"http://127.0.0.1:{server.port}/")
        window.run("localStorage.clear()")
        window.open(f"http://127.0.0.1:{server.port}/")
        window.wait("document.getElementById('model').textContent === 'tiny'")
        window.write("#max_tokens", "40")
        window.run("const b = document.getElementById('box'); b.value = 'Hi'; b.focus()")
        window.press("Enter")
        window.wait(f"document.querySelector('article.assistant') && {LAST}.length > 3")
        window.devtools("Network.enable")
        window.devtools(
            "Network.emulateNetworkConditions",
            offline=True, latency=0, downloadThroughput=0, uploadThroughput=0,
        )  # fmt: skip
        server.loop.call_soon_threadsafe(server.service.end_all)
        window.wait("document.querySelector('.failed')")
        kept = window.run(f"return {LAST}")
        assert len(kept) > 3
        window.devtools(
            "Network.emulateNetworkConditions",
            offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1,
        )  # fmt: skip
        monkeypatch.setattr(engine._device, "draw", real)
        window.click("article:last-child button[aria-label='Draw another answer']")
        window.wait(f"{ANSWERED} === 2 && !document.querySelector('.failed')")
        window.complaints()


def test_a_phone_and_the_dark(page, tmp_path):
    page.size(360, 640)
    page.wait("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("return getComputedStyle(document.getElementById('side')).display") == "none"
    page.click("#menu")
    page.wait("getComputedStyle(document.getElementById('side')).display === 'flex'")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    page.press("Escape")
    page.wait("getComputedStyle(document.getElementById('side')).display === 'none'")
    page.dark(True)
    say(page, "Hi", 2)
    colour = page.run("return getComputedStyle(document.body).backgroundColor")
    assert sum(json.loads(colour.replace("rgb(", "[").replace(")", "]"))) < 150
    small = page.run(
        "return [...document.querySelectorAll('button, input, select')].filter(e => e.offsetParent)"
        ".map(e => Math.min(e.offsetWidth, e.offsetHeight)).filter(s => s < 24)"
    )
    assert small == []


def test_two_temperatures_stand_side_by_side_and_one_is_kept(page):
    page.write("#second", "2")
    page.write("#temperature", "0")
    page.write("#seed", "1")
    say(page, "Hi", 2)
    texts = page.run("return [...document.querySelectorAll('.both p')].map(p => p.textContent)")
    heads = page.run("return [...document.querySelectorAll('.both h3')].map(p => p.textContent)")
    assert heads == ["Temperature 0", "Temperature 2"]
    assert texts[0]
    assert texts[0] != texts[1]
    left, right = page.run(
        "return [...document.querySelectorAll('.both section')].map(s => s.getBoundingClientRect())"
    )
    assert left["right"] <= right["left"]
    page.click(".both section:last-child button[aria-label='Keep this answer and drop the other']")
    page.wait("!document.querySelector('.both')")
    assert page.run(f"return {LAST}") == texts[1]


def test_stop_ends_an_answer_and_frees_its_pages(page, engine, monkeypatch):
    real = engine._device.draw
    monkeypatch.setattr(
        engine._device, "draw", lambda drawing, steps: time.sleep(0.1) or real(drawing, 1)
    )
    page.write("#max_tokens", "40")
    page.run("const b = document.getElementById('box'); b.value = 'Hi'; b.focus()")
    page.press("Enter")
    page.wait(f"document.querySelector('article.assistant') && {LAST}.length > 1")
    page.press("Escape")
    page.wait("document.querySelector('article:last-child footer').textContent.includes('stopped')")
    done = threading.Event()
    until = time.monotonic() + 20
    while not (engine.idle and engine.scheduler.pool.held == 0):
        assert time.monotonic() < until
        done.wait(0.05)
