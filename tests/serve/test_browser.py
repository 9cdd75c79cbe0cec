"""The page in a real browser: what a person does with it, and what the server hears."""

import json
import math

import pytest
from selenium.webdriver import Keys

from tests.serve.server import CONTEXT, wait_until


def test_a_message_gets_its_answer_and_nothing_goes_wrong(browser, server):
    browser.open(server)
    assert browser.text("#model") == "tiny"
    browser.set(max_tokens="8", seed="3")
    answer = browser.ask("hi")
    assert answer == said(server, browser.bodies()[-1])
    assert browser.said() == ["hi", answer]


def alone(server, body, route="chat/completions"):
    """The choice that the API makes of what the page sent."""
    body = {**body, "stream": False}
    body.pop("stream_options")
    return server.post(f"/v1/{route}", **body)["choices"][0]


def said(server, body):
    """The answer of the API to what the page sent."""
    return alone(server, body)["message"]["content"]


@pytest.mark.slow
def test_an_answer_grows_while_it_is_drawn_and_takes_the_settings(browser, large, gate):
    browser.open(large)
    browser.set(system="Be kind.", temperature="0.9", top_p="0.8", max_tokens="40", seed="7")
    browser.write("Tell me a story.")
    parts = [""]
    for _ in range(3):
        gate.let(8)
        browser.wait(lambda: len(browser.said()[1]) > len(parts[-1]))
        parts.append(browser.said()[1])
        assert browser.text("#state") == "Answering"
        assert browser.one("#stop").is_displayed()
    gate.free = True
    browser.settle()
    [body] = browser.bodies()
    answer = browser.said()[1]
    assert all(answer.startswith(part) for part in parts)
    assert answer == said(large, body)
    wanted = {"model": "tiny", "seed": 7, "temperature": 0.9, "top_p": 0.8, "max_tokens": 40}
    assert {name: body[name] for name in wanted} == wanted
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Tell me a story."},
    ]
    assert "seed 7, 40 tokens" in browser.text("article.assistant footer")
    assert browser.text("#state") == ""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_keeps_what_was_said_and_frees_the_engine(browser, large, roomy, gate, how):
    engine = roomy[0]
    drawn = engine.totals.generation_tokens
    browser.open(large)
    browser.set(max_tokens="200", seed="7")
    browser.write("Tell me a story.")
    gate.let(10)
    browser.wait(lambda: browser.said()[1])
    if how == "button":
        browser.click("#stop")
    else:
        browser.press(Keys.ESCAPE)
    browser.settle()
    part = browser.said()[1]
    gate.free = True
    wait_until(lambda: engine.idle and engine.scheduler.pool.held == 0)
    assert engine.totals.generation_tokens - drawn < 200
    assert browser.said() == ["Tell me a story.", part]
    assert browser.text("article.assistant footer").endswith("seed 7, stopped")
    assert browser.focused() == "box"


@pytest.mark.slow
def test_retry_draws_another_answer_in_the_place_of_the_last(browser, large):
    browser.open(large)
    browser.set(max_tokens="12")
    first, second = browser.ask("one"), browser.ask("two")
    browser.click("article:last-child button[aria-label='Draw another answer']")
    browser.settle()
    *kept, again = browser.said()
    assert kept == ["one", first, "two"]
    assert again != second
    bodies = browser.bodies()
    assert bodies[2]["messages"] == bodies[1]["messages"]
    assert bodies[2]["seed"] != bodies[1]["seed"]
    assert len(browser.all("button[aria-label='Draw another answer']")) == 1


@pytest.mark.slow
def test_edit_takes_a_message_back_with_all_that_followed(browser, large):
    browser.open(large)
    browser.set(max_tokens="4")
    browser.ask("one")
    browser.ask("two")
    browser.click("button[aria-label='Edit this message']")
    assert browser.one("#box").get_property("value") == "one"
    assert browser.said() == []
    assert browser.focused() == "box"
    browser.press(Keys.END, " more", Keys.ENTER)
    browser.wait(lambda: len(browser.said()) == 2)
    browser.settle()
    assert browser.said()[0] == "one more"
    assert [m["content"] for m in browser.bodies()[-1]["messages"]] == ["one more"]


@pytest.mark.slow
def test_a_text_is_continued_as_it_is(browser, large):
    browser.open(large)
    browser.set(mode="text", max_tokens="40", seed="11", probabilities=True)
    first = browser.ask("Once upon ")
    browser.ask("a time")
    bodies = browser.bodies()
    assert [body["prompt"] for body in bodies] == ["Once upon ", f"Once upon {first}a time"]
    assert bodies[0]["logprobs"] == 5
    for body, answer in zip(bodies, browser.said()[1::2], strict=True):
        assert answer == alone(large, body, "completions")["text"]


