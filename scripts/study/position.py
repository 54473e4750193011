"""The results of scripts/study/position.sh.

    python3 scripts/study/position.py RESULTS.jsonl…                     the Markdown tables
    python3 scripts/study/position.py --chart OUT.svg RESULTS.jsonl…     the picture
    python3 scripts/study/position.py --result RUN KEY=VALUE…            a finished run as a line of JSON

For each size, encoding and mask: nats per line above the best possible, mean over the seeds with the
lowest and the highest, then how far StableMask is from causal, paired by seed. Each model is shown at that
learning rate at which the mean of its task is lowest.
"""

import statistics
from pathlib import Path

from chart import Panel, Series, draw
from result import POSITIONS, Result, grouped, header, less, measurements, row, stated

TASKS = ("count", "position", "copy", "reverse")
MODELS = {"rope-causal": "RoPE, causal", "rope-stablemask": "RoPE, StableMask",
          "alibi-causal": "ALiBi, causal", "alibi-stablemask": "ALiBi, StableMask"}


def line_of(run: Path, pairs: list[str]) -> Result:
    """RUN/results.tsv has a line for each model: task, model, nats above the best, those of guessing."""
    lines = [line.split("\t") for line in (run / "results.tsv").read_text().splitlines()]
    return stated(pairs) | {"task": lines[0][0], "guess": float(lines[0][3]),
                            "excess": {model: float(nats) for _, model, nats, _ in lines}}


def by_seed(runs: list[Result], task: str, model: str) -> dict[int, float]:
    """Nats at the best learning rate."""
    runs = [run for run in runs if run["task"] == task]
    rated = [{run["seed"]: run["excess"][model] for run in one}
             for one in grouped(runs, "lr").values()]
    return min(rated, key=lambda one: statistics.mean(one.values()), default={})


def nats(runs: list[Result], task: str, model: str) -> list[float]:
    return list(by_seed(runs, task, model).values())


def cell(values: list[float]) -> str:
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def guesses(results: list[Result]) -> dict[str, float]:
    """Of each task."""
    found = {result["task"]: result["guess"] for result in results}
    return {task: found[task] for task in TASKS if task in found}


def print_table(results: list[Result]) -> None:
    first = results[0]
    guess = guesses(results)
    seeds = len({result["seed"] for result in results})
    rates = ", ".join(f"{rate:g}" for rate in sorted({result["lr"] for result in results}))
    print(f"gamma {first['gamma']}, {seeds} seeds, the best of the peak learning rates {rates}\n")
    print(header(["layers x channels", "model", *guess]))
    print(row(["", "guessing", *(f"{value:.3f}" for value in guess.values())]))
    for (layers, channels), runs in grouped(results, "layers", "channels").items():
        for model, name in MODELS.items():
            print(row([f"{layers} x {channels}", name,
                       *(cell(nats(runs, task, model)) for task in guess)]))
    print()


def print_differences(results: list[Result]) -> None:
    """Of StableMask to causal, nats."""
    tasks = list(guesses(results))
    print(header(["layers x channels", "StableMask − causal", *tasks]))
    for (layers, channels), runs in grouped(results, "layers", "channels").items():
        for position, name in POSITIONS.items():
            cells = [less(by_seed(runs, task, f"{position}-stablemask"),
                          by_seed(runs, task, f"{position}-causal")) for task in tasks]
            print(row([f"{layers} x {channels}", name, *cells]))
    print()


def ordered(results: list[Result]) -> list[Result]:
    return sorted(results, key=lambda one: (one["channels"], one["layers"], one["lr"], one["seed"]))


def chart(results: list[Result]) -> str:
    """What is missing by size, in percent of what guessing lacks, mean and range of the seeds."""
    sizes = grouped(ordered(results), "layers", "channels")
    names = {float(index): f"{layers} x {channels}" for index, (layers, channels) in enumerate(sizes)}
    panels = []
    for task, guess in guesses(results).items():
        series = []
        for model, name in MODELS.items():
            points = []
            for index, runs in enumerate(sizes.values()):
                shares = [100 * value / guess for value in nats(runs, task, model)]
                if shares:
                    points.append(Series.point(float(index), shares))
            series.append(Series(name, points))
        panels.append(Panel(task, "layers x channels", "% of guessing", series, names, from_zero=True))
    return draw("NLL above the best possible in percent of guessing, by size and task", panels)


def print_all(results: list[Result]) -> None:
    for group in grouped(results, "gamma").values():
        print_table(ordered(group))
        print_differences(ordered(group))


if __name__ == "__main__":
    measurements("scripts/study/position.sh", line_of, print_all, chart)
