"""Perplexity by window length, from the JSON of `stablemask eval --json`, docs/formats.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, axes, line, rounded
from runs import Group, Json, Run, number, read_json, short_names


@dataclass
class Evaluation:
    """One length of one evaluation."""

    source: Path
    run: str
    data: str
    settings: str  # mask and attention window
    window: int
    stride: int
    context: int | None  # training context
    nll_per_token: float | None
    token_perplexity: float | None
    word_perplexity: float | None


def read_evaluations(runs: list[Run], files: list[str]) -> list[Evaluation]:
    """Those of the files, and of RUN/eval*.json."""
    found = [path for run in runs for path in sorted(run.path.glob("eval*.json"))]
    paths = dict.fromkeys(found + [Path(file).resolve() for file in files])
    evaluations = []
    for path in paths:
        evaluations += _entries(path, read_json(path, "report of an evaluation"), runs)
    texts = sorted({evaluation.data for evaluation in evaluations})
    short = dict(zip(texts, short_names([Path(text) for text in texts]))) if texts else {}
    for evaluation in evaluations:
        evaluation.data = short[evaluation.data]
    return sorted(evaluations, key=lambda e: (e.run, e.data, e.settings, e.window, e.stride))


def _entries(path: Path, report: Json, runs: list[Run]) -> list[Evaluation]:
    """A report has the figures of one window, or a list "lengths" of such figures."""
    lengths = report.get("lengths")
    entries = lengths if isinstance(lengths, list) else [report]
    return [_evaluation(path, {**report, **entry}, runs) for entry in entries
            if isinstance(entry, dict)]


def _evaluation(path: Path, entry: Json, runs: list[Run]) -> Evaluation:
    run = _run_of(path, str(entry.get("checkpoint", "")), runs)
    window = int(number(entry.get("window")) or number(entry.get("length")) or 0)
    nll, tokens = number(entry.get("nll")), number(entry.get("tokens"))
    context = number(entry.get("context"))
    if context is None and run is not None:
        context = number(run.config.get("train.context"))
    return Evaluation(
        source=path,
        run=run.name if run is not None else path.stem,
        data=str(Path(str(entry.get("data", ""))).absolute()),
        settings=_settings(entry),
        window=window,
        stride=int(number(entry.get("stride")) or window),
        context=None if context is None else int(context),
        nll_per_token=nll / tokens if nll is not None and tokens else None,
        token_perplexity=number(entry.get("token_perplexity")),
        word_perplexity=number(entry.get("word_perplexity")),
    )


def _run_of(path: Path, checkpoint: str, runs: list[Run]) -> Run | None:
    """The run that holds the report or whose checkpoint was evaluated."""
    places = [path, Path(checkpoint).resolve()] if checkpoint else [path]
    for place in places:
        for run in runs:
            if run.path == place or run.path in place.parents:
                return run
    return None


def _settings(entry: Json) -> str:
    """Mask and attention window in words."""
    mask = entry.get("mask")
    parts = []
    if isinstance(mask, dict):
        if mask.get("enabled"):
            parts.append(f"γ {mask.get('gamma')}, N {mask.get('mask_length')}")
            if isinstance(mask.get("mask_length"), int):
                parts.append(f"beyond N {mask.get('beyond')}")
        else:
            parts.append("causal")
    elif mask:
        parts.append(str(mask))
    if number(entry.get("attention_window")):
        parts.append(f"attention window {entry['attention_window']}")
    scaling = entry.get("rope_scaling")
    if isinstance(scaling, dict):
        parts.append(f"RoPE scaling {scaling.get('kind')} {scaling.get('factor')}")
    elif number(scaling) not in (None, 1):
        parts.append(f"RoPE scaling {scaling}")
    return ", ".join(parts)


# Series whose legend fits under a figure of usual height.
FEW_SERIES = 6


def figure(evaluations: list[Evaluation], groups: list[Group]) -> Figure | None:
    """Perplexity against window length, both axes logarithmic, runs that differ in their seed alone
    averaged at the lengths that all of them have; None when there is one length."""
    points = [e for e in evaluations if e.window > 0 and e.stride == e.window]
    by_word = all(e.word_perplexity is not None for e in points)
    unit = "word" if by_word else "token"
    group_of = {run.name: index for index, group in enumerate(groups) for run in group.runs}
    # Runs outside the groups (their checkpoint is none of a run on the page) stay alone.
    found: dict[tuple[int | str, str, str], dict[str, dict[int, float]]] = {}
    for e in points:
        value = e.word_perplexity if by_word else e.token_perplexity
        if value is not None:
            key = (group_of.get(e.run, e.run), e.data, e.settings)
            found.setdefault(key, {}).setdefault(e.run, {})[e.window] = value
    series: dict[tuple[str, str, str], dict[int, float]] = {}
    for (group, data, settings), by_run in found.items():
        name, = by_run if len(by_run) == 1 else (f"{groups[group].name} (mean of {len(by_run)})",)
        lengths = set.intersection(*(set(values) for values in by_run.values()))
        series[name, data, settings] = {
            n: sum(values[n] for values in by_run.values()) / len(by_run) for n in lengths}
    if all(len(values) < 2 for values in series.values()):
        return None
    traces = []
    for index, (key, values) in enumerate(series.items()):
        lengths = sorted(values)
        trace = line(_label(key, list(series)), index, [rounded(values[n]) for n in lengths], {})
        traces.append(trace.update(x=lengths, mode="lines+markers"))
    ticks = sorted({length for values in series.values() for length in values})
    layout = axes("window length (tokens)", f"perplexity per {unit} (1)",
                  xaxis={"type": "log", "tickvals": ticks, "ticktext": [str(n) for n in ticks]},
                  yaxis={"type": "log", "dtick": "D2", "tickformat": "~g"},
                  **_training_lengths(points))
    return Figure("extrapolation", "Perplexity beyond the training length",
                  "Windows that do not overlap, all tokens scored. Dotted: training length.",
                  traces, layout, shape="wide" if len(traces) <= FEW_SERIES else "wide tall")


def _label(key: tuple[str, str, str], keys: list[tuple[str, str, str]]) -> str:
    """Run, and what else tells it from the other series."""
    run, data, settings = key
    label = run
    if len({other[1] for other in keys}) > 1:
        label += f" · {data}"
    if len({other[2] for other in keys if other[0] == run}) > 1:
        label += f" · {settings}"
    return label


def _training_lengths(points: list[Evaluation]) -> dict[str, Any]:
    contexts = sorted({e.context for e in points if e.context})
    return {"shapes": [{"type": "line", "xref": "x", "yref": "paper", "x0": n, "x1": n,
                        "y0": 0, "y1": 1, "line": {"dash": "dot", "width": 1.5}}
                       for n in contexts]}


COLUMNS = ("run", "text", "mask", "window", "stride", "NLL/token", "token ppl", "word ppl")


def table(evaluations: list[Evaluation]) -> list[list[str]]:
    """Rows of COLUMNS; the training length is marked."""
    rows = []
    for e in evaluations:
        mark = " (training length)" if e.window == e.context else ""
        rows.append([e.run, e.data, e.settings or "–", f"{e.window}{mark}", str(e.stride),
                     _text(e.nll_per_token, 4), _text(e.token_perplexity, 2),
                     _text(e.word_perplexity, 2)])
    return rows


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
