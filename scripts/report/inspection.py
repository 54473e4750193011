"""Pictures of `stablemask inspect`: inspect.json and maps.json, docs/formats.md."""

import base64
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import plotly.graph_objects as go
from errors import DATA, ReportError
from figures import Control, Figure, axes, colorbar, head_line, heatmap, line
from runs import Json, Run, read_json

VERSION = 1
# An attention weight w is drawn as log10 w in one byte: 0 for less than 1e-4, 255 for 1.
DECADES = 4

# Statistics of a head: key, title, unit.
STATISTICS = (
    ("mask_ratio", "Weight thrown away (mask ratio)", "mean mask ratio (1)"),
    ("first_token", "Attention sink: weight on the first token", "mean weight (1)"),
    ("heaviest_token", "Weight on each row's heaviest token", "mean weight (1)"),
    ("entropy", "Attention entropy", "mean entropy (nats)"),
)
BY_POSITION = (
    ("mask_ratio", "mask ratio", "mask ratio (1)"),
    ("first_token", "weight on the first token", "weight (1)"),
    ("heaviest_token", "weight on the heaviest token", "weight (1)"),
    ("entropy", "entropy", "entropy (nats)"),
    ("log_mass", "log S", "log S (nats)"),
)


@dataclass
class Inspection:
    name: str
    path: Path
    values: Json
    maps: Json | None


def read_inspections(runs: list[Run], folders: list[str]) -> list[Inspection]:
    """Those of the folders, and of RUN/inspect."""
    found: dict[Path, str] = {}
    for run in runs:
        if (run.path / "inspect" / "inspect.json").is_file():
            found[run.path / "inspect"] = run.name
    for folder in folders:
        path = Path(folder).resolve()
        if not (path / "inspect.json").is_file():
            raise ReportError(DATA, f"{folder}: has no inspect.json; make it by "
                                    "stablemask inspect --out DIR")
        found.setdefault(path, path.name)
    return [_read(path, name) for path, name in found.items()]


def _read(path: Path, name: str) -> Inspection:
    values = _checked(path / "inspect.json", "layers")
    maps = path / str(values.get("maps", "maps.json"))
    return Inspection(name, path, values, _checked(maps, "layers") if maps.is_file() else None)


def _checked(path: Path, key: str) -> Json:
    values = read_json(path, "file of stablemask inspect")
    if values.get("version") != VERSION:
        raise ReportError(DATA, f"{path}: version {values.get('version')}, this program reads "
                                f"{VERSION}; inspect the checkpoint again")
    if not isinstance(values.get(key), list) or not values[key]:
        raise ReportError(DATA, f"{path}: has no {key}; inspect the checkpoint again")
    return values


def figures(inspection: Inspection, key: str) -> list[Figure]:
    """All pictures; the keys of the figures begin with `key`."""
    try:
        made = [_by_layer(inspection.values, f"{key}-{name}", name, title, unit)
                for name, title, unit in STATISTICS]
        made += [_by_position(inspection.values, f"{key}-position"),
                 _hidden_norms(inspection.values, f"{key}-hidden")]
        if inspection.maps is not None:
            made += [_maps(inspection.maps, f"{key}-map"), _shares(inspection.maps, f"{key}-share")]
    except (KeyError, TypeError, IndexError) as error:
        raise ReportError(DATA, f"{inspection.path}: not as stablemask inspect writes it "
                                f"({type(error).__name__}: {error}); inspect again") from error
    return made


