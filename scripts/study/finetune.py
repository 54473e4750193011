"""The results of scripts/study/finetune.sh.

    python3 scripts/study/finetune.py RESULTS.jsonl…                     the Markdown tables
    python3 scripts/study/finetune.py --chart OUT.svg RESULTS.jsonl…     the picture of the differences
    python3 scripts/study/finetune.py --result RUN KEY=VALUE…            a finished run as a line of JSON

Word perplexity of the validation split through the finetuning as a difference to the control, the causal
model of the same seed that was trained for as many steps, in percent, mean over the seeds. "No worse
from" is the first validation from which on that mean stays at or below TOLERANCE percent. Intervals are
those of 95 % (Student's t over the seeds).
"""

import json
import statistics
from pathlib import Path
from typing import Any

from chart import Panel, Series, draw
from result import (POSITIONS, Result, cards, difference, grouped, header, measurements, row,
                    run_line, steps_of)

TOLERANCE = 0.25
NAMES = {"auto": "at once", "warm": "growing"}


def line_of(run: Path, pairs: list[str]) -> Result:
    start = json.loads((run / "start.json").read_text())
    validations = {0: start["word_perplexity"]}
    for step in steps_of(run):
        if "valid_word_ppl" in step:
            validations[step["step"]] = step["valid_word_ppl"]
    return run_line(run, pairs) | {"validations": validations}


def all_percents(runs: list[Result], control: dict[int, Result]) -> dict[int, list[float]]:
    """By validated step, the difference of each seed to its control in percent."""
    pairs = [(run["validations"], control[run["seed"]]["validations"])
             for run in runs if run["seed"] in control]
    shared = set.intersection(*(set(mine) & set(other) for mine, other in pairs)) if pairs else set()
    return {int(step): [100 * (mine[step] / other[step] - 1) for mine, other in pairs]
            for step in sorted(shared, key=int)}


def percents(runs: list[Result], control: dict[int, Result]) -> dict[int, float]:
    """Their means."""
    return {step: statistics.mean(values) for step, values in all_percents(runs, control).items()}


def no_worse_from(course: dict[int, float]) -> int | None:
    steps = list(course)
    worse = [i for i, step in enumerate(steps) if course[step] > TOLERANCE]
    first = worse[-1] + 1 if worse else 0
    return steps[first] if first < len(steps) else None


def million(tokens: int) -> str:
    return f"{tokens / 1e6:.3g}M" if tokens else "0"


def shown_steps(steps: list[int]) -> list[int]:
    """The first, then each at least twice the one before, and the last."""
    shown: list[int] = []
    for step in steps:
        if not shown or step >= 2 * shown[-1]:
            shown.append(step)
    return shown if shown[-1:] == steps[-1:] else shown[:-1] + steps[-1:]


def print_table(results: list[Result]) -> None:
    first = results[0]
    step_tokens = first["context"] * first["batch"]
    ways = {way: runs for (way,), runs in grouped(results, "way").items()}
    control = {run["seed"]: run for run in ways.get("causal", [])}
    courses = {way: percents(runs, control) for way, runs in ways.items()}
    shown = shown_steps(list(max(courses.values(), key=len)))
    print(f"**{first['preset']}, {first['position']}**, pretrained on {first['context']} tokens "
          f"(epochs: {first['epochs']}), then {first['steps']} steps of {first['batch']} sequences, peak "
          f"learning rate {first['lr_share'] * first['pretrained_lr']:g}; {cards(results)}\n")
    lengths = list(first["test"])
    print(header(["way", "seeds", "tokens: " + million(shown[0] * step_tokens),
                  *(million(step * step_tokens) for step in shown[1:]), "no worse from",
                  "valid, end", "to causal, %", "test, end", "to causal, %",
                  f"test, {lengths[-1]}, to causal, %"]))
    for way, runs in ways.items():
        course = courses[way]
        since = no_worse_from(course)
        cells = [way, str(len(runs)), *(f"{course[step]:+.2f}" if step in course else ""
                                        for step in shown)]
        cells.append("" if since is None else million(since * step_tokens))
        for split, length in (("valid", ""), ("test", lengths[0]), ("test", lengths[-1])):
            mine = values(runs, split, length)
            if length != lengths[-1] or len(lengths) == 1:
                cells.append(f"{statistics.mean(mine.values()):.2f}")
            cells.append("" if way == "causal" else
                         difference(mine, values(list(control.values()), split, length)))
        print(row(cells))
    print()


def place(way: str) -> float:
    """In the table: named ways, then p_base from the largest to the smallest."""
    named = ["causal", "auto", "warm"]
    return named.index(way) if way in named else len(named) + 1e6 - float(way)


def values(runs: list[Result], split: str, length: str) -> dict[int, float]:
    return {run["seed"]: run[split][length] if length else run[split] for run in runs}


def ordered(results: list[Result]) -> dict[tuple[Any, ...], list[Result]]:
    """By setting, RoPE first; within it by way and seed."""
    results = sorted(results, key=lambda one: (one["position"] != "rope", place(one["way"]), one["seed"]))
    return grouped(results, "preset", "context", "epochs", "position", "steps", "lr_share")


def chart(results: list[Result]) -> str:
    """The difference to the control by tokens, mean and range of the seeds."""
    panels = []
    for runs in ordered(results).values():
        ways = grouped(runs, "way")
        control = {run["seed"]: run for run in ways.get(("causal",), [])}
        step_tokens = runs[0]["context"] * runs[0]["batch"] / 1e6
        series = []
        for (way,), mine in ways.items():
            if way != "causal":
                course = all_percents(mine, control)
                series.append(Series(NAMES.get(way, f"p_base from {way}"), [
                    Series.point(step * step_tokens, values)
                    for step, values in course.items() if step > 0]))
        panels.append(Panel(POSITIONS[runs[0]["position"]], "million tokens",
                            "perplexity to causal, %", series, from_zero=True))
    return draw("Validation perplexity of a causal model that gets the mask, to the one that does not",
                panels)


def print_all(results: list[Result]) -> None:
    for runs in ordered(results).values():
        print_table(runs)
    print("* the interval excludes zero")


if __name__ == "__main__":
    measurements("scripts/study/finetune.sh", line_of, print_all, chart)
