"""What the page keeps, and how it looks: storage, files, colours, keyboard, phones, readers."""

import json
import time

import pytest
from selenium.webdriver import Keys

from tests.serve.browser import PHONE, WIDE
from tests.serve.server import running

pytestmark = pytest.mark.slow
STORE = "llama-jax-conversations"


@pytest.fixture
def page(browser, server):
    """The page with short answers, always the same ones."""
    browser.open(server)
    browser.set(max_tokens="4", seed="3")
    return browser


def kept(page):
    return json.loads(page.run("return localStorage.getItem(arguments[0])", STORE) or "[]")


def titles(page):
    return page.texts("#list li > :first-child")


# ---- Conversations


def test_conversations_and_their_settings_outlive_a_reload(page):
    page.ask("one")
    page.click("#new")
    assert page.said() == []
    page.set(temperature="1.5", system="Be kind.")
    page.ask("two")
    before = page.said()
    page.reload()
    assert page.said() == before
    assert titles(page) == ["two", "one"]
    assert page.one("#temperature").get_property("value") == "1.5"
    assert page.one("#system").get_property("value") == "Be kind."
    page.click("#list li > :first-child", 1)
    assert page.said()[0] == "one"
    assert page.one("#temperature").get_property("value") == "0.7"
    assert page.focused() == "box"


def test_a_conversation_that_is_deleted_is_gone(page):
    page.ask("one")
    page.click("#new")
    page.ask("two")
    page.click("button[aria-label='Delete: two']")
    assert titles(page) == ["one"]
    assert page.said()[0] == "one"
    assert page.focused() == "new"
    page.click("button[aria-label='Delete: one']")
    page.reload()
    assert titles(page) == page.said() == kept(page) == []


def test_two_tabs_do_not_overwrite_each_other(page, server):
    page.ask("one")
    driver = page.driver
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    driver.get(server.url)
    page.ready()
    page.click("#new")
    page.ask("two")
    driver.close()
    driver.switch_to.window(first)
    page.wait(lambda: titles(page) == ["two", "one"])
    page.ask("three")
    assert [c["messages"][0]["content"] for c in kept(page)] == ["two", "one"]
    assert len(kept(page)[1]["messages"]) == 4


def test_an_answer_that_a_reload_cut_off_can_be_drawn_again(page, engine, monkeypatch):
    real = engine._device.draw
    monkeypatch.setattr(
        engine._device, "draw", lambda drawing, steps: time.sleep(0.3) or real(drawing, 1)
    )
    page.set(max_tokens="20")
    page.write("one")
    page.wait(lambda: page.said()[1])
    page.reload()
    assert page.said()[1]
    monkeypatch.undo()
    page.click("button[aria-label='Draw another answer']")
    page.settle()
    assert "20 tokens" in page.text("article.assistant footer")


# ---- Files


def test_what_is_exported_can_be_imported(page, server, tmp_path):
    page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.set(probabilities=True)
    page.ask("one")
    before, exported = page.said(), kept(page)
    page.click("#export")
    file = tmp_path / "conversations.json"
    page.wait(file.exists)
    assert json.loads(file.read_text()) == exported
    page.open(server)
    assert page.said() == []
    page.one("#file").send_keys(str(file))
    page.wait(lambda: page.text("#state") == "1 conversation imported.")
    assert page.said() == before
    assert kept(page) == exported


ANSWER = {"role": "assistant", "content": "a"}


def conversation(*messages, **others):
    asked = {"role": "user", "content": "q"}
    return {"id": "1", "settings": {}, "messages": [asked, *messages], **others}


BAD = [
    {},
    [None],
    [conversation(id=1)],
    [conversation(settings=None)],
    [conversation(settings={"seed": {"toString": 1}})],
    [conversation({**ANSWER, "role": "system"})],
    [conversation({**ANSWER, "content": 1})],
    [conversation({**ANSWER, "note": {}})],
    [conversation({**ANSWER, "other": {"content": None}})],
    [conversation({**ANSWER, "temperature": "hot"})],
    [conversation({**ANSWER, "tokens": [["a"]]})],
    [conversation({**ANSWER, "tokens": [["a", -1, [["b"]], "a"]]})],
    [conversation({**ANSWER, "tokens": [["a", -1, []]]})],
]


def test_files_that_hold_something_else_change_nothing(page, tmp_path):
    page.ask("one")
    before = kept(page)
    file = tmp_path / "bad.json"
    for content in ["", "{", "\x00\xff", *map(json.dumps, BAD)]:
        file.write_text(content)
        page.run("say('')")
        page.one("#file").send_keys(str(file))
        page.wait(lambda: page.text("#state"))
        assert page.text("#state") == "Not imported: the file holds no conversations."
    assert kept(page) == before
    # Kept so by an older page or another program, they do not keep the page from starting.
    page.run("window.removeEventListener('pagehide', save)")
    stored = json.dumps([*(one for [one] in BAD[1:]), before[0]])
    page.run("localStorage.setItem(arguments[0], arguments[1])", STORE, stored)
    page.reload()
    assert titles(page) == ["one"]


