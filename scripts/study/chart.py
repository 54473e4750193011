"""Line charts as SVG, in panels side by side, for a light and for a dark page.

A picture has a background of its own and takes its colours from the reader's setting
(prefers-color-scheme), so that it can be read on a page of either kind.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

# Okabe and Ito's colours, told apart with every common colour blindness: on light, on dark.
PALETTE = (("#0072b2", "#56b4e9"), ("#c44e00", "#ff8c42"), ("#00805c", "#2bd4a4"),
           ("#a8588a", "#e39ac6"), ("#8a6a00", "#f0c419"), ("#555555", "#c4c4c4"))
WIDTH, HEIGHT = 300, 190  # of a panel's axes
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 46  # around them
LEGEND = 26


@dataclass
class Series:
    """Points (x, lowest y, y, highest y): the line goes through the y, a band from lowest to highest."""

    name: str
    points: list[tuple[float, float, float, float]]

    @staticmethod
    def point(x: float, values: Sequence[float]) -> tuple[float, float, float, float]:
        """The mean of the values and their range."""
        return x, min(values), statistics.mean(values), max(values)


@dataclass
class Panel:
    title: str
    x_title: str
    y_title: str
    series: list[Series]
    x_names: dict[float, str] = field(default_factory=dict)  # ticks; without: as y's
    log_x: bool = False
    log_y: bool = False
    lines: bool = True  # False: points alone, each with a bar from lowest to highest
    from_zero: bool = False


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Three to eight round numbers that cover the range as far as they lie in it."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [step * 10.0**decade for decade in decades for step in steps
                     if low <= step * 10.0**decade <= high]
            if len(found) >= 3:
                return found
    raw = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    return [step * number for number in range(math.ceil(low / step - 1e-9),
                                              math.floor(high / step + 1e-9) + 1)]


def scale(low: float, high: float, log: bool, start: float, end: float) -> Callable[[float], float]:
    """Maps [low, high] to [start, end]."""
    to = math.log if log else float
    return lambda value: start + (end - start) * (to(value) - to(low)) / (to(high) - to(low))


def padded(values: Sequence[float], log: bool, share: float) -> tuple[float, float]:
    """The range of the values with a margin at both ends."""
    low, high = min(values), max(values)
    if log:
        part = (high / low) ** share if high > low else 1.1
        return low / part, high * part
    part = (high - low) * share if high > low else max(abs(high), 1.0) * 0.1
    return low - part, high + part


def number(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def draw_series(series: Series, panel: Panel, color: int, x_of: Callable[[float], float],
                y_of: Callable[[float], float]) -> list[str]:
    places = [(x_of(x), y_of(low), y_of(y), y_of(high)) for x, low, y, high in series.points]
    parts = []
    if panel.lines:
        edge = [(x, high) for x, _, _, high in places] + [(x, low) for x, low, _, _ in places[::-1]]
        parts.append(f'<polygon class="f{color} band" points="{points(edge)}"/>')
        parts.append(f'<polyline class="s{color}" points="{points([(p[0], p[2]) for p in places])}"/>')
    for x, low, y, high in places:
        if not panel.lines:
            parts.append(line(x, low, x, high, f"s{color}"))
        parts.append(f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return parts


def points(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def draw_panel(panel: Panel, colors: dict[str, int], left: float, top: float) -> list[str]:
    every = [point for series in panel.series for point in series.points]
    x_low, x_high = padded([point[0] for point in every] + list(panel.x_names), panel.log_x, 0.05)
    heights = [value for point in every for value in point[1:]]
    y_low, y_high = padded(heights + [0.0] * panel.from_zero, panel.log_y, 0.05)
    x_of = scale(x_low, x_high, panel.log_x, left, left + WIDTH)
    y_of = scale(y_low, y_high, panel.log_y, top + HEIGHT, top)
    parts = [text(left + WIDTH / 2, top - 10, panel.title, more=' class="title"')]
    for value in ticks(y_low, y_high, panel.log_y):
        parts.append(line(left, y_of(value), left + WIDTH, y_of(value), "grid"))
        parts.append(text(left - 6, y_of(value) + 4, number(value), "end"))
    names = panel.x_names or {value: number(value) for value in ticks(x_low, x_high, panel.log_x)}
    for value, name in names.items():
        parts.append(line(x_of(value), top + HEIGHT, x_of(value), top + HEIGHT + 4, "axis"))
        parts.append(text(x_of(value), top + HEIGHT + 17, name))
    parts.append(line(left, top + HEIGHT, left + WIDTH, top + HEIGHT, "axis"))
    parts.append(text(left + WIDTH / 2, top + HEIGHT + 36, panel.x_title))
    x, y = left - 48, top + HEIGHT / 2
    parts.append(text(x, y, panel.y_title, more=f' transform="rotate(-90 {x:.1f} {y:.1f})"'))
    for series in panel.series:
        parts += draw_series(series, panel, colors[series.name], x_of, y_of)
    return parts


def style(count: int) -> str:
    def rules(shade: int, page: str, ink: str, grid: str) -> str:
        return (f".page{{fill:{page}}}text{{fill:{ink}}}.axis{{stroke:{ink}}}.grid{{stroke:{grid}}}" +
                "".join(f".s{i}{{stroke:{PALETTE[i][shade]}}}.f{i}{{fill:{PALETTE[i][shade]}}}"
                        for i in range(count)))
    return ("<style>polyline,line{fill:none;stroke-width:1}polyline,.bold{stroke-width:2}"
            ".band{opacity:.18}.title{font-weight:bold}" +
            rules(0, "#ffffff", "#222222", "#dddddd") + "@media(prefers-color-scheme:dark){" +
            rules(1, "#0d1117", "#dddddd", "#3a3f46") + "}</style>")


def draw(title: str, panels: list[Panel], columns: int = 2) -> str:
    """The picture. A series has the same colour in every panel."""
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colors = {name: index for index, name in enumerate(names)}
    cell_width, cell_height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    columns = min(columns, len(panels))
    width = columns * cell_width
    height = LEGEND + math.ceil(len(panels) / columns) * cell_height
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             'font-family="sans-serif" font-size="12">', f"<title>{escape(title)}</title>",
             style(len(names)), f'<rect class="page" width="{width}" height="{height}"/>']
    x = float(LEFT)
    for name, color in colors.items():
        parts.append(line(x, 16, x + 20, 16, f"s{color} bold"))
        parts.append(text(x + 26, 20, name, "start"))
        x += 44 + 6.6 * len(name)
    for index, panel in enumerate(panels):
        parts += draw_panel(panel, colors, LEFT + index % columns * cell_width,
                            LEGEND + TOP + index // columns * cell_height)
    return "\n".join(parts + ["</svg>"]) + "\n"
