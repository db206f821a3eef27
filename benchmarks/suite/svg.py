"""Two kinds of plot as SVG text: horizontal bars in groups, and lines over a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH = 760
LABELS = 150
BAR = 18
GAP = 5
HEAD = 44
GROUP_HEAD = 26
STYLE = """
<style>
  text { font: 12px system-ui, sans-serif; fill: #222 }
  .title { font-size: 15px; font-weight: 600 }
  .group { font-weight: 600 }
  .paper { fill: #fff } .ours { fill: #2563eb } .peer { fill: #9ca3af } .axis { stroke: #9ca3af; fill: none }
  .line { fill: none; stroke-width: 2 }
  .s0 { stroke: #2563eb; color: #2563eb } .s1 { stroke: #d97706; color: #d97706 } .s2 { stroke: #059669; color: #059669 }
  .dot { fill: currentColor; stroke: none }
  @media (prefers-color-scheme: dark) { text { fill: #ddd } .paper { fill: #16181d } .peer { fill: #6b7280 } }
</style>
"""


def bars(title: str, groups: Mapping[str, Sequence[tuple[str, float, str, bool]]]) -> str:
    """Return a plot of groups of bars.

    A bar is its label, its value, the text after it, and whether it belongs to cplane.
    """
    lines: list[str] = []
    top = HEAD
    longest = max((bar[1] for group in groups.values() for bar in group), default=1.0) or 1.0
    for name, group in groups.items():
        lines.append(_text(10, top + 14, name, "group"))
        top += GROUP_HEAD
        for label, value, words, ours in group:
            width = max(1.0, value / longest * (WIDTH - LABELS - 130))
            lines.append(_text(LABELS - 8, top + 13, label, anchor="end"))
            lines.append(
                f'<rect class="{"ours" if ours else "peer"}" x="{LABELS}" y="{top}" width="{width:.1f}" height="{BAR}"/>'
            )
            lines.append(_text(LABELS + width + 6, top + 13, words))
            top += BAR + GAP
        top += GAP * 2
    return _svg(title, top + GAP, lines)


def curves(title: str, unit: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return a plot of lines through points (x, y): x on a logarithmic axis, y from zero."""
    height, left, bottom, top = 320, 70, 280, HEAD + 10
    points = [point for line in series.values() for point in line]
    if not points:
        return _svg(title, height, [])
    least, most = math.log10(min(x for x, _ in points)), math.log10(max(x for x, _ in points))
    highest = max(y for _, y in points) * 1.1 or 1.0
    span = (most - least) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (math.log10(x) - least) / span * (WIDTH - left - 190), bottom - y / highest * (bottom - top)

    lines = [f'<path class="axis" d="M{left} {top}V{bottom}H{WIDTH - 180}"/>']
    ticks = sorted({x for x, _ in points})
    lines += [_text(place(x, 0)[0], bottom + 18, f"{x:,.0f}", anchor="middle") for x in ticks]
    for part in (0.25, 0.5, 0.75, 1.0):
        y = highest / 1.1 * part
        lines.append(
            _text(left - 8, place(points[0][0], y)[1] + 4, f"{y:,.0f}" if y >= 10 else f"{y:.1f}", anchor="end")
        )
    lines.append(_text(left, top - 8, unit))
    for number, (name, line) in enumerate(series.items()):
        placed = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        lines.append(f'<polyline class="line s{number % 3}" points="{path}"/>')
        lines += [f'<circle class="dot s{number % 3}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
        lines.append(_text(WIDTH - 170, placed[-1][1] + 4, name))
    return _svg(title, height, lines)


def _text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(title: str, height: float, lines: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">{STYLE}'
    paper = f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>'
    return "\n".join([head, paper, _text(10, 26, title, "title"), *lines, "</svg>"]) + "\n"
