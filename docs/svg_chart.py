"""A chart as SVG: marks, steps and words by the units of its axes, legible in light and in dark."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

STYLE: Final = """
.card { fill: #ffffff; } .frame, .grid { stroke: #d5dde3; fill: none; } .window { fill: #0b6e99; opacity: 0.1; }
text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #10202c; }
.soft { fill: #4a5b68; } .strong { font-weight: 600; } .title { font-size: 18px; font-weight: 600; }
.now { stroke: #66737d; stroke-dasharray: 2 5; fill: none; } .mark { stroke: #10202c; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .job { stroke: #10202c; stroke-width: 4.5; }
.s0 { stroke: #0072b2; } .s1 { stroke: #c8500a; } .f0 { fill: #0072b2; } .f1 { fill: #c8500a; }
.bad { stroke: #9c1c0f; stroke-width: 2.5; fill: none; } .badtext { fill: #9c1c0f; font-weight: 600; }
.early { stroke: #0072b2; stroke-width: 2; stroke-dasharray: 4 4; fill: none; }
.early-mark { stroke: #0072b2; stroke-width: 2.5; fill: #ffffff; } .final { stroke: #0072b2; stroke-width: 2.5; fill: none; }
.final-mark { fill: #0072b2; } .read { stroke: #66737d; stroke-width: 1.5; fill: none; }
@media (prefers-color-scheme: dark) {
.card { fill: #141e27; } .frame, .grid { stroke: #32424f; } .window { fill: #58b8e8; opacity: 0.14; }
text { fill: #eef4f8; } .soft { fill: #a9b8c4; } .now { stroke: #8f9daa; } .mark { stroke: #eef4f8; }
.job { stroke: #eef4f8; } .s0 { stroke: #56b4e9; } .s1 { stroke: #f0952f; } .f0 { fill: #56b4e9; } .f1 { fill: #f0952f; }
.bad { stroke: #ffaea3; } .badtext { fill: #ffaea3; } .early, .final { stroke: #56b4e9; }
.early-mark { stroke: #56b4e9; fill: #141e27; } .final-mark { fill: #56b4e9; } .read { stroke: #8f9daa; } }
"""

Point = tuple[float, float]


class Axis(NamedTuple):
    """What stands beside a chart: a name, and the numbers that have a line, as they are written."""

    name: str
    ticks: Sequence[float]
    text: Callable[[float], str]


class Picture:
    """An SVG of a chart: what is drawn is given in its own units, and placed by its axes."""

    def __init__(
        self,
        title: str,
        about: str,
        size: tuple[int, int],
        x: tuple[float, float],
        y: tuple[float, float],
    ) -> None:
        width, height = size
        self._box = (64.0, 84.0, width - 28.0, height - 52.0)
        self._x, self._y = x, y
        self._root = ET.Element(
            "svg",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            role="img",
        )
        ET.SubElement(self._root, "title").text = title
        ET.SubElement(self._root, "desc").text = about
        ET.SubElement(self._root, "style").text = STYLE
        self._add("rect", "card", width=width, height=height, rx=10)
        self._write(24, 34, title, "title")

    def at(self, x: float, y: float) -> Point:
        left, top, right, bottom = self._box
        return (
            left + (x - self._x[0]) / (self._x[1] - self._x[0]) * (right - left),
            bottom - (y - self._y[0]) / (self._y[1] - self._y[0]) * (bottom - top),
        )

    def axes(self, x: Axis, y: Axis) -> None:
        left, top, right, bottom = self._box
        for tick in x.ticks:
            px, _ = self.at(tick, self._y[0])
            self._add("path", "grid", d=f"M{px:.1f} {top}V{bottom}")
            self._write(px, bottom + 20, x.text(tick), "soft", "middle")
        for tick in y.ticks:
            _, py = self.at(self._x[0], tick)
            self._add("path", "grid", d=f"M{left} {py:.1f}H{right}")
            self._write(left - 8, py + 5, y.text(tick), "soft", "end")
        self._write(right, bottom + 42, x.name, "soft", "end")
        self._write(24, top - 18, y.name, "soft")

    def steps(self, points: Sequence[Point], style: str) -> None:
        """A line that stays where it is until it jumps."""
        placed = [self.at(*point) for point in points]
        path = f"M{placed[0][0]:.1f} {placed[0][1]:.1f}"
        for (_, before), (x, y) in pairwise(placed):
            path += f"H{x:.1f}" + (f"V{y:.1f}" if y != before else "")
        self._add("path", style, d=path)

    def line(self, a: Point, b: Point, style: str) -> None:
        (x1, y1), (x2, y2) = self.at(*a), self.at(*b)
        self._add("path", style, d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}")

    def band(self, a: Point, b: Point, style: str) -> None:
        (x1, y1), (x2, y2) = self.at(*a), self.at(*b)
        self._add(
            "rect", style, x=min(x1, x2), y=min(y1, y2), width=abs(x2 - x1), height=abs(y2 - y1)
        )

    def mark(self, at: Point, shape: str, size: float, style: str, told: str) -> None:
        """A circle, a square, a diamond or a cross, which says what it is when it is pointed at."""
        x, y = self.at(*at)
        s = size
        paths = {
            "circle": f"M{x - s:.1f} {y:.1f}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0z",
            "square": f"M{x - s:.1f} {y - s:.1f}h{2 * s}v{2 * s}h{-2 * s}z",
            "diamond": f"M{x:.1f} {y - s:.1f}l{s} {s}l{-s} {s}l{-s} {-s}z",
            "cross": f"M{x - s:.1f} {y - s:.1f}l{2 * s} {2 * s}m{-2 * s} 0l{2 * s} {-2 * s}",
        }
        ET.SubElement(self._add("path", style, d=paths[shape]), "title").text = told

    def text(
        self, at: Point, text: str, style: str = "", anchor: str = "start", by: Point = (0, 0)
    ) -> None:
        x, y = self.at(*at)
        self._write(x + by[0], y + by[1], text, style, anchor)

    def svg(self) -> str:
        ET.indent(self._root)
        return f"{ET.tostring(self._root, 'unicode')}\n"

    def _write(self, x: float, y: float, text: str, style: str, anchor: str = "start") -> None:
        self._add("text", style, x=x, y=y, **{"text-anchor": anchor}).text = text

    def _add(self, tag: str, style: str, **given: Any) -> ET.Element:
        numbers = {n: f"{v:.1f}" if isinstance(v, float) else str(v) for n, v in given.items()}
        return ET.SubElement(self._root, tag, {"class": style, **numbers})
