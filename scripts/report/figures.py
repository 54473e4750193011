"""Building blocks of the page's figures: Plotly traces with what page.js needs to switch them.

A trace's `meta` may hold:
  colors   [light, dark]: its colour on a light and on a dark page
  band     true: an area in that colour
  x        {"step": …, "tokens": …, "hours": …}: values of x, chosen by the control of that name
  when     {control: value}: the trace is drawn while all these controls have these values
  ytitle   title of the vertical axis while it is drawn
  codes    base64 of one byte a cell: logarithms of attention weights; the layout's meta then has
           names: what to call each row and column
A layout's `meta` may hold late: the vertical range without the first part of a run.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's colours, told apart with every common colour blindness, darkened for a light page
# and lightened for a dark one: contrast 3 : 1 or more against it.
PALETTE = (
    ("#0072b2", "#56b4e9"),
    ("#c44e00", "#ff8c42"),
    ("#00805c", "#2bd4a4"),
    ("#a8588a", "#e39ac6"),
    ("#8a6a00", "#f0c419"),
    ("#555555", "#c4c4c4"),
)
DASHES = ("solid", "dash", "dot", "dashdot")
# Few points are drawn as points too: a single one has no line.
MARKED_POINTS = 40


@dataclass
class Control:
    """A selection beside a figure: traces name it in meta.when."""

    name: str
    label: str
    options: list[tuple[str, str]]  # value, text


@dataclass
class Figure:
    key: str
    title: str
    caption: str
    traces: list[Any]
    layout: dict[str, Any]
    controls: list[Control] = field(default_factory=list)
    shape: str = ""  # "wide": the whole width of the page; "tall": more height

    def as_json(self) -> dict[str, Any]:
        # go.Figure checks every name and value.
        figure = json.loads(go.Figure(self.traces, self.layout).to_json())
        figure["layout"].pop("template", None)
        return {"key": self.key, "data": figure["data"], "layout": figure["layout"]}


def axes(x: str, y: str, **layout: Any) -> dict[str, Any]:
    """A layout with titled axes."""
    result: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for key, value in layout.items():
        if key in result:
            result[key] |= value
        else:
            result[key] = value
    return result


def style(index: int) -> tuple[tuple[str, str], str]:
    """Colour pair and dash of the index-th series; they repeat after 24."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def line(name: str, index: int, y: list[float], meta: dict[str, Any], **more: Any) -> go.Scatter:
    colors, dash = style(index)
    mode = "lines+markers" if len(y) <= MARKED_POINTS else "lines"
    return go.Scatter(name=name, y=y, mode=mode, line={"dash": dash, "width": 2},
                      showlegend=True, meta={"colors": colors, **meta}, **more)


def head_line(name: str, head: int, heads: int, y: list[float | None], meta: dict[str, Any],
              **more: Any) -> go.Scatter:
    """A head's curve: colours along a scale, since heads are ordered (slopes)."""
    part = head / max(1, heads - 1)
    colors = (_blend("#440154", "#21908d", "#b07d00", part),
              _blend("#b79cff", "#35d0c0", "#fde725", part))
    mode = "lines+markers" if len(y) <= MARKED_POINTS else "lines"
    return go.Scatter(name=name, y=y, mode=mode, line={"width": 1.5}, showlegend=True,
                      meta={"colors": colors, **meta}, **more)


def heatmap(z: list[list[float | None]], unit: str, **more: Any) -> go.Heatmap:
    return go.Heatmap(z=z, colorscale="Cividis", colorbar=colorbar(unit), **more)


def colorbar(title: str, **more: Any) -> dict[str, Any]:
    """Below the picture, where a narrow page has room; page.js says how far."""
    return {"title": {"text": title, "side": "top"}, "orientation": "h", "x": 0.5,
            "xanchor": "center", "yanchor": "top", "thickness": 12, "len": 0.9, **more}


def rounded(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


def _blend(first: str, middle: str, last: str, part: float) -> str:
    low, high, share = (first, middle, 2 * part) if part < 0.5 else (middle, last, 2 * part - 1)
    channels = (round(int(low[i:i + 2], 16) * (1 - share) + int(high[i:i + 2], 16) * share)
                for i in (1, 3, 5))
    return "#" + "".join(f"{channel:02x}" for channel in channels)
