"""Many clients at once: every answer is the lone one, and nothing is left behind."""

import random
import threading
import time

import pytest

from tests.serve.server import engine_of, running

PROMPTS = ["Once upon a time", "The cat", "", "One day a boy went to the park and saw a dog"]


@pytest.mark.slow
def test_each_of_many_clients_gets_the_answer_that_it_would_get_alone(model, served):
    """Fifty clients for a while, among them some that go away; a queue that is too short for all,
    so that some are told to come back; and `/health` all along."""
    engine = engine_of(model)
    engine.queue = 16
    engine.start()
    chance = random.Random(0)
    wanted = [
        {"prompt": chance.choice(PROMPTS), "max_tokens": chance.randrange(1, 20), "seed": n,
         "temperature": chance.choice([0, 0.8]), "n": chance.choice([1, 1, 3]), "logprobs": 2}
        for n in range(12)
    ]  # fmt: skip
    with running(engine, served) as server:
        alone = [server.post("/v1/completions", **body)["choices"] for body in wanted]
        compiled = engine.compiled.count
        problems, done, health = [], [], []
        until = time.monotonic() + 20

        def client(seed):
            mine = random.Random(seed)
            while time.monotonic() < until:
                number = mine.randrange(len(wanted))
                body = {"model": "tiny", **wanted[number]}
                if mine.random() < 0.2:
                    connection = server.connect()
                    connection.request(
                        "POST", "/v1/completions", '{"model": "tiny", "prompt": "a", "n": 2}',
                        {"Content-Type": "application/json"},
                    )  # fmt: skip
                    time.sleep(mine.random() / 20)
                    connection.close()
                    continue
                status, headers, answer = server.ask("POST", "/v1/completions", body)
                done.append(status)
                if status == 429:
                    time.sleep(0.05 * int(headers["Retry-After"]))
                elif status != 200 or answer["choices"] != alone[number]:
                    problems.append((number, status, answer))

        def watch():
            while time.monotonic() < until:
                health.append(server.ask("GET", "/health")[0])
                time.sleep(0.05)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(50)]
        threads.append(threading.Thread(target=watch))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert {200, 429} == set(done)
        assert set(health) == {200}
        idle = time.monotonic() + 10
        while not engine.idle and time.monotonic() < idle:
            time.sleep(0.01)
        assert engine.idle
        assert engine.scheduler.pool.held == 0
        assert engine.waiting == 0
        assert engine.compiled.count == compiled
    engine.stop()
