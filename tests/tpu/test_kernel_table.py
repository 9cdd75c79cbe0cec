"""The table of `llama-jax kernels`, on a report made here."""

import importlib.util
import json

import pytest

from llama_jax import cli
from llama_jax.tpu import bundles, kernel_cases, kernel_report, kernel_table


def row(kernel, direction, model, cycles, **values):
    zeros = dict.fromkeys(kernel_table.COLUMNS, 0)
    words = {"kernel": kernel, "direction": direction, "model": model, "blocks": "1024/1024/256"}
    words |= {"masks": "causal", "over_visited": None, "moved_over_valid": None}
    return {**zeros, **words, "cycles": cycles, **values}


ROWS = [
    row("splash", "backward", "7B", 4_000_000),
    row("splash", "forward", "7B", 2_000_000),
    row("ours", "forward", "7B", 1_234_567, share_of_peak=0.871, vmem_bytes=3 << 20, matmul=0.9),
    row("ours", "forward", "70B", 2_469_134),
]


@pytest.fixture
def reported(monkeypatch):
    asked = []

    def report(generation):
        asked.append(generation)
        return ROWS, []

    monkeypatch.setattr(kernel_report, "kernel_report", report)
    return asked


@pytest.mark.parametrize("topology", ["v5e", "v5e-256", "v5e:16x16"])
def test_the_fastest_stands_first_in_its_group(capsys, reported, topology):
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    assert cli.main(["kernels", "--topology", topology]) == 0
    assert reported == ["v5e"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:5] == ["kernel", "pass", "masks", "model", "blocks"]
    assert [line[:4] for line in lines[1:]] == [
        ["ours", "forward", "causal", "70B"],
        ["ours", "forward", "causal", "7B"],
        ["splash", "forward", "causal", "7B"],
        ["splash", "backward", "causal", "7B"],
    ]
    assert lines[2][5:] == ["1,234,567", "0", "0", "87%", "90%", *["0%"] * 4, "0", "0", "3.0"]


def test_json_holds_the_whole_report(capsys, reported):
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    assert cli.main(["kernels", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"kernels": ROWS}


def test_a_kernel_that_does_not_compile_is_one_line_and_the_others_go_on(capsys, monkeypatch):
    """As libtpu fails: the first line of a long message, at the end of a traceback."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    output = (
        "Traceback (most recent call last):\n  File x\n"
        "jaxlib._jax.XlaRuntimeError: INTERNAL: Mosaic failed to compile\n\nThe MLIR operation\n"
        "--------------------\nFor simplicity, JAX has removed its internal frames"
    )

    def fail(*args, **kwargs):
        raise RuntimeError(bundles.reason(output))

    monkeypatch.setattr(kernel_report, "compile_in_subprocess", fail)
    monkeypatch.setattr(kernel_report, "best_cases", lambda _: kernel_cases.best_cases("v5e")[:2])
    assert cli.main(["kernels"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("kernel")
    assert err.splitlines() == [
        f"llama-jax: ours {what}, on v5e: XlaRuntimeError: INTERNAL: Mosaic failed to compile"
        for what in (
            "forward causal 7B, blocks 1024/1024/256",
            "backward causal 7B, blocks 1024/1024/256",
        )
    ]


def test_help_explains_every_column_and_what_is_not_seen(capsys):
    with pytest.raises(SystemExit):
        cli.main(["kernels", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {heading} " in text for heading, *_ in kernel_table.COLUMNS.values())
    assert "waits for memory" in text


def test_what_cannot_be_reported_is_one_line(capsys, monkeypatch):
    assert cli.main(["kernels", "--topology", "v3-8"]) == 2
    assert "--topology v3-8 must be one of v4, v5e, v5p, v6e, tpu7x" in capsys.readouterr().err
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name)
    )
    assert cli.main(["kernels"]) == 2
    assert "pip install libtpu" in capsys.readouterr().err