# ---- Looks


def colour(page, css):
    script = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
    return [int(part) for part in page.run(script, css)[4:-1].split(",")]


def test_colours_follow_the_system(page):
    page.ask("one")
    light = [colour(page, css) for css in ("body", "article.user", "#box")]
    page.look(dark=True)
    dark = [colour(page, css) for css in ("body", "article.user", "#box")]
    assert all(min(one) > 200 for one in light)
    assert all(max(one) < 100 for one in dark)


@pytest.mark.parametrize("width", [320, 360])
def test_nothing_is_wider_than_a_phone(page, width):
    page.look(size=(width, PHONE[1]))
    page.set(second="1.5", probabilities=True)

    def fits():
        """Neither the page nor its log scrolls sideways, and no control is out of reach."""
        assert page.run("return document.documentElement.scrollWidth") <= width
        assert page.run("const l = document.getElementById('log'); return l.scrollWidth") <= width
        out = page.run(
            "return [...document.querySelectorAll('button, input, textarea, select')].filter(n => {"
            "const at = n.getBoundingClientRect();"
            "return n.checkVisibility() && at.width && (at.left < 0 || at.right > innerWidth); })"
            ".map(n => n.id || n.textContent)"
        )
        assert out == []

    fits()
    page.ask("w" * 12)
    fits()
    top, below = (node.rect for node in page.all(".both > section"))
    assert top["x"] == below["x"]
    assert top["y"] + top["height"] <= below["y"]
    assert not page.one("#side").is_displayed()
    page.click("#menu")
    assert page.one("#side").is_displayed()
    assert page.one("#menu").text == "Close"
    fits()
    page.press(Keys.ESCAPE)
    assert not page.one("#side").is_displayed()
    assert page.one("#send").is_displayed()
    page.look(size=WIDE)


# ---- Without a mouse, and without eyes


def test_everything_goes_by_keyboard(page):
    page.run("document.activeElement.blur()")
    page.press(Keys.TAB)
    assert page.focused() == "Skip to the message box"
    page.press(Keys.ENTER)
    assert page.focused() == "box"
    page.driver.switch_to.active_element.send_keys("one", Keys.SHIFT + Keys.ENTER)
    page.press("two", Keys.ENTER)
    page.wait(lambda: page.all("article.assistant"))
    page.settle()
    assert page.said()[0] == "one\ntwo"
    assert page.focused() == "box"
    reached = []
    while "Retry" not in reached:
        page.driver.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB)
        reached.append(page.focused())
        assert len(reached) < 5
    page.press(Keys.ENTER)
    page.wait(lambda: page.focused() == "log")
    page.settle()
    page.press(Keys.TAB)
    assert page.focused() == "Edit"


def tree(page):
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]


def test_who_hears_the_page_hears_what_everything_is(page):
    page.set(second="1.5")
    page.ask("one")
    found = tree(page)
    kinds = {"button", "textbox", "combobox", "spinbutton", "checkbox", "link", "log", "navigation"}
    controls = [(role, name) for role, name in found if role in kinds]
    assert all(name.strip() for _, name in controls), controls
    for one in [
        ("textbox", "Message"), ("button", "Send"), ("log", "Messages"), ("textbox", "System text"),
        ("spinbutton", "Temperature, 0 to 2"), ("navigation", "Conversations and settings"),
        ("button", "Keep this answer and drop the other"), ("button", "Delete: one"),
    ]:  # fmt: skip
        assert one in controls
    assert ("heading", "You") in found
    assert any(role == "main" for role, _ in found)


def test_an_answer_is_read_by_sentences(page):
    spoken = "document.getElementById('spoken')"
    page.run(f"window.heard = []; new MutationObserver(() => heard.push({spoken}.textContent))"
             f".observe({spoken}, {{ childList: true }})")  # fmt: skip
    rest = ""
    for part in ["The d", "og ran", ". It", " was", " fast! Ye", "s"]:
        rest = page.run("return speak(arguments[0])", rest + part)
    assert rest == " Yes"
    assert page.run("return heard") == ["The dog ran.", " It was fast!"]
    page.run("heard.length = 0")
    answer = page.ask("one")
    assert "".join(page.run("return heard")).strip() == answer
    assert page.one("#spoken").get_attribute("aria-live") == "polite"
    assert page.one("#state").aria_role == "status"


def test_a_page_before_its_model_says_that_it_loads(browser, engine, served):
    with running(None, served) as server:
        browser.visit(server)
        browser.wait(lambda: browser.text("#state") == "The model is loading.")
        server.service.engine = engine
        browser.wait(lambda: browser.text("#model") == "tiny")
        assert browser.text("#state") == ""
        assert all("503" in one for one in browser.failed_loads())
