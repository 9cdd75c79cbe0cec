"""FLOPs from their definition, lines that survive a kill, time by purpose."""

import json
import time

import pytest
from etils import epath

from llama_jax.model.presets import LLAMA2_7B, LLAMA2_70B, STORIES_15M
from llama_jax.runtime.watchdog import HANG_STATUS, Watchdog
from llama_jax.train import metrics
from llama_jax.train.metrics import (
    Clock,
    MetricsWriter,
    flops_per_token,
    read_metrics,
)


def products(c, T, *, causal):
    """FLOPs of one token from the matrix products of the architecture, one by one."""
    D, N, K, H, F, V, L = (
        c.d_model, c.num_heads, c.num_kv_heads, c.head_dim, c.d_ff, c.vocab_size, c.num_layers,
    )  # fmt: skip
    projections = 2 * D * N * H + 2 * 2 * D * K * H + 2 * N * H * D
    attention = 2 * (2 * N * H * T) * (0.5 if causal else 1)
    mlp = 3 * 2 * D * F
    return 3 * (L * (projections + attention + mlp) + 2 * D * V)  # backward costs twice forward


@pytest.mark.parametrize("c", [LLAMA2_7B, LLAMA2_70B, STORIES_15M])
@pytest.mark.parametrize("causal", [True, False])
def test_flops_are_those_of_the_matrix_products(c, causal):
    assert flops_per_token(c, 256, causal=causal) == products(c, 256, causal=causal)


def test_lines_after_the_restored_step_and_a_cut_last_line_go(tmp_path):
    folder = epath.Path(tmp_path)
    writer = MetricsWriter(folder, 0)
    for step in (1, 2, 3, 4):
        writer.write(step, {"train/loss": 1.0 / step, "data/batch": "00ff"})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "tra')
    assert [m["step"] for m in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    writer = MetricsWriter(folder, 2)
    writer.write(3, {"train/loss": 9.0})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["train/loss"]) for m in lines] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert any((tmp_path / "tensorboard").iterdir())


BAD = [
    b"{",
    b"[1]",
    b'{"step": "4"}',
    b'{"train/loss": 1.0}',
    b"\xff\xfe",
    b"[" * 99_999,
    b"9" * 400,
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_damaged_line_is_left_out_and_said(tmp_path, bad, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 2, "train/loss": NaN}\n{"step": 3}\n')
    assert [m["step"] for m in read_metrics(epath.Path(file))] == [1, 2, 3]
    assert "metrics.jsonl: 1 damaged lines were left out" in caplog.text
    MetricsWriter(epath.Path(tmp_path), 2).close()  # a run that resumes drops it for good
    assert file.read_bytes() == b'{"step": 1}\n{"step": 2, "train/loss": NaN}\n'


def test_what_has_no_lines_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_MAX_DAMAGE", 3 << 20)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + bytes(2 << 20) + b'\n{"step": 2}\n')
    assert [m["step"] for m in read_metrics(epath.Path(file))] == [1, 2]
    with file.open("r+b") as damaged:
        damaged.truncate(900 << 20)  # zeros without an end of a line
    taken = []
    monkeypatch.setattr(metrics, "parse_json", lambda raw, name: taken.append(raw) or {"step": 1})
    assert [m["step"] for m in read_metrics(epath.Path(file))] == [1, 1, 1]
    assert len(taken) == 3


def test_the_clock_tells_purposes_apart():
    clock = Clock()
    with clock("step"):
        time.sleep(0.02)
    with clock("eval"):
        time.sleep(0.02)
    assert set(clock.seconds) == {"step", "eval"}
    assert 0 < clock.goodput() <= clock.seconds["step"] / sum(clock.seconds.values()) < 1


def test_the_watchdog_bites_only_when_nothing_beats(tmp_path, capfd):
    statuses = []
    report = epath.Path(tmp_path / "hang.txt")
    with Watchdog(0.2, report, statuses.append) as dog:
        for _ in range(10):
            time.sleep(0.04)
            dog.beat()
        assert statuses == []
        deadline = time.monotonic() + 20
        while not statuses and time.monotonic() < deadline:
            time.sleep(0.01)
    assert statuses == [HANG_STATUS] == [75]
    assert "test_the_watchdog_bites" in report.read_text()
    assert "watchdog_seconds=0.2" in capfd.readouterr().err
