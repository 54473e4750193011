"""Attention sinks and large activations: lines, tables and the picture of scripts/study/sinks.sh.

    python3 scripts/study/sinks.py RESULTS.jsonl…                  Markdown tables
    python3 scripts/study/sinks.py --chart OUT.svg RESULTS.jsonl…
    python3 scripts/study/sinks.py --result RUN KEY=VALUE…         a line of JSON

Rows of the attention from T/8 on count, T the training length: the first rows see little but the first
token. Weights are shares of all of a row's weight, what pseudo slots take included.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

from chart import Panel, Series, draw
from result import POSITIONS, Result, cards, grouped, header, less, measurements, origin, row

# Of the mean weight on the first token, from which on a head is called a sink.
SINK = 0.3
EARLY = 8  # rows before T / EARLY are left out


def late_mean(values: list[float], edges: list[int]) -> float:
    """Over the rows from T/8 on, of means over the bins between the edges."""
    first = edges[-1] // EARLY
    late = [(value, end - begin) for value, begin, end in zip(values, edges, edges[1:])
            if begin >= first]
    return sum(value * rows for value, rows in late) / sum(rows for _, rows in late)


def of_layer(heads: list[Result], edges: list[int]) -> Result:
    found = {name: [late_mean(head["by_position"][name], edges) for head in heads]
             for name in ("first_token", "heaviest_token", "entropy", "mask_ratio")}
    means = {name: statistics.mean(values) for name, values in found.items()}
    return means | {"sinks": statistics.mean(value > SINK for value in found["first_token"]),
                    "largest_first_token": max(found["first_token"])}


def of_block(hidden: Result, edges: list[int]) -> Result:
    """Of the residual stream after a block, in units of a token's mean norm."""
    usual = late_mean(hidden["norm_by_position"], edges)
    return {"norm": usual, "largest_norm": hidden["norm_max"] / usual,
            "first_norm": hidden["norm_by_position"][0] / usual,
            "channel_share": hidden["channel_share"],
            "largest_channel_share": hidden["channel_share_max"]}


def line_of(run: Path, pairs: list[str]) -> Result:
    """`reports` of the pairs is a folder with inspect.json. Of each field an array by layer."""
    result = origin(run, pairs)
    inspection = json.loads((Path(result.pop("reports")) / "inspect.json").read_text())
    edges = inspection["position_edges"]
    layers = [of_layer(layer["heads"], edges) | of_block(hidden, edges) for layer, hidden in
              zip(inspection["layers"],
                  (one for one in inspection["hidden"] if one["point"] == "block"))]
    return result | {"step": inspection["step"], "windows": inspection["windows"]} | {
        name: [float(f"{layer[name]:.4g}") for layer in layers] for name in layers[0]}


# Figures of a whole model: title, how, factor, digits.
FIGURES: list[tuple[str, Callable[[Result], float], int]] = [
    ("first token, %", lambda one: 100 * statistics.mean(one["first_token"]), 2),
    ("heads with over 30 % there, %", lambda one: 100 * statistics.mean(one["sinks"]), 1),
    ("heaviest token, %", lambda one: 100 * statistics.mean(one["heaviest_token"]), 1),
    ("entropy, nats", lambda one: statistics.mean(one["entropy"]), 2),
    ("mask ratio, %", lambda one: 100 * statistics.mean(one["mask_ratio"]), 1),
    ("largest norm / usual", lambda one: max(one["largest_norm"]), 2),
    ("largest channel, %", lambda one: 100 * max(one["largest_channel_share"]), 1),
]


def by_seed(runs: list[Result], value: Callable[[Result], float]) -> dict[int, float]:
    return {run["seed"]: value(run) for run in runs}


def print_final(results: list[Result]) -> None:
    print(header(["position", "mask", "seeds"] + [title for title, _, _ in FIGURES]))
    groups = grouped(results, "position", "mask")
    for (position, mask), runs in groups.items():
        means = [f"{statistics.mean(by_seed(runs, value).values()):.{digits}f}"
                 for _, value, digits in FIGURES]
        print(row([POSITIONS[position], mask, str(len(runs))] + means))
        causal = groups.get((position, "causal"), [])
        if mask == "causal" or not causal:
            continue
        changes = [less(by_seed(runs, value), by_seed(causal, value), digits)
                   for _, value, digits in FIGURES]
        print(row(["", "less causal", ""] + changes))
    print()


def print_course(results: list[Result]) -> None:
    """Two of the figures by step."""
    steps = sorted({result["step"] for result in results})
    print(header(["position", "mask", "figure"] + [f"step {step}" for step in steps]))
    for (position, mask), runs in grouped(results, "position", "mask").items():
        at = {step: of_step for (step,), of_step in grouped(runs, "step").items()}
        for title, value, digits in (FIGURES[0], FIGURES[5], FIGURES[6]):
            print(row([POSITIONS[position], mask, title] +
                      [f"{statistics.mean(map(value, at[step])):.{digits}f}" if step in at else ""
                       for step in steps]))
    print()


def print_layers(results: list[Result]) -> None:
    layers = range(len(results[0]["first_token"]))
    print(header(["position", "mask", "by layer"] + [str(layer) for layer in layers]))
    for (position, mask), runs in grouped(results, "position", "mask").items():
        for title, name, factor, digits in (("first token, %", "first_token", 100, 2),
                                            ("mask ratio, %", "mask_ratio", 100, 1),
                                            ("largest norm / usual", "largest_norm", 1, 2)):
            print(row([POSITIONS[position], mask, title] +
                      [f"{factor * statistics.mean(run[name][layer] for run in runs):.{digits}f}"
                       for layer in layers]))
    print()


def ordered(results: list[Result]) -> list[Result]:
    positions = list(POSITIONS)
    return sorted(results, key=lambda one: (positions.index(one["position"]),
                                            one["mask"] != "causal", one["mask"], one["step"]))


def chart(results: list[Result]) -> str:
    panels = []
    for (position,), of_position in grouped(ordered(results), "position").items():
        for title, value, _ in (FIGURES[0], FIGURES[5]):
            series = []
            for (mask,), runs in grouped(of_position, "mask").items():
                points = []
                for (step,), of_step in grouped(runs, "step").items():
                    values = [value(run) for run in of_step]
                    points.append(Series.point(float(step), values))
                series.append(Series("causal" if mask == "causal" else "StableMask", points))
            panels.append(Panel(f"{POSITIONS[position]}: {title}", "step", title, series,
                                from_zero=title.endswith("%")))
    return draw("Attention sinks and large activations through training, mean and range of seeds",
                panels)


def print_all(results: list[Result]) -> None:
    for (preset, context, epochs, split), group in grouped(
            ordered(results), "preset", "context", "epochs", "split").items():
        last = max(result["step"] for result in group)
        final = [result for result in group if result["step"] == last]
        print(f"**{preset}**, trained on {context} tokens (epochs: {epochs}), "
              f"{group[0]['windows']} windows of the {split} split; {cards(group)}\n")
        print_final(final)
        print_course(group)
        print_layers(final)
    print("* the interval excludes zero")


if __name__ == "__main__":
    measurements("scripts/study/sinks.sh", line_of, print_all, chart)
