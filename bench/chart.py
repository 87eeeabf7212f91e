"""Draws the comparison: one bar a row, ours divided by the genuine relay's number on a logarithmic axis, as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

ROW = 22
LEFT = 330
WIDTH = 460
RIGHT = 150
TOP = 70
LOW, HIGH = 1 / 16, 4.0
TICKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: its label, the ratio's median, lowest and highest round, the target, and whether it was met."""

    label: str
    ratio: float
    lowest: float
    highest: float
    target: float
    met: bool


def _x(ratio: float) -> float:
    clipped = min(max(ratio, LOW), HIGH)
    return LEFT + WIDTH * (math.log(clipped / LOW) / math.log(HIGH / LOW))


def draw(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """The SVG text.  Bars grow from 1 (equal): to the left is less than the genuine relay, to the right more."""
    height = TOP + ROW * len(bars) + 40
    width = LEFT + WIDTH + RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="16" y="42" fill="#555555">{escape(subtitle)}</text>',
    ]
    bottom = TOP + ROW * len(bars)
    for tick in TICKS:
        x = _x(tick)
        label = f"{tick:g}" if tick >= 1 else f"1/{round(1 / tick)}"
        stroke = "#888888" if tick == 1 else "#dddddd"
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP - 10}" text-anchor="middle" fill="#555555">{label}</text>')
    for i, bar in enumerate(bars):
        parts += _row(bar, TOP + ROW * i)
    parts.append(
        f'<text x="16" y="{bottom + 24}" fill="#555555">bar: median of rounds; thin line: lowest to highest round; '
        "black mark: target; green met, red missed</text>"
    )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _row(bar: Bar, y: int) -> list[str]:
    one, end, middle = _x(1.0), _x(bar.ratio), y + ROW / 2
    colour = "#2e7d32" if bar.met else "#c62828"
    target = _x(bar.target)
    return [
        f'<text x="{LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect x="{min(one, end):.1f}" y="{y + 5}" width="{max(abs(end - one), 1):.1f}" height="{ROW - 10}" '
        f'fill="{colour}" fill-opacity="0.8"/>',
        f'<line x1="{_x(bar.lowest):.1f}" y1="{middle}" x2="{_x(bar.highest):.1f}" y2="{middle}" stroke="#333333"/>',
        f'<line x1="{target:.1f}" y1="{y + 2}" x2="{target:.1f}" y2="{y + ROW - 2}" stroke="#000000" '
        'stroke-width="2"/>',
        f'<text x="{LEFT + WIDTH + 12}" y="{middle + 4}">{bar.ratio:.2f} (target {bar.target:.2f})</text>',
    ]
