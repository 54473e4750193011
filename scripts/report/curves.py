"""Curves of the training runs."""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go
from figures import DASHES, Figure, axes, line, rounded, style
from runs import Group, Run, number

# More points than this are thinned: no screen shows them.
MOST_POINTS, MOST_SMOOTH_POINTS = 1000, 250
# Noisy curves of at least this many lines are also drawn as a running mean over a part of them.
SMOOTHED_LINES, SMOOTHED_PART = 200, 0.02
X_TITLE = "optimizer steps"  # page.js has those of the other choices


@dataclass(frozen=True)
class Metric:
    key: str
    title: str
    axis: str
    caption: str
    scale: float = 1.0
    form: str = ""  # of the axis' numbers, d3-format
    falls: bool = False  # its first values are far above those that tell runs apart
    noisy: bool = False  # single values say less than their mean


METRICS = (
    Metric("loss", "Training loss", "loss (nats per token)", "Mean since the line before.",
           falls=True, noisy=True),
    Metric("valid_loss", "Validation loss", "loss (nats per token)",
           "Of the whole validation shard.", falls=True),
    Metric("valid_word_ppl", "Validation word perplexity", "perplexity per word (1)",
           "exp(sum of NLL / (words + lines)).", falls=True),
    Metric("lr", "Learning rate", "learning rate (1)", "Of the step.", form=".1e"),
    Metric("grad_norm", "Gradient norm", "global L2 norm (1)", "Before clipping.",
           noisy=True),
    Metric("tokens_per_second", "Throughput", "tokens per second",
           "Without the time of validation and saving.", form="~s", noisy=True),
    Metric("peak_memory_bytes", "Peak memory", "peak memory (GiB)",
           "GPU: of the allocator; CPU: of the process. The maximum so far.", scale=2.0**-30),
    Metric("mfu", "Model FLOPs utilization", "MFU (% of bf16 peak)",
           "Against the GPU's dense bf16 peak.", scale=100.0),
)


@dataclass(slots=True)
class Point:
    step: int
    tokens: float
    hours: float
    value: float
    low: float
    high: float


Curve = list[Point]


def figures(groups: list[Group]) -> list[Figure]:
    made = []
    for metric in METRICS:
        curves = {run.name: _points(run, metric) for group in groups for run in group.runs}
        curves = {name: curve for name, curve in curves.items() if curve}
        if not curves:
            continue
        longest = max(len(curve) for curve in curves.values())
        smooth = metric.noisy and longest >= SMOOTHED_LINES
        traces: list[Any] = []
        for index, group in enumerate(groups):
            own = {run.name: curves[run.name] for run in group.runs if run.name in curves}
            if smooth:
                traces += _traces(group.name, index, own, {"curves": "raw"})
                own = {name: _smoothed(curve, longest) for name, curve in own.items()}
                traces += _traces(group.name, index, own, {"curves": "smooth"})
            else:
                traces += _traces(group.name, index, own, {})
        form = {"yaxis": {"tickformat": metric.form}} if metric.form else {}
        late = _late_range(list(curves.values()), smooth) if metric.falls else None
        meta = {"meta": {"late": late}} if late else {}
        layout = axes(X_TITLE, metric.axis, hovermode="x unified", **form, **meta)
        made.append(Figure(f"curve-{metric.key}", metric.title, metric.caption, traces, layout))
    return made


def _late_range(curves: list[Curve], smooth: bool) -> list[float] | None:
    """Range of the values after the first fifth of the longest run."""
    first = max(curve[-1].step for curve in curves) / 5
    longest = max(len(curve) for curve in curves)
    drawn = [_smoothed(curve, longest) for curve in curves] if smooth else curves
    values = [p.value for curve in drawn for p in curve if p.step >= first]
    if not values or max(values) - min(values) < 1e-4 * abs(max(values)):
        return None
    margin = 0.05 * (max(values) - min(values))
    return [rounded(min(values) - margin), rounded(max(values) + margin)]