@pytest.mark.slow
def test_a_token_tells_how_probable_it_was_and_what_else_was(browser, large):
    browser.open(large)
    browser.set(probabilities=True, max_tokens="12", seed="5")
    answer = browser.ask("Tell me a story.")
    scores = alone(large, browser.bodies()[0])["logprobs"]["content"]
    tokens = browser.all("article .token")
    assert len(tokens) == len(scores)
    assert "".join(browser.texts("article .token")) == answer

    def lines(score):
        yield f"{json.dumps(score['token'], ensure_ascii=False)} {percent(score)}"
        for top in score["top_logprobs"]:
            yield json.dumps(top["token"], ensure_ascii=False) + percent(top)

    seen = [n for n, node in enumerate(tokens) if node.text.strip()]
    for n in seen[:3]:
        browser.point(tokens[n].find_element("css selector", "b"))
        assert browser.one("#tip").is_displayed()
        assert browser.texts("#tip > *") == list(lines(scores[n]))
        assert inside_the_window(browser, "#tip")
    browser.point(browser.one("h1"))
    assert not browser.one("#tip").is_displayed()
    # The same by keyboard, and for who hears the page.
    browser.run("document.querySelector('article.assistant p').focus()")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.texts("#tip > *") == list(lines(scores[1]))
    assert browser.text("#spoken") == ", ".join(lines(scores[1]))
    browser.press(Keys.ESCAPE)
    assert not browser.one("#tip").is_displayed()


def percent(score):
    return f"{100 * math.exp(score['logprob']):.1f} %"


def inside_the_window(browser, css):
    return browser.run(
        "const at = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return at.left >= 0 && at.top >= 0 && at.right <= innerWidth && at.bottom <= innerHeight",
        css,
    )


@pytest.mark.slow
def test_two_temperatures_stand_side_by_side_and_one_is_kept(browser, large):
    browser.open(large)
    browser.set(max_tokens="12", seed="5", temperature="0", second="1.5")
    browser.ask("Tell me a story.")
    bodies = sorted(browser.bodies(), key=lambda body: body["temperature"])
    assert [body["temperature"] for body in bodies] == [0, 1.5]
    assert browser.said()[1:] == [said(large, body) for body in bodies]
    assert browser.texts("h3") == ["Temperature 0", "Temperature 1.5"]
    left, right = (node.rect for node in browser.all(".both > section"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    kept = browser.said()[2]
    browser.click("button[aria-label^='Keep']", 1)
    assert browser.said() == ["Tell me a story.", kept]
    browser.set(second="")
    browser.ask("And then?")
    assert [m["content"] for m in browser.bodies()[-1]["messages"]][1] == kept


@pytest.mark.slow
def test_two_models_stand_side_by_side(browser, large):
    browser.open(large)
    browser.set(max_tokens="12", seed="5", chosen="tiny", second_model="poems")
    browser.ask("Tell me a story.")
    bodies = sorted(browser.bodies(), key=lambda body: body["model"], reverse=True)
    assert [body["model"] for body in bodies] == ["tiny", "poems"]
    answers = [said(large, body) for body in bodies]
    assert browser.said()[1:] == answers
    assert answers[0] != answers[1]
    assert browser.texts("h3") == ["tiny, temperature 0.7", "poems, temperature 0.7"]
    browser.set(second_model="", chosen="poems")
    assert browser.text("#model") == "poems"
    browser.ask("And then?")
    assert [body["model"] for body in browser.bodies()] == ["poems"]
    assert browser.texts("article:last-child h2") == ["poems"]


@pytest.mark.slow
def test_a_conversation_that_outgrows_the_context_goes_on_without_its_oldest_turns(browser, server):
    """Which the page keeps and says, as `llama-jax chat` does."""
    browser.open(server)
    browser.set(max_tokens="16", seed="3")
    asked = ["tell me", "a story", "of a cat", "and a dog", "in a park"]
    for text in asked:
        answer = browser.ask(text)
        assert browser.all(".failed") == []
    body = browser.bodies()[-1]
    seen = [m["content"] for m in body["messages"]]
    whole = browser.said()
    assert whole[::2] == asked
    assert seen == whole[-len(seen) - 1 : -1]
    left = (len(whole) - 1 - len(seen)) // 2
    assert left > 0
    turns = "turn" if left == 1 else "turns"
    note = browser.text("article.assistant:last-child footer")
    assert f"the model no longer sees the {'' if left == 1 else f'{left} '}oldest {turns}" in note
    assert answer == said(server, body)
    # No more than what must be left out, so that half of the context stays for an answer.
    roles = ("user", "assistant") * left
    longer = zip((*roles, "user"), whole[2 * left - 2 : -1], strict=False)
    messages = [{"role": role, "content": text} for role, text in longer]
    count = server.post("/tokenize", messages=messages)["count"]
    assert count + 16 > CONTEXT
    assert all("400" in one for one in browser.failed_loads())


@pytest.mark.slow
def test_an_answer_gets_what_a_long_message_leaves_of_the_context(browser, server):
    browser.open(server)
    browser.set(max_tokens="60", seed="3")
    browser.ask("tell me a story of a cat and a dog")
    first, measured, last = browser.bodies()
    count = server.post("/tokenize", messages=measured["messages"])["count"]
    assert (first["max_tokens"], last["max_tokens"]) == (60, CONTEXT - count)
    assert first["messages"] == last["messages"]
    assert browser.said()[-1] == said(server, last)
    assert "no longer sees" not in browser.text("article.assistant footer")
    assert all("400" in one for one in browser.failed_loads())
