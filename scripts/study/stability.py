"""The results of scripts/study/stability.sh.

    python3 scripts/study/stability.py RESULTS.jsonl…                    the Markdown tables
    python3 scripts/study/stability.py --chart OUT.svg RESULTS.jsonl…    the picture of the losses
    python3 scripts/study/stability.py --result RUN KEY=VALUE…           a finished run as a line of JSON

A run has diverged when it ended because a loss or a gradient was not finite, or when its validation
loss is not below that of the unigram model of the training text. A spike is a step after the warm-up,
the first tenth of the steps, whose gradient norm is more than SPIKE times the median of the WINDOW
steps before it. Norms are those before clipping. Differences of validation losses are those of a mask's
runs to the causal runs of the same seed, where both trained, with the 95 % confidence interval of their
mean; `both` takes each seed of each position encoding for a pair of its own.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from chart import Panel, Series, draw
from result import (POSITIONS, Result, cards, grouped, header, interval, measurements, row, stated,
                    steps_of)

SPIKE = 3
WINDOW = 50


def spikes_of(norms: list[float], start: int) -> int:
    """The number of spikes among norms[start:]."""
    return sum(norms[i] > SPIKE * statistics.median(norms[max(0, i - WINDOW):i])
               for i in range(max(start, 1), len(norms)))


def line_of(run: Path, pairs: list[str]) -> Result:
    result = stated(pairs)
    steps = steps_of(run)
    start = result["steps"] // 10
    norms = [step["grad_norm"] for step in steps if step["grad_norm"] is not None]
    result |= {
        "finished_steps": len(norms),
        "largest_loss": max(step["loss"] for step in steps if step["loss"] is not None),
        "largest_grad_norm": max(norms[start:], default=None),
        "median_grad_norm": statistics.median(norms[start:]) if norms[start:] else None,
        "spikes": spikes_of(norms, start),
        "valid_loss": None,
        "unigram_loss": None,
    }
    if (run / "valid.json").exists():
        report = json.loads((run / "valid.json").read_text())
        result["valid_loss"] = report["nll"] / report["tokens"]
        result["unigram_loss"] = report["unigram"]["nll"] / report["unigram"]["tokens"]
    return result


def diverged(result: Result) -> bool:
    return (result["finished_steps"] < result["steps"] or result["valid_loss"] is None
            or result["valid_loss"] >= result["unigram_loss"])


def mean_of(runs: list[Result], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


def loss_cell(runs: list[Result]) -> str:
    """Mean validation loss of the runs that trained, and how many did not."""
    trained = [run for run in runs if not diverged(run)]
    cells = [f"{mean_of(trained, 'valid_loss'):.3f}"] if trained else []
    if len(trained) < len(runs):
        cells.append(f"{len(runs) - len(trained)} of {len(runs)} diverged")
    return ", ".join(cells)


def norm_cell(runs: list[Result]) -> str:
    norms = [run["largest_grad_norm"] for run in runs if run["largest_grad_norm"] is not None]
    return f"{max(norms):.2g}, {mean_of(runs, 'spikes'):.1f}" if norms else ""


def print_differences(results: list[Result], rates: list[float]) -> None:
    """Of validation losses, paired by position encoding and seed."""
    trained = [run for run in results if not diverged(run)]
    causal = {(run["position"], run["seed"], run["lr"]): run["valid_loss"]
              for run in trained if run["mask"] == "causal"}
    pairs = [run | {"less": run["valid_loss"] - causal[key]} for run in trained
             if run["mask"] != "causal" and (key := (run["position"], run["seed"], run["lr"])) in causal]
    if not pairs:
        return
    rows = {f"{position}, {mask}": runs for (position, mask), runs in
            grouped(pairs, "position", "mask").items()}
    if len(rows) == 2 and len(grouped(pairs, "position")) == 2:
        rows["both"] = pairs
    print("\n" + header(["validation loss less that of causal", *(f"{rate:g}" for rate in rates)]))
    for name, runs in rows.items():
        print(row([name, *(interval([run["less"] for run in runs if run["lr"] == rate], 3)
                           for rate in rates)]))
    print("\n* the interval excludes zero")


def print_tables(results: list[Result]) -> None:
    first = results[0]
    rates = sorted({result["lr"] for result in results})
    unigram = [result["unigram_loss"] for result in results if result["unigram_loss"] is not None]
    print(f"**{first['preset']}**, {first['steps']} steps of {first['batch']} sequences of "
          f"{first['context']} tokens, seeds {len({result['seed'] for result in results})}; "
          f"{cards(results)}\n")
    models = grouped(results, "position", "mask")
    names = [f"{rate:g}" for rate in rates]
    print(header(["validation loss at peak learning rate", *names, "best", "highest that trains"]))
    for (position, mask), runs in models.items():
        rated = {rate: one for (rate,), one in grouped(runs, "lr").items()}
        trains = [rate for rate in rated if not any(map(diverged, rated[rate]))]
        best = min(trains, key=lambda rate: mean_of(rated[rate], "valid_loss"), default=None)
        ends: list[Any] = [best, max(trains, default=None)]
        print(row([f"{position}, {mask}", *(loss_cell(rated.get(rate, [])) for rate in rates),
                   *("" if end is None else f"{end:g}" for end in ends)]))
    print("\n" + header(["largest gradient norm, spikes a run", *names]))
    for (position, mask), runs in models.items():
        rated = {rate: one for (rate,), one in grouped(runs, "lr").items()}
        print(row([f"{position}, {mask}", *(norm_cell(rated.get(rate, [])) for rate in rates)]))
    print_differences(results, rates)
    if unigram:
        print(f"\nThe unigram model's loss is {statistics.mean(unigram):.3f}.")
    print()


def ordered(results: list[Result]) -> list[Result]:
    return sorted(results, key=lambda one: (one["position"] != "rope", one["mask"] != "causal",
                                            one["mask"], one["lr"], one["seed"]))


def chart(results: list[Result]) -> str:
    """Validation loss by learning rate, mean and range of the runs that trained."""
    panels = []
    for (position,), of_panel in grouped(ordered(results), "position").items():
        series = []
        for (mask,), runs in grouped(of_panel, "mask").items():
            points = []
            for (rate,), rated in grouped(runs, "lr").items():
                losses = [run["valid_loss"] for run in rated if not diverged(run)]
                if losses:
                    points.append(Series.point(rate, losses))
            series.append(Series("causal" if mask == "causal" else "StableMask", points))
        names = {rate: f"{rate:g}" for rate in sorted({run["lr"] for run in of_panel})}
        panels.append(Panel(POSITIONS[position], "peak learning rate", "validation loss, nats", series,
                            names, log_x=True))
    return draw("Validation loss by peak learning rate, mean and range of the seeds", panels)


def print_all(results: list[Result]) -> None:
    for group in grouped(results, "preset", "context", "steps", "batch").values():
        print_tables(ordered(group))


if __name__ == "__main__":
    measurements("scripts/study/stability.sh", line_of, print_all, chart)
