"""Small pictures as SVG text, for pages that open from disk without any library."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

W, H, LEFT, BOTTOM, TOP, RIGHT = 460, 260, 48, 40, 14, 12
COLORS = (
    "#3b82f6", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#db2777", "#65a30d",
)  # fmt: skip


class Bar(NamedTuple):
    """A value with the bounds of its interval."""

    name: str
    value: float
    low: float
    high: float


def bars(values: Sequence[Bar], label: str, *, top: float = 1.0) -> str:
    """Draws a bar for each value, with a line over its interval; the axis goes from 0 to `top`."""
    width = (W - LEFT - RIGHT) / max(len(values), 1)

    def y(value: float) -> float:
        return TOP + (H - TOP - BOTTOM) * (1 - min(value, top) / top)

    parts = [_axis(label, 0.0, top, y)]
    for i, bar in enumerate(values):
        x, middle = LEFT + (i + 0.2) * width, LEFT + (i + 0.5) * width
        height = H - BOTTOM - y(bar.value)
        parts.append(
            f'<rect x="{x:.1f}" y="{y(bar.value):.1f}" width="{0.6 * width:.1f}" '
            f'height="{height:.1f}" fill="{COLORS[0]}"/>'
            f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y(bar.low):.1f}" '
            f'y2="{y(bar.high):.1f}" stroke="currentColor" stroke-width="2"/>'
            f'<text x="{middle:.1f}" y="{H - BOTTOM + 16}" text-anchor="middle">'
            f"{escape(bar.name)}</text>"
            f'<text x="{middle:.1f}" y="{y(bar.high) - 4:.1f}" text-anchor="middle">'
            f"{bar.value:.2f}</text>"
        )
    return _svg(parts, f"{label}: " + ", ".join(f"{b.name} {b.value:.2f}" for b in values))


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    joined: bool = True,
) -> str:
    """Draws a line for each named series of (x, y) points, or the points alone."""
    points = [p for s in series.values() for p in s]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    pad = 0.08 * (y1 - y0) or 1.0
    y0, y1 = y0 - pad, y1 + pad

    def x(value: float) -> float:
        return LEFT + (W - LEFT - RIGHT) * (value - x0) / ((x1 - x0) or 1)

    def y(value: float) -> float:
        return TOP + (H - TOP - BOTTOM) * (1 - (value - y0) / (y1 - y0))

    parts = [_axis(y_label, y0, y1, y)]
    for value in _ticks(x0, x1) if x1 > x0 else [x0]:
        parts.append(
            f'<text x="{x(value):.1f}" y="{H - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<text x="{(W + LEFT) / 2:.1f}" y="{H - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for i, found in enumerate(series.values()):
        if joined and len(found) > 1:
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in found)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{_color(i)}" stroke-width="2"/>'
            )
        else:
            parts += [
                f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{_color(i)}"/>'
                for a, b in found
            ]
    legend, above = _legend(list(series))
    return _svg([*parts, legend], f"{y_label} over {x_label}: {', '.join(series)}", above=above)


def heat(weights: Float[np.ndarray, "T T"], names: Sequence[str]) -> str:
    """Draws a square for each token (row) and earlier token (column), darker for larger weights in
    0..1."""
    cell, left, top = 16, 84, 74
    size = cell * len(names)
    parts = []
    for t, name in enumerate(names):
        y, x = top + cell * t, left + cell * t
        parts.append(
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
            f'<text x="0" y="0" transform="translate({x + 12} {top - 6}) rotate(-60)">'
            f"{escape(name)}</text>"
        )
        for s in range(t + 1):
            weight = float(weights[t, s])
            parts.append(
                f'<rect x="{left + cell * s}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill="{COLORS[0]}" fill-opacity="{0.05 + 0.95 * weight:.3f}">'
                f"<title>{escape(name)} takes {weight:.0%} from {escape(names[s])}</title></rect>"
            )
    return _svg(parts, "attention of each token to earlier ones", left + size + 40, top + size + 4)


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """The names in the colours of their lines, above the plot where no line runs, and the height
    that they take."""
    x, line, placed = LEFT, 0, []
    for name in names:
        width = 7 * len(name) + 14
        if x > LEFT and x + width > W:
            x, line = LEFT, line + 1
        placed.append((x, line))
        x += width
    above = 16 * (line + 1)
    text = "".join(
        f'<text x="{x}" y="{16 * line + 12 - above}" fill="{_color(i)}">{escape(name)}</text>'
        for i, (name, (x, line)) in enumerate(zip(names, placed, strict=True))
    )
    return text, above


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers within low..high."""
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= 5)
    return [float(i * step) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axis(label: str, low: float, high: float, y) -> str:
    ticks = _ticks(low, high)
    marks = "".join(
        f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="currentColor" '
        f'stroke-opacity="0.15"/><text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.3g}'
        "</text>"
        for t in ticks
    )
    middle = (H - BOTTOM + TOP) / 2
    return (
        f'{marks}<text x="12" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle})">{escape(label)}</text>'
    )


def _svg(
    parts: Sequence[str], described: str, width: int = W, height: int = H, above: int = 0
) -> str:
    return (
        f'<svg viewBox="0 {-above} {width} {height + above}" role="img" '
        f'aria-label="{escape(described)}" '
        f'font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )
