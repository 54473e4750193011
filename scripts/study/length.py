"""Perplexity beyond the training length: lines, tables and the picture of scripts/study/length.sh.

    python3 scripts/study/length.py RESULTS.jsonl…                  Markdown tables
    python3 scripts/study/length.py --chart OUT.svg RESULTS.jsonl…
    python3 scripts/study/length.py --result RUN KEY=VALUE…         a line of JSON

For each position encoding: word perplexity by length of the windows, mean over the seeds, and the
difference to the causal model of the same seed, evaluated with the same attention window, in percent
with the 95 % confidence interval of its mean.
"""

import json
import statistics
from pathlib import Path

from chart import Panel, Series, draw
from result import POSITIONS, Result, cards, difference, grouped, header, measurements, origin, row

FORMS = {"kept": "as trained", "infinite": "infinite", "rescaled": "re-scaled"}


def line_of(run: Path, pairs: list[str]) -> Result:
    """`reports` of the pairs is a folder with reports of `stablemask eval --lengths`."""
    result = origin(run, pairs)
    rows = [one for path in Path(result.pop("reports")).glob("*.json")
            for one in json.loads(path.read_text())["lengths"]]
    rows.sort(key=lambda one: one["window"])
    return result | {"perplexity": {str(one["window"]): round(one["word_perplexity"], 4)
                                    for one in rows}}


def by_seed(results: list[Result], length: str) -> dict[int, float]:
    return {result["seed"]: result["perplexity"][length] for result in results
            if length in result["perplexity"]}


def lengths_of(results: list[Result]) -> list[str]:
    return sorted({length for result in results for length in result["perplexity"]}, key=int)


def mask_name(mask: str, form: str) -> str:
    return mask if mask == "causal" else f"{mask}, {FORMS[form]}"


def window_name(window: int) -> str:
    return str(window) if window else "none"


def ordered(results: list[Result]) -> dict[tuple[str, str, int], list[Result]]:
    """By mask, its form and the attention window: causal first."""
    forms = list(FORMS)
    results = sorted(results, key=lambda one: (one["window"], one["mask"] != "causal", one["mask"],
                                               forms.index(one["mask_length"]), one["seed"]))
    return grouped(results, "mask", "mask_length", "window")


def print_tables(results: list[Result]) -> None:
    first, lengths, groups = results[0], lengths_of(results), ordered(results)
    print(f"**{first['preset']}, {POSITIONS[first['position']]}**, trained on {first['context']} "
          f"tokens (epochs: {first['epochs']}), {first['split']} split; {cards(results)}\n")
    print(header(["mask, mask length", "attention window", "seeds"] + lengths))
    for (mask, form, window), runs in groups.items():
        means = [f"{statistics.mean(by_seed(runs, length).values()):.2f}" for length in lengths]
        print(row([mask_name(mask, form), window_name(window), str(len(runs))] + means))
    print("\nTo causal with the same attention window, %:\n")
    print(header(["mask, mask length", "attention window"] + lengths))
    for (mask, form, window), runs in groups.items():
        causal = groups.get(("causal", "kept", window), [])
        if mask != "causal":
            print(row([mask_name(mask, form), window_name(window)] +
                      [difference(by_seed(runs, length), by_seed(causal, length))
                       for length in lengths]))
    print()


def chart(results: list[Result]) -> str:
    panels = []
    for (position, windowed), of_panel in sorted(
            grouped([one | {"windowed": one["window"] > 0} for one in results],
                    "position", "windowed").items(), key=lambda item: (item[0][0] != "rope", item[0])):
        series = []
        for (mask, form, _), runs in ordered(of_panel).items():
            name = "causal" if mask == "causal" else f"StableMask, {FORMS[form]}"
            points = []
            for length in lengths_of(runs):
                values = list(by_seed(runs, length).values())
                points.append(Series.point(float(length), values))
            series.append(Series(name, points))
        shown = f"{POSITIONS[position]}, attention window: {'T' if windowed else 'none'}"
        names = {float(length): length for length in lengths_of(of_panel)}
        panels.append(Panel(shown, "tokens of a window", "word perplexity", series, names,
                            log_x=True, log_y=position == "rope" and not windowed))
    return draw("Word perplexity by length of the windows, mean and range of the seeds", panels)


def print_all(results: list[Result]) -> None:
    groups = grouped(results, "preset", "context", "epochs", "split", "position")
    for key in sorted(groups, reverse=True):
        print_tables(groups[key])
    print("* the interval excludes zero")


if __name__ == "__main__":
    measurements("scripts/study/length.sh", line_of, print_all, chart)
