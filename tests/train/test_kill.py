"""Real processes and real signals: kill -9 at random moments, SIGTERM, a damaged checkpoint."""

import json
import random
import signal
import time

import pytest

from tests.train.tiny import digests, facts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 120
OPTIONS = ("--steps", str(STEPS), "--checkpoint.every", "7", "--eval-every", "40")
KILLS = 10


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """A run that was never killed; it also fills the caches of data and programs."""
    run = tmp_path_factory.mktemp("reference") / "run"
    status, out, err = tiny.run(*OPTIONS, "--workdir", str(run))
    assert status == 0, err
    assert f"step {STEPS} of {STEPS}: complete" in out
    return run


def kill_at_a_random_moment(process, run, draw: random.Random) -> bool:
    """SIGKILL the process: half of the time anywhere in its life, else while it makes steps."""
    if draw.random() < 0.5:
        time.sleep(draw.uniform(0.0, 12.0))
    else:
        log, size = run / "metrics.jsonl", -1
        while process.poll() is None:
            now = log.stat().st_size if log.exists() else 0
            if size >= 0 and now > size:
                break
            size = now
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 1.0))
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(tiny, tmp_path, reference):
    draw = random.Random(0)
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        run = tmp_path / f"run{runs}"
        while kills < KILLS and not (run / "checkpoints" / str(STEPS) / "manifest.json").exists():
            kills += kill_at_a_random_moment(tiny.start(*OPTIONS, "--workdir", str(run)), run, draw)
        status, _, err = tiny.run(*OPTIONS, "--workdir", str(run))
        assert status == 0, err
        assert digests(run, STEPS) == digests(reference, STEPS)
        assert facts(run) == facts(reference)
    assert kills == KILLS


def test_sigterm_saves_and_exits_with_success(tiny, tmp_path, reference):
    run = tmp_path / "run"
    options = (*OPTIONS, "--workdir", str(run), "--checkpoint.every", "1000")
    process = tiny.start(*options)
    while not (run / "metrics.jsonl").exists() or len(facts(run)) < 3:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (step,) = [int(p.name) for p in (run / "checkpoints").iterdir()]
    assert 3 <= step < STEPS
    assert f"step {step} of {STEPS}: stopped early; the same command resumes" in out
    status, _, err = tiny.run(*options)
    assert status == 0
    assert f"resumed {run} at step {step}" in err
    assert digests(run, STEPS) == digests(reference, STEPS)


def test_a_flipped_bit_in_the_newest_checkpoint_is_named_and_the_older_one_taken(
    tiny, tmp_path, reference
):
    run = tmp_path / "run"
    options = ("--steps", "20", "--checkpoint.every", "10", "--workdir", str(run))
    assert tiny.run(*options)[0] == 0
    before = digests(run, 20)
    newest = run / "checkpoints" / "20"
    data = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0x10
    data.write_bytes(content)
    status, _, err = tiny.run(*options)
    assert status == 0, err
    assert "20" in err
    assert f"resumed {run} at step 10" in err
    assert digests(run, 20) == before


def test_a_hang_dumps_the_stacks_and_exits_75(tiny, tmp_path, reference):
    run = tmp_path / "run"
    hang = tiny.folder / "hang.py"
    # The third batch never comes.
    hang.write_text(
        "import sys, threading\n"
        "from llama_jax import cli\n"
        "from llama_jax.train import loop\n"
        "place, calls = loop.shard_batch, []\n"
        "def stuck(*args):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: threading.Event().wait()\n"
        "    return place(*args)\n"
        "loop.shard_batch = stuck\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = tiny.start(
        *OPTIONS, "--workdir", str(run), "--watchdog-seconds", "3", program=[str(hang)]
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "no step ended for" in err
    assert "in stuck" in err
    assert "in stuck" in (run / "hang.txt").read_text()


def test_eight_devices_save_and_four_restore(tiny, tmp_path, reference):
    run = tmp_path / "run"
    options = ("--workdir", str(run), "--checkpoint.every", "5")
    assert tiny.run(*options, "--steps", "10", devices=8)[0] == 0
    saved = json.loads((run / "checkpoints" / "10" / "manifest.json").read_text())
    status, out, err = tiny.run(*options, "--steps", "12", devices=4)
    assert status == 0, err
    assert f"resumed {run} at step 10" in err
    assert "step 12 of 12: complete" in out
    assert saved["arrays"]
