"""Reads run folders: metrics.jsonl and config.json, docs/formats.md."""

import json
import math
import os
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import DATA, ReportError, warn

Json = dict[str, Any]

# Fields that do not change what a run computes: runs that differ in these alone are averaged.
NOT_COMPARED = ("version", "train.out", "train.seed")


@dataclass
class Run:
    path: Path
    lines: list[Json]
    config: Json  # by path, "model.stable_mask.gamma"; empty when it could not be read
    name: str = ""  # unique among the runs of the page

    def points(self, key: str) -> list[tuple[Json, float]]:
        """The lines with a finite value of `key`, and the values."""
        found = []
        for line in self.lines:
            value = number(line.get(key))
            if value is not None:
                found.append((line, value))
        return found

    def last(self, key: str) -> float | None:
        points = self.points(key)
        return points[-1][1] if points else None

    def best_validation(self) -> Json | None:
        """The line with the lowest validation loss."""
        points = self.points("valid_loss")
        return min(points, key=lambda point: point[1])[0] if points else None

    def best(self, key: str) -> float | None:
        """The value of `key` at the best validation."""
        line = self.best_validation()
        return number(line.get(key)) if line else None

    def tokens_per_second(self) -> float | None:
        rates = [value for _, value in self.points("tokens_per_second")]
        return statistics.median(rates) if rates else None

    def finished(self) -> bool:
        steps = number(self.config.get("train.steps"))
        return steps is not None and self.lines[-1]["step"] >= steps


@dataclass
class Group:
    """Runs whose configs differ in the seed alone."""

    name: str
    runs: list[Run] = field(default_factory=list)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def read_runs(folders: list[str]) -> list[Run]:
    runs: list[Run] = []
    for folder in folders:
        path = Path(folder).resolve()
        if all(run.path != path for run in runs):
            runs.append(_read_run(folder, path))
    names = short_names([run.path for run in runs])
    for run, name in zip(runs, names):
        run.name = name
    return runs


def group_by_seed(runs: list[Run]) -> list[Group]:
    """The groups in the order of their first runs; a run without a config stays alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        compared = {k: v for k, v in run.config.items() if k not in NOT_COMPARED}
        key = json.dumps(compared, sort_keys=True) if compared else str(run.path)
        groups.setdefault(key, []).append(run)
    named = [Group(_common_name([run.name for run in members]), members)
             for members in groups.values()]
    counts = Counter(group.name for group in named)
    for group in named:
        if counts[group.name] > 1:
            group.name = ", ".join(run.name for run in group.runs)
    return named


def differing_fields(runs: list[Run]) -> list[str]:
    """Config fields whose values differ between the runs that have a config."""
    configs = [run.config for run in runs if run.config]
    names = list(dict.fromkeys(name for config in configs for name in config))
    return [name for name in names if name not in ("version", "train.out")
            and any(config.get(name) != configs[0].get(name) for config in configs)]


def read_json(path: Path, what: str) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(DATA, f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(DATA, f"{path}: is no {what}: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(DATA, f"{path}: is no {what}: not a JSON object")
    return value


def flatten(config: Json, path: str = "") -> Json:
    flat: Json = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}{key}."))
        else:
            flat[path + key] = value
    return flat


def _read_run(folder: str, path: Path) -> Run:
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        if not path.is_dir():
            raise ReportError(DATA, f"{folder}: is no folder; name a run folder")
        inside = sorted(found.parent.name for found in path.glob("*/metrics.jsonl"))
        hint = f"; it holds runs, name them: {', '.join(inside)}" if inside else ""
        raise ReportError(DATA, f"{folder}: is no run, it has no metrics.jsonl{hint}")
    lines = _read_lines(metrics)
    if not lines:
        raise ReportError(DATA, f"{folder}: has no metrics yet; wait for the first line of "
                                "metrics.jsonl, see train.log_every")
    try:
        config = flatten(read_json(path / "config.json", "config"))
    except ReportError as error:
        warn(f"{error}; the run is shown without its config")
        config = {}
    return Run(path, lines, config)


def _read_lines(metrics: Path) -> list[Json]:
    """In ascending order of steps. A last line without its end is still being written."""
    try:
        text = metrics.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ReportError(DATA, f"{metrics}: cannot be read: {error.strerror}") from error
    by_step: dict[int, Json] = {}
    damaged = 0
    for line in text.split("\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            # Less noisy; runs of older versions have only the loss of the line's own step.
            if number(value.get("loss_mean")) is not None:
                value["loss"] = value["loss_mean"]
            by_step[value["step"]] = value
        else:
            damaged += 1
    if damaged:
        warn(f"{metrics}: damaged lines left out: {damaged}")
    return [by_step[step] for step in sorted(by_step)]


def short_names(paths: list[Path]) -> list[str]:
    """The paths without the folders that all share; one path: its last part."""
    if len(paths) == 1:
        return [paths[0].name or str(paths[0])]
    shared = Path(os.path.commonpath(paths))
    return [str(path.relative_to(shared)) if path != shared else path.name for path in paths]


def _common_name(names: list[str]) -> str:
    """What the names share at their beginning or end, whichever is longer."""
    if len(names) == 1:
        return names[0]
    separators = "-_./ "
    begin = os.path.commonprefix(names).rstrip(separators)
    end = os.path.commonprefix([name[::-1] for name in names])[::-1].lstrip(separators)
    # "rope-seed1" and "rope-seed2" share a part of a word that says nothing.
    if begin.endswith("seed"):
        begin = begin[: -len("seed")].rstrip(separators)
    return max(begin, end, key=len) or ", ".join(names)
