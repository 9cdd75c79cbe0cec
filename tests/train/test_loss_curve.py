"""The loss curve shows every point at its place."""

import json
import re
import xml.etree.ElementTree as ET

from etils import epath

from llama_jax.train.loss_curve import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    _ticks,
    write_loss_curve,
)


def write(folder, lines):
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    return write_loss_curve(epath.Path(folder))


def test_points_are_placed_by_step_and_loss(tmp_path):
    folder = tmp_path / "a <b> & c"
    folder.mkdir()
    lines = [{"step": s, "train/loss": loss} for s, loss in ((10, 4.0), (20, 3.0), (40, 2.0))]
    lines[1]["eval/loss"] = 2.5
    lines.append({"step": 30, "train/loss": float("nan")})
    text = write(folder, lines).read_text()
    root = ET.fromstring(text)  # well formed although the folder's name holds markup
    curves = root.findall("{*}polyline")
    points = [tuple(map(float, p.split(","))) for p in curves[0].get("points").split()]
    across = [p[0] for p in points]
    width = WIDTH - LEFT - RIGHT
    assert across == [round(LEFT + width * s / 40, 1) for s in (10, 20, 40)]
    downs = [p[1] for p in points]
    assert TOP < downs[0] < downs[1] < downs[2] < HEIGHT - BOTTOM
    assert abs((downs[1] - downs[0]) - (downs[2] - downs[1])) <= 0.2  # losses are equally spaced
    labels = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "training 2.000" in labels
    assert "validation 2.500" in labels
    assert any("a <b> & c" in label for label in labels)


def test_no_picture_without_two_points(tmp_path):
    assert write(tmp_path, [{"step": 1, "train/loss": 2.0}]) is None
    assert not (tmp_path / "loss.svg").exists()
    assert write(tmp_path, [{"step": s, "train/loss": 2.0} for s in (1, 2)]).exists()


def test_ticks_are_round_and_inside():
    assert _ticks(1.93, 4.07) == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert all(re.fullmatch(r"\d+(\.[05]+)?", f"{t:g}") for t in _ticks(0.0, 1234.0))
