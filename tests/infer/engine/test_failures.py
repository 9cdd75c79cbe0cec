"""The engine when something fails, and what it shows of itself while it works."""

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from llama_jax.infer.engine.engine import Engine
from llama_jax.model.cache import prepare
from tests.infer.engine.tiny import LAYOUT, Heard, all_free, alone, request
from tests.infer.small import SMALL, params_of


def test_after_a_failure_of_the_device_the_waiting_go_on(engine, monkeypatch):
    wanted = request(range(1, 12), 6)
    expected = alone(engine, wanted)
    heard = Heard()
    tickets = [engine.submit([wanted], heard)[0] for _ in range(4)]
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr("llama_jax.infer.engine.programs.draw_steps", lambda *_, **__: 1 / 0)
        engine.step()
    assert not engine.broken
    while not engine.idle:
        engine.step()
    finishes = [heard.result(t)[3] for t in tickets]
    assert finishes == ["failed"] * 3 + ["length"]
    assert heard.result(tickets[3]) == expected
    engine._failed_at = -float("inf")


def test_what_was_admitted_waits_no_more_although_the_device_fails(engine, monkeypatch):
    """Or the queue would stay shorter by those that were to get rows after the one that failed."""
    heard = Heard()
    tickets = engine.submit([request([n], 4) for n in (1, 2, 3)], heard)
    with monkeypatch.context() as patch:
        patch.setattr(engine._device, "begin", lambda *_: 1 / 0)
        engine.step()
    assert [heard.result(ticket)[3] for ticket in tickets] == ["failed"] * 3
    assert all_free(engine)
    engine._failed_at = -float("inf")


@pytest.mark.parametrize("where", ["plan", "listen"])
def test_a_failure_of_the_host_is_one_of_the_device(engine, monkeypatch, where):
    """It does not end the thread: the next request is answered."""
    heard = Heard()

    def listen(ticket, piece):
        heard(ticket, piece)
        if where == "listen":
            raise RuntimeError("nobody listens")

    (ticket,) = engine.submit([request([1, 2], 4)], listen)
    with monkeypatch.context() as patch:
        if where == "plan":
            patch.setattr(engine.scheduler, "plan", lambda: 1 / 0)
        else:
            engine.cancel(ticket)
        engine.step()
    assert not engine.broken
    while not engine.idle:
        engine.step()
    assert heard.result(ticket)[3] == ("length" if where == "plan" else "cancelled")
    assert all_free(engine)
    engine._failed_at = -float("inf")


def test_an_engine_whose_thread_ended_is_broken(engine, monkeypatch):
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    engine.start()
    engine.submit([request([1, 2], 4)], Heard())
    engine._thread.join(10)
    assert [one.exc_type for one in failed] == [ZeroDivisionError]
    assert engine.broken
    monkeypatch.undo()
    engine.broken, engine._thread = False, None
    while not engine.idle:
        engine.step()
    assert all_free(engine)


def test_every_chunk_and_draw_is_a_sign_of_life(engine, monkeypatch):
    """A cycle of a slow device takes long; it is silent no longer than one program."""
    beats = []
    for name in ("prefill", "draw"):
        real = getattr(engine._device, name)

        def told(*arguments, _real=real, **named):
            beats.append(engine.beat)
            time.sleep(0.01)
            return _real(*arguments, **named)

        monkeypatch.setattr(engine._device, name, told)
    monkeypatch.setattr(engine, "longest", 0.0)
    layout = replace(engine.layout, budget=100)
    monkeypatch.setattr(engine.scheduler, "layout", layout)
    heard = Heard()
    engine.submit([request(range(1, 22), 1)], heard)
    engine.step()
    beats.append(engine.beat)
    assert len(beats) == 5
    gaps = [later - before for before, later in pairwise(beats)]
    assert min(gaps) >= 0.01
    assert engine.longest == max(gaps)
    assert all_free(engine)


def test_a_warm_up_measures_how_long_the_device_is_silent():
    small = Engine(prepare(params_of(SMALL), SMALL), config=SMALL, layout=LAYOUT)
    assert small.longest == 0.0
    small.warm_up()
    assert 0.0 < small.longest < 30.0
