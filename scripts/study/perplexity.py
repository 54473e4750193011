"""The results of scripts/study/perplexity.sh.

    python3 scripts/study/perplexity.py RESULTS.jsonl…                     the Markdown tables
    python3 scripts/study/perplexity.py --chart OUT.svg RESULTS.jsonl…     the picture

For each setting (model size, training length, epochs) and position encoding: word perplexity of every
mask, mean over the seeds, and the difference to the causal model of the same seed in percent with the
95 % confidence interval of its mean (Student's t over the seeds). Then, for masks that models of several
sizes have, how far that difference on the test split is from the smallest size's, in percentage points.
"""

import statistics
from collections.abc import Iterator
from itertools import combinations

from chart import Panel, Series, draw
from result import (POSITIONS, Result, cards, difference, grouped, header, interval, less,
                    measurements, percents, row, run_line)

# Of the picture, from left to right; other masks are numbers.
NAMED_MASKS = ("slopes", "infinite", "sink", "learnable")


def by_seed(results: list[Result], split: str, length: str = "") -> dict[int, float]:
    return {result["seed"]: result[split][length] if length else result[split]
            for result in results}


def gains(results: list[Result]) -> Iterator[tuple[str, dict[int, float]]]:
    """Of each mask, by seed: the test perplexity at the training length to causal, in percent."""
    masks = grouped(results, "mask")
    length = str(results[0]["context"])
    causal = by_seed(masks.pop(("causal",), []), "test", length)
    for (mask,), runs in masks.items():
        yield mask, percents(by_seed(runs, "test", length), causal)


def print_table(results: list[Result]) -> None:
    first = results[0]
    lengths = list(first["test"])
    compared = [("valid", "")] + [("test", length) for length in lengths]
    masks = {mask: runs for (mask,), runs in grouped(results, "mask").items()}
    causal = masks.get("causal", [])
    print(f"**{first['preset']}, {first['position']}**, trained on {first['context']} tokens, "
          f"{first['steps']} steps of {first['batch']} sequences (epochs: {first['epochs']}), "
          f"peak learning rate {first['lr']}; {cards(results)}\n")
    print(header(["mask", "seeds", "valid"] + [f"test, {length}" for length in lengths] +
                 ["to causal: valid, %"] + [f"test, {length}, %" for length in lengths]))
    for mask, runs in masks.items():
        cells = [mask, str(len(runs)), f"{statistics.mean(by_seed(runs, 'valid').values()):.2f}"]
        cells += [f"{statistics.mean(by_seed(runs, 'test', length).values()):.2f}"
                  for length in lengths]
        cells += ["" if mask == "causal" else difference(by_seed(runs, *what), by_seed(causal, *what))
                  for what in compared]
        print(row(cells))
    print()


def print_sizes(results: list[Result]) -> None:
    """What masks gain in models of several sizes."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for (position, preset), runs in grouped(results, "position", "preset").items():
        for mask, gain in gains(runs):
            found.setdefault((position, mask), {})[preset] = gain
    found = {key: of_size for key, of_size in found.items() if len(of_size) > 1}
    if not found:
        return
    sizes = sorted({size for of_size in found.values() for size in of_size}, key=parameters)
    pairs = [pair for pair in combinations(sizes, 2) if pair[0] == sizes[0]]
    print(f"Test perplexity to causal, %, by model size; trained on {results[0]['context']} tokens (epochs: "
          f"{results[0]['epochs']})\n")
    print(header(["position", "mask", *sizes, *(f"{large} less {small}" for small, large in pairs)]))
    for (position, mask), of_size in found.items():
        cells = [interval(list(of_size.get(size, {}).values())) for size in sizes]
        cells += [less(of_size.get(large, {}), of_size.get(small, {})) for small, large in pairs]
        print(row([POSITIONS.get(position, position), mask, *cells]))
    print()


def parameters(preset: str) -> float:
    """71m, 1.4b: in millions."""
    return float(preset[:-1]) * (1000 if preset[-1] == "b" else 1)


def settings(results: list[Result]) -> list[list[Result]]:
    """Lines of the same size, training length and epochs, smallest first."""
    groups = grouped(results, "preset", "context", "epochs")
    return [groups[key] for key in sorted(groups, key=lambda key: (parameters(key[0]), *key[1:]))]


def chart(results: list[Result]) -> str:
    """Test perplexity to causal at the training length by mask, mean and range of the seeds."""
    panels = []
    for position in ("rope", "alibi"):
        of_panel = settings([result for result in results if result["position"] == position])
        masks = {result["mask"] for runs in of_panel for result in runs} - {"causal"}
        places = {mask: float(place) for place, mask in enumerate(sorted(masks, key=place_of))}
        series = []
        for index, runs in enumerate(of_panel):
            shift = 0.2 * (index - (len(of_panel) - 1) / 2)
            points = [Series.point(places[mask] + shift, list(gain.values()))
                      for mask, gain in gains(runs) if gain]
            if points:
                series.append(Series(setting_name(runs[0]), points))
        if series:
            panels.append(Panel(POSITIONS[position], "mask", "test perplexity to causal, %", series,
                                {place: mask for mask, place in places.items()}, lines=False,
                                from_zero=True))
    return draw("Test perplexity to causal at the training length, mean and range of the seeds", panels)


def setting_name(result: Result) -> str:
    epochs = "" if result["epochs"] == 1 else f", epochs: {result['epochs']}"
    return f"{result['preset']}, {result['context']} tokens{epochs}"


def place_of(mask: str) -> tuple[int, float]:
    """Slopes, numbers, then the other names."""
    if mask in NAMED_MASKS:
        return (2 * NAMED_MASKS.index(mask), 0.0)
    return (1, float(mask))


def print_all(results: list[Result]) -> None:
    results = sorted(results, key=lambda one: (one["mask"] != "causal", one["mask"], one["seed"]))
    for group in settings(results):
        by_position = grouped(group, "position")
        for key in sorted(by_position, reverse=True):
            print_table(by_position[key])
    for group in grouped(results, "context", "epochs").values():
        print_sizes(sorted(group, key=lambda one: one["position"] != "rope"))
    print("* the interval excludes zero")


if __name__ == "__main__":
    measurements("scripts/study/perplexity.sh", run_line, print_all, chart)
