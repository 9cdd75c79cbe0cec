"""The loss curve of a run as an SVG picture, from its metrics."""

import math
from collections.abc import Sequence

from etils import epath

from llama_jax.runtime.files import write_atomic
from llama_jax.train.metrics import METRICS_FILE, read_metrics

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 40, 48
SERIES = (("train/loss", "training", "#4c78a8"), ("eval/loss", "validation", "#e45756"))
Points = list[tuple[float, float]]


def write_loss_curve(workdir: epath.Path) -> epath.Path | None:
    """Draw RUN/metrics.jsonl as RUN/loss.svg; returns None if there are fewer than two points."""
    metrics = read_metrics(workdir / METRICS_FILE)
    series: list[Points] = []
    for key, _, _ in SERIES:
        points = [(float(m["step"]), m[key]) for m in metrics if key in m]
        series.append([(x, y) for x, y in points if math.isfinite(y)])
    if len(series[0]) < 2:
        return None
    path = workdir / "loss.svg"
    write_atomic(path, _draw(series, workdir.name).encode())
    return path


def _ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers that cover low..high."""
    raw = (high - low) / about or 1.0
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(i * step) for i in range(first, last + 1)]


def _draw(series: Sequence[Points], title: str) -> str:
    points = [p for s in series for p in s]
    x_low, x_high = 0.0, max(p[0] for p in points)
    losses = [p[1] for p in points]
    margin = 0.05 * (max(losses) - min(losses)) or 0.1
    y_low, y_high = min(losses) - margin, max(losses) + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">Loss of {_escape(title)}, nats per token</text>',
    ]
    for y in _ticks(y_low, y_high):
        _, down = place(0.0, y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end">{y:g}</text>'
        )
    for x in _ticks(x_low, x_high):
        across, _ = place(x, y_low)
        parts.append(
            f'<text x="{across}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        )
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 10}">step</text>')
    for i, ((_, name, colour), line) in enumerate(zip(SERIES, series, strict=True)):
        if not line:
            continue
        path = " ".join(f"{a},{b}" for a, b in (place(x, y) for x, y in line))
        a, b = place(*line[-1])
        y = TOP + 16 + 18 * i
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            f'<circle cx="{a}" cy="{b}" r="3" fill="{colour}"/>'
            f'<text x="{WIDTH - RIGHT - 8}" y="{y}" text-anchor="end" fill="{colour}">'
            f"{name} {line[-1][1]:.3f}</text>"
        )
    return "\n".join([*parts, "</svg>\n"])


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
