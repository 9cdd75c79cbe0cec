"""The page when somebody or something is against it: markup, floods, broken connections, keys."""

import contextlib
import hashlib
import json

import pytest
from selenium.webdriver import Keys

from llama_jax.serve.replies import Reply
from tests.serve.server import KEYS, running
from tests.serve.test_browser import said

pytestmark = pytest.mark.slow
MARKUP = (
    "<img src=x onerror='window.hurt=1'><script>window.hurt=1</script>"
    '</p><svg onload=window.hurt=1><a href="javascript:window.hurt=1">&amp;</a>'
)


def unhurt(browser):
    """Whether nothing ran, and no element came from a text."""
    strange = browser.run(
        "return document.querySelectorAll('img, svg, a:not(.skip), script:not([src])').length"
    )
    return not strange and browser.run("return window.hurt === undefined")


def test_markup_stays_text_whoever_wrote_it(browser, server, monkeypatch, tmp_path):
    real = Reply.chunks

    def hostile(reply, choice, delta):
        delta.text = delta.text and MARKUP
        return real(reply, choice, delta)

    monkeypatch.setattr(Reply, "chunks", hostile)
    browser.open(server)
    browser.set(max_tokens="1", system=MARKUP[:9])
    browser.write(MARKUP[:10])
    browser.settle()
    browser.failed_loads()
    browser.set(system="")
    browser.click("#new")
    answer = browser.ask("<b>")
    assert browser.said() == ["<b>", answer]
    assert answer.startswith(MARKUP)
    assert unhurt(browser)
    words = {"content": MARKUP, "note": MARKUP, "failed": MARKUP, "model": MARKUP}
    tokens = [[MARKUP, -1.0, [[MARKUP, -1.0]], MARKUP]]
    answers = {**words, "role": "assistant", "tokens": tokens, "other": words}
    asked = {"role": "user", "content": MARKUP}
    file = tmp_path / "hostile.json"
    file.write_text(json.dumps([{"id": "1", "settings": {}, "messages": [asked, answers]}]))
    browser.one("#file").send_keys(str(file))
    browser.wait(lambda: browser.said() == [MARKUP] * 3)
    browser.point(browser.one("#log .token b"))
    assert MARKUP in json.loads(browser.text("#tip strong").rpartition(" 36")[0])
    assert MARKUP[:60] in browser.texts("#list button")
    assert unhurt(browser)
    browser.reload()
    assert browser.said() == [MARKUP] * 3
    assert unhurt(browser)


def test_a_text_from_right_to_left_is_set_so(browser, large):
    words = "שלום עולם, how are you? مرحبا"
    browser.open(large)
    browser.set(max_tokens="4")
    browser.ask(words)
    browser.ask("left to right")
    assert browser.said()[0] == words
    assert browser.bodies()[0]["messages"][0]["content"] == words
    assert directions(browser, "article.user p") == ["rtl", "ltr"]
    assert directions(browser, "#list li > :first-child") == ["rtl"]


def directions(browser, css):
    return browser.run(
        "const found = [...document.querySelectorAll(arguments[0])];"
        "return found.map((node) => getComputedStyle(node).direction)",
        css,
    )


def test_a_message_of_10_000_characters(browser, large, server):
    message = ("the dog and " * 900)[:10_000].strip()
    browser.open(large)
    browser.set(max_tokens="4", seed="1")
    browser.run("document.getElementById('box').value = arguments[0]", message)
    browser.one("#box").send_keys(Keys.ENTER)
    browser.wait(lambda: len(browser.said()) == 2)
    browser.settle()
    assert browser.said()[0] == message
    assert browser.bodies()[0]["messages"][0]["content"] == message
    assert browser.said()[1]
    assert not wider_than_the_log(browser)
    assert len(browser.texts("#list button")[0]) == 60
    # Where it does not fit, both numbers are said, it can be edited, and the next one is answered.
    browser.open(server)
    browser.set(max_tokens="4")
    browser.run("document.getElementById('box').value = arguments[0]", "w" * 10_000)
    browser.one("#box").send_keys(Keys.ENTER)
    browser.wait(lambda: browser.all(".failed"))
    said = browser.text(".failed")
    assert "and an answer of up to 4 are more than the context of 64: shorten the message" in said
    assert not wider_than_the_log(browser)
    assert all("400" in one for one in browser.failed_loads())
    answer = browser.ask("hi")
    assert browser.said() == ["hi", answer]


def wider_than_the_log(browser):
    return browser.run(
        "const log = document.getElementById('log'); return log.scrollWidth > log.clientWidth"
    )


def test_a_connection_that_breaks_is_told_and_the_page_recovers(browser, roomy, gate):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(*roomy))
        browser.open(server)
        browser.set(max_tokens="40", seed="7")
        browser.write("Tell me a story.")
        gate.let(10)
        browser.wait(lambda: browser.said()[1])
        server.cut()
        browser.wait(lambda: browser.all(".failed"))
        part = browser.said()[1]
        assert browser.text(".failed") == "The connection was lost before the answer ended."
        assert browser.one(".failed").aria_role == "alert"
        gate.free = True
    browser.settle()
    retry = "button[aria-label='Draw another answer']"
    browser.click(retry)
    browser.wait(lambda: browser.texts(".failed") == ["The server does not answer."])
    browser.settle()
    with running(*roomy, port=server.port) as server:
        browser.click(retry)
        browser.wait(lambda: not browser.all(".failed"))
        browser.settle()
        whole = browser.said()[1]
        assert whole == said(server, browser.bodies()[-1])
        assert whole.startswith(part)
        assert len(whole) > len(part)
        assert all("net::ERR_" in one for one in browser.failed_loads())


def test_what_breaks_off_in_the_middle_stays_and_the_next_message_follows(browser, server):
    browser.open(server)
    browser.set(max_tokens="4")
    browser.ask("one")
    browser.run("current.messages[1].failed = 'lost'; show()")
    browser.ask("two")
    assert [m["content"] for m in browser.bodies()[-1]["messages"]] == [
        "one", browser.said()[1], "two",
    ]  # fmt: skip


def test_a_server_with_keys_asks_for_one(browser, engine, served):
    digests = tuple(hashlib.sha256(key.encode()).digest() for key in KEYS.values())
    with running(engine, served, keys=digests) as server:
        browser.visit(server)
        for key in ("wrong", KEYS["first"]):
            browser.wait(lambda: browser.one("#keys").is_displayed())
            assert browser.one("#keys").accessible_name == "This server needs a key"
            assert browser.focused() == "key"
            browser.press(key, Keys.ENTER)
        browser.wait(lambda: browser.text("#model") == "tiny")
        browser.set(max_tokens="4")
        assert browser.ask("hi")
        browser.reload()
        assert not browser.one("#keys").is_displayed()
        assert not browser.run("return JSON.stringify(localStorage).includes('a-key')")
        assert all("401" in one for one in browser.failed_loads())
