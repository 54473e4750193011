"""Perplexity after rounding: lines, tables and the picture of scripts/study/quantize.sh.

    python3 scripts/study/quantize.py RESULTS.jsonl…                  Markdown tables
    python3 scripts/study/quantize.py --chart OUT.svg RESULTS.jsonl…
    python3 scripts/study/quantize.py --result RUN KEY=VALUE…         a line of JSON

For each position encoding and mask: how much the word perplexity rises when weights, inputs or both of
the blocks' projections are rounded, in percent, mean over the seeds; how much more or less than that of
the causal model of the same seed, in percentage points; and the rounded model's perplexity to that of the
rounded causal one, in percent; with 95 % confidence intervals.
"""

import json
import math
import statistics
from pathlib import Path

from chart import Panel, Series, draw
from result import (POSITIONS, Result, cards, difference, grouped, header, less, measurements, origin,
                    row)

PARTS = ("weights", "inputs", "both")


def line_of(run: Path, pairs: list[str]) -> Result:
    """`report` of the pairs is what scripts/study/rounded.py printed."""
    result = origin(run, pairs)
    report = json.loads(Path(result.pop("report")).read_text())
    counts = json.loads((run / f"{result['split']}.json").read_text())
    counts = counts.get("lengths", [counts])[0]
    return result | {
        "program": round(counts["word_perplexity"], 4),  # `stablemask eval`, nothing rounded
        "perplexity": {name: round(math.exp(nll / counts["word_count"]), 4)
                       for name, nll in report["nll"].items()},
        "outliers": report["outliers"]}


def rise(result: Result, name: str) -> float:
    """In percent, by rounding."""
    return 100 * (result["perplexity"][name] / result["perplexity"]["none"] - 1)


def rises(results: list[Result], name: str) -> dict[int, float]:
    return {result["seed"]: rise(result, name) for result in results}


def perplexities(results: list[Result], name: str) -> dict[int, float]:
    return {result["seed"]: result["perplexity"][name] for result in results}


def formats(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(name.split()[0] for name in results[0]["perplexity"]
                              if name != "none"))


def ordered(results: list[Result]) -> list[Result]:
    positions = list(POSITIONS)
    return sorted(results, key=lambda one: (positions.index(one["position"]),
                                            one["mask"] != "causal", one["mask"], one["seed"]))


def print_rises(results: list[Result], part: str) -> None:
    kinds = formats(results)
    print(f"Rounded: {part}\n")
    print(header(["position", "mask", "seeds", "not rounded"] + [f"{kind}, %" for kind in kinds]))
    groups = grouped(results, "position", "mask")
    for (position, mask), runs in groups.items():
        whole = statistics.mean(run["perplexity"]["none"] for run in runs)
        print(row([POSITIONS[position], mask, str(len(runs)), f"{whole:.2f}"] + [
            f"{statistics.mean(rises(runs, f'{kind} {part}').values()):+.2f}" for kind in kinds]))
        causal = groups.get((position, "causal"), [])
        if mask != "causal" and causal:
            print(row(["", "less causal", "", ""] + [
                less(rises(runs, f"{kind} {part}"), rises(causal, f"{kind} {part}")) for kind in kinds]))
            print(row(["", "perplexity to causal, %", ""] + [
                difference(perplexities(runs, name), perplexities(causal, name))
                for name in ["none"] + [f"{kind} {part}" for kind in kinds]]))
    print()


def largest(results: list[Result], index: int) -> dict[int, float]:
    return {result["seed"]: max(result["outliers"][index::4]) for result in results}


def print_outliers(results: list[Result]) -> None:
    names = ("qkv", "proj", "gate and up", "down")
    print("Largest input of a projection, in units of the root mean square of its inputs; the block "
          "with the largest\n")
    print(header(["position", "mask"] + list(names)))
    groups = grouped(results, "position", "mask")
    for (position, mask), runs in groups.items():
        print(row([POSITIONS[position], mask] + [
            f"{statistics.mean(largest(runs, index).values()):.1f}" for index in range(4)]))
        causal = groups.get((position, "causal"), [])
        if mask != "causal" and causal:
            print(row(["", "less causal"] + [
                less(largest(runs, index), largest(causal, index), 1) for index in range(4)]))
    print()


def print_all(results: list[Result]) -> None:
    for (preset, context, epochs, split), group in grouped(
            ordered(results), "preset", "context", "epochs", "split").items():
        print(f"**{preset}**, trained on {context} tokens (epochs: {epochs}), {split} split; "
              f"{cards(group)}\n")
        for part in PARTS:
            print_rises(group, part)
        print_outliers(group)
    print("* the interval excludes zero")


def chart(results: list[Result]) -> str:
    panels = []
    for (position,), runs in grouped(ordered(results), "position").items():
        kinds = formats(runs)
        masks = grouped(runs, "mask")
        series = []
        for index, ((mask,), of_mask) in enumerate(masks.items()):
            shift = 0.2 * (index - (len(masks) - 1) / 2)
            points = []
            for place, kind in enumerate(kinds):
                values = [max(rise(run, f"{kind} both"), 0.01) for run in of_mask]
                points.append(Series.point(place + shift, values))
            series.append(Series("causal" if mask == "causal" else "StableMask", points))
        panels.append(Panel(f"{POSITIONS[position]}: weights and inputs rounded", "format",
                            "rise of perplexity, %", series,
                            {float(place): kind for place, kind in enumerate(kinds)}, log_y=True, lines=False))
    return draw("Rise of perplexity when projections are rounded, mean and range of seeds", panels)


if __name__ == "__main__":
    measurements("scripts/study/quantize.sh", line_of, print_all, chart)