def _labels(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _by_layer(values: Json, key: str, name: str, title: str, unit: str) -> Figure:
    z = [[head[name] for head in layer["heads"]] for layer in values["layers"]]
    trace = heatmap(z, unit, x=_labels(len(z[0])), y=_labels(len(z)), zmin=0, zmax=_top(z),
                    hovertemplate="layer %{y}, head %{x}: %{z}<extra></extra>")
    caption = f"Mean over the rows of {values['windows']} windows of {values['window']} tokens."
    return Figure(key, title, caption, [trace],
                  axes("head (index)", "layer (index)", xaxis={"type": "category"},
                       yaxis={"type": "category"}))


def _top(z: list[list[float | None]]) -> float:
    """Upper end of a scale that begins at 0."""
    return max([value for row in z for value in row if value is not None] + [1e-3])


def _by_position(values: Json, key: str) -> Figure:
    edges = values["position_edges"]
    middles = [(low + high + 1) / 2 for low, high in pairwise(edges)]  # from 1
    traces = []
    for l, layer in enumerate(values["layers"]):
        heads = layer["heads"]
        for h, head in enumerate(heads):
            for name, _, unit in BY_POSITION:
                y = head.get("log_mass") if name == "log_mass" else head["by_position"][name]
                if y is None:
                    continue
                x = [edge + 1 for edge in edges[:-1]] if name == "log_mass" else middles
                meta = {"when": {"layer": str(l), "statistic": name}, "ytitle": unit}
                traces.append(head_line(f"head {h}", h, len(heads), y, meta, x=x))
    has_mass = any(head.get("log_mass") for layer in values["layers"] for head in layer["heads"])
    controls = [
        Control("statistic", "statistic", [(name, text) for name, text, _ in BY_POSITION
                                           if has_mass or name != "log_mass"]),
        Control("layer", "layer", [(n, n) for n in _labels(len(values["layers"]))]),
    ]
    caption = f"Mean over {values['windows']} windows; a line for each head."
    return Figure(key, "By position", caption, traces,
                  axes("position + 1 (tokens)", BY_POSITION[0][2],
                       xaxis={"type": "log", "dtick": "D2", "tickformat": "~g"}), controls)


def _hidden_norms(values: Json, key: str) -> Figure:
    hidden = values["hidden"]
    points = [f"block {h['layer']}" if h["point"] == "block" else h["point"] for h in hidden]
    shown = (("norm", "norm, mean", "norm"), ("norm_max", "norm, maximum", "norm"),
             ("channel_share", "share of the largest channel, mean", "share"),
             ("channel_share_max", "share of the largest channel, maximum", "share"))
    titles = {"norm": "L2 norm of a token's vector (1)", "share": "share of the squared norm (1)"}
    traces = [line(text, index % 2, [h[name] for h in hidden],
                   {"when": {"statistic": kind}, "ytitle": titles[kind]}).update(x=points)
              for index, (name, text, kind) in enumerate(shown)]
    control = Control("statistic", "show", [("norm", "norm"), ("share", "largest channel")])
    return Figure(key, "Hidden states", "Residual stream after each block; output: after the final "
                  "norm.", traces, axes("point in the model", titles["norm"],
                                        yaxis={"type": "log", "dtick": "D2",
                                               "tickformat": "~g"}), [control])


def _codes(weights: list[list[float]]) -> str:
    """Base64 of a byte for each weight, row by row."""
    def code(weight: float) -> int:
        if weight < 10.0**-DECADES:
            return 0
        return max(1, min(255, round(255 + math.log10(weight) * 254 / DECADES)))
    return base64.b64encode(bytes(code(w) for row in weights for w in row)).decode()


def _head_controls(maps: Json) -> list[Control]:
    layers = maps["layers"]
    return [Control("layer", "layer", [(n, n) for n in _labels(len(layers))]),
            Control("head", "head", [(n, n) for n in _labels(len(layers[0]))])]


def _maps(maps: Json, key: str) -> Figure:
    size = len(maps["tokens"])
    names = [f"{i} {text!r}" for i, text in enumerate(maps["texts"])]
    step = next(n for n in (1, 2, 5, 10, 20, 50) if size <= 12 * n)
    ticks = {"tickvals": list(range(0, size, step)), "showgrid": False}
    traces = []
    for l, layer in enumerate(maps["layers"]):
        for h, head in enumerate(layer):
            bar = colorbar("weight (1)", tickvals=[0, -1, -2, -3, -4],
                           ticktext=["1", "0.1", "0.01", "0.001", "≤ 0.0001"])
            traces.append(go.Heatmap(
                colorscale="Cividis", colorbar=bar, zmin=-DECADES, zmax=0,
                hovertemplate="%{customdata}<extra></extra>",
                meta={"when": {"layer": str(l), "head": str(h)},
                      "codes": _codes(head["weights"])}))
    diagonal = {"type": "line", "x0": -0.5, "y0": -0.5, "x1": size - 0.5, "y1": size - 0.5,
                "line": {"width": 1, "dash": "dot"}}
    layout = axes("column: token or pseudo slot (position)", "row: query (position)", xaxis=ticks,
                  yaxis={"autorange": "reversed", **ticks}, shapes=[diagonal],
                  meta={"names": names})
    caption = ("At and below the dotted diagonal: weights on tokens. Above it: weights of pseudo "
               "slots, which are thrown away.")
    return Figure(key, "Attention map", caption, traces, layout, _head_controls(maps), "tall")


def _shares(maps: Json, key: str) -> Figure:
    """Where each row's weight goes: three shares that sum to 1."""
    parts = ("tokens", "pseudo slots of the map", "pseudo slots after it")
    traces = []
    for l, layer in enumerate(maps["layers"]):
        for h, head in enumerate(layer):
            rows = head["weights"]
            real = [round(sum(row[: i + 1]), 3) for i, row in enumerate(rows)]
            pseudo = [round(sum(row[i + 1:]), 3) for i, row in enumerate(rows)]
            for index, y in enumerate((real, pseudo, head["rest"])):
                trace = line(parts[index], index, y,
                             {"when": {"layer": str(l), "head": str(h)}, "band": True})
                traces.append(trace.update(stackgroup="weight", mode="lines",
                                           line={"width": 0.5, "dash": "solid"}))
    return Figure(key, "Where each row's weight goes", "Of the text of the attention map.", traces,
                  axes("row: query (position)", "share of the weight (1)",
                       yaxis={"range": [0, 1]}), _head_controls(maps), "tall")