def _traces(name: str, index: int, curves: dict[str, Curve], when: dict[str, str]) -> list[Any]:
    """Of one group: the mean with its range, and the runs, which share its colour."""
    mean = _mean(list(curves.values())) if len(curves) > 1 else []
    if not mean:
        return [_line(run, index, curve, when) for run, curve in curves.items()]
    traces = _mean_traces(f"{name} (mean of {len(curves)})", index, mean,
                          {**when, "seeds": "mean"})
    for member, (run, curve) in enumerate(curves.items()):
        trace = _line(run, index, curve, {**when, "seeds": "single"})
        traces.append(trace.update(line_dash=DASHES[member % len(DASHES)]))
    return traces


def _points(run: Run, metric: Metric) -> Curve:
    points = []
    for entry, value in run.points(metric.key):
        value *= metric.scale
        points.append(Point(entry["step"], number(entry.get("tokens")) or 0.0,
                            (number(entry.get("seconds")) or 0.0) / 3600, value, value, value))
    return points


def _smoothed(curve: Curve, longest: int) -> Curve:
    """Means over stretches of lines, centred; shorter at both ends. Stretch and distance of the
    points depend on the `longest` curve, so that the curves of one figure have the same steps."""
    reach = int(longest * SMOOTHED_PART / 2)
    sums = [0.0, *accumulate(p.value for p in curve)]
    every = max(1, longest // MOST_SMOOTH_POINTS)
    kept = sorted({*range(0, len(curve), every), len(curve) - 1})
    result = []
    for i in kept:
        begin, end = max(0, i - reach), min(len(curve), i + reach + 1)
        mean = (sums[end] - sums[begin]) / (end - begin)
        result.append(replace(curve[i], value=mean, low=mean, high=mean))
    return result


def _mean(curves: list[Curve]) -> Curve:
    """Mean and range at the steps that all curves have."""
    by_step = [{point.step: point for point in curve} for curve in curves]
    result = []
    for step in sorted(set.intersection(*(set(curve) for curve in by_step))):
        points = [curve[step] for curve in by_step]
        values = [point.value for point in points]
        count = len(points)
        result.append(Point(step, sum(p.tokens for p in points) / count,
                            sum(p.hours for p in points) / count, sum(values) / count,
                            min(values), max(values)))
    return result


def _thinned(points: Curve) -> Curve:
    """Of each stretch of points the lowest and the highest, so that no spike is lost."""
    stretch = -(-2 * len(points) // MOST_POINTS)
    if stretch <= 2:
        return points
    kept = []
    for begin in range(0, len(points), stretch):
        part = points[begin:begin + stretch]
        ends = {id(p): p for p in (min(part, key=lambda p: p.value),
                                   max(part, key=lambda p: p.value))}
        kept += sorted(ends.values(), key=lambda p: p.step)
    if kept[-1].step != points[-1].step:
        kept.append(points[-1])
    return kept


def _x(points: Curve) -> dict[str, list[float]]:
    return {"step": [p.step for p in points], "tokens": [rounded(p.tokens, 9) for p in points],
            "hours": [rounded(p.hours) for p in points]}


def _line(name: str, index: int, curve: Curve, when: dict[str, str]) -> go.Scatter:
    points = _thinned(curve)
    return line(name, index, [rounded(p.value) for p in points], {"x": _x(points), "when": when})


def _mean_traces(name: str, index: int, mean: Curve, when: dict[str, str]) -> list[Any]:
    points = _thinned(mean)
    colors, _ = style(index)
    outline = points + points[::-1]
    edge = [p.high for p in points] + [p.low for p in points[::-1]]
    band = go.Scatter(name=name, y=[rounded(y) for y in edge], mode="lines", line={"width": 0},
                      fill="toself", hoverinfo="skip", showlegend=False, legendgroup=name,
                      meta={"colors": colors, "band": True, "x": _x(outline),
                            "when": when})
    return [band, _line(name, index, points, when).update(legendgroup=name)]
