"""The two charts of a statement's page as inline SVG: functions of its facts, so that a page can be made again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 210, 48, 12, 12, 40
COLOURS = {"pld": "#2457a6", "rdp": "#b3590a", "prv": "#3a7d44"}
_BUDGET = "#b00020"
Points = Sequence[tuple[float, float]]


def burn_down_chart(rows: Sequence[Sequence[Any]], budget: float | None) -> Markup:
    """epsilon by round; "" where fewer than two rounds have one."""
    points = [(float(round_), float(epsilon)) for round_, epsilon in rows if epsilon is not None]
    if len(points) < 2:
        return Markup("")
    frame = _Frame((0.0, points[-1][0]), max(epsilon for _, epsilon in [*points, (0, budget or 0.0)]))
    drawn = frame.axes([(0, "0"), (points[-1][0], f"{points[-1][0]:g}")], "round") + frame.line(points, COLOURS["rdp"])
    if budget:
        drawn += frame.line([(0, budget), (points[-1][0], budget)], _BUDGET, dashed=True)
        drawn += frame.text(LEFT + 6, frame.y(budget) + 14, f"budget {budget:g}", "start", _BUDGET)
    return frame.whole(drawn, "epsilon by round")


def curve_chart(epsilons: Mapping[str, Any]) -> Markup:
    """epsilon by delta (logarithmic), a line for each accountant; "" where none has two finite values."""
    curves = {name: _points(by_delta) for name, by_delta in epsilons.items() if not isinstance(by_delta, str)}
    curves = {name: points for name, points in sorted(curves.items()) if len(points) > 1}
    if not curves:
        return Markup("")
    every = [point for points in curves.values() for point in points]
    frame = _Frame((min(x for x, _ in every), max(x for x, _ in every)), max(y for _, y in every))
    ticks = [(float(k), f"1e{k}") for k in range(math.ceil(frame.xs[0]), math.floor(frame.xs[1]) + 1)]
    drawn = frame.axes(ticks, "delta")
    for place, (name, points) in enumerate(curves.items()):
        colour = COLOURS.get(name, "#555")
        drawn += frame.line(points, colour, marked=True)
        drawn += frame.text(WIDTH - RIGHT, TOP + 12 + 15 * place, name, "end", colour)
    return frame.whole(drawn, "epsilon by delta")


def _points(by_delta: Mapping[str, float | None]) -> list[tuple[float, float]]:
    found = [(math.log10(float(delta)), epsilon) for delta, epsilon in by_delta.items() if epsilon is not None]
    return sorted(found)


class _Frame:
    """Axes from zero to a round number above the highest value."""

    def __init__(self, xs: tuple[float, float], highest: float):
        self.xs, self.top = xs, _round_up(highest)

    def x(self, value: float) -> float:
        low, high = self.xs
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / self.top)

    def axes(self, ticks: Sequence[tuple[float, str]], title: str) -> Markup:
        drawn = Markup("")
        for share in (0.0, 0.5, 1.0):
            y = self.y(share * self.top)
            drawn += Markup('<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="#ddd"/>').format(
                LEFT, WIDTH - RIGHT, y, y
            )
            drawn += self.text(LEFT - 6, y + 4, f"{share * self.top:g}", "end")
        for value, label in ticks:
            drawn += self.text(self.x(value), HEIGHT - BOTTOM + 16, label, "end" if value == self.xs[1] else "middle")
        return drawn + self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, title)

    def line(self, points: Points, colour: str, dashed: bool = False, marked: bool = False) -> Markup:
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        dash = Markup(' stroke-dasharray="4 3"') if dashed else ""
        drawn = Markup('<polyline fill="none" stroke="{}" stroke-width="2" points="{}"{}/>').format(
            colour, places, dash
        )
        for x, y in points if marked else ():
            drawn += Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.5" fill="{}"/>').format(self.x(x), self.y(y), colour)
        return drawn

    def text(self, x: float, y: float, text: str, anchor: str = "middle", colour: str = "#555") -> Markup:
        return Markup('<text x="{:.1f}" y="{:.1f}" font-size="12" text-anchor="{}" fill="{}">{}</text>').format(
            x, y, anchor, colour, text
        )

    def whole(self, drawn: Markup, label: str) -> Markup:
        head = Markup('<svg viewBox="0 0 {} {}" width="100%" role="img" aria-label="{}">').format(WIDTH, HEIGHT, label)
        return head + drawn + Markup("</svg>")


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 4, 6, 8, 10) if value <= step * unit * (1 + 1e-12))
