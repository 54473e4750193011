"""The results of scripts/study/position.sh.

    python3 scripts/study/position.py RESULTS.jsonl…                     the Markdown tables
    python3 scripts/study/position.py --result RUN KEY=VALUE…            a finished run as a line of JSON

For each size, encoding and mask: nats per line above the best possible, mean over the seeds with the
lowest and the highest. Each model is shown at that learning rate at which the mean of its task is lowest.
"""

import statistics
from pathlib import Path

from result import Result, command, grouped, header, read_results, row, stated

MODELS = {"rope-causal": "RoPE, causal", "rope-stablemask": "RoPE, StableMask",
          "alibi-causal": "ALiBi, causal", "alibi-stablemask": "ALiBi, StableMask"}


def line_of(run: Path, pairs: list[str]) -> Result:
    """RUN/results.tsv has a line for each model: task, model, nats above the best, those of guessing."""
    excess: dict[str, dict[str, float]] = {}
    guess: dict[str, float] = {}
    for line in (run / "results.tsv").read_text().splitlines():
        task, model, nats, guessing = line.split("\t")
        excess.setdefault(task, {})[model] = float(nats)
        guess[task] = float(guessing)
    return stated(pairs) | {"excess": excess, "guess": guess}


def cell(runs: list[Result], task: str, model: str) -> str:
    rated = [[run["excess"][task][model] for run in one] for one in grouped(runs, "lr").values()]
    best = min(rated, key=statistics.mean)
    text = f"{statistics.mean(best):.3f}"
    return text if len(best) == 1 else f"{text} ({min(best):.3f} to {max(best):.3f})"


def print_table(results: list[Result]) -> None:
    first = results[0]
    tasks = list(first["guess"])
    seeds = len({result["seed"] for result in results})
    rates = ", ".join(f"{rate:g}" for rate in sorted({result["lr"] for result in results}))
    print(f"gamma {first['gamma']}, {seeds} seeds, the best of the peak learning rates {rates}\n")
    print(header(["layers x channels", "model", *tasks]))
    print(row(["", "guessing", *(f"{first['guess'][task]:.3f}" for task in tasks)]))
    for (layers, channels), runs in grouped(results, "layers", "channels").items():
        for model, name in MODELS.items():
            print(row([f"{layers} x {channels}", name, *(cell(runs, task, model) for task in tasks)]))
    print()


def main() -> None:
    results = read_results("scripts/study/position.sh")
    for group in grouped(results, "gamma").values():
        print_table(sorted(group, key=lambda one: (one["channels"], one["layers"], one["lr"],
                                                   one["seed"])))


if __name__ == "__main__":
    command(line_of, main)
