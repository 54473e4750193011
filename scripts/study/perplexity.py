"""Prints the Markdown tables of scripts/study/perplexity.sh.

    python3 scripts/study/perplexity.py RESULTS.jsonl…

For each setting (model size, training length, epochs) and position encoding: word perplexity of every
mask, mean over the seeds, and the difference to the causal model of the same seed in percent with the
95 % confidence interval of its mean (Student's t over the seeds).
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

# 97.5 % quantiles of Student's t distribution by degrees of freedom.
T_QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}

Result = dict[str, Any]


def difference(values: dict[int, float], baseline: dict[int, float]) -> str:
    """100 · (value / baseline − 1), paired by seed."""
    seeds = sorted(set(values) & set(baseline))
    percents = [100 * (values[seed] / baseline[seed] - 1) for seed in seeds]
    if not percents:
        return ""
    mean = statistics.mean(percents)
    quantile = T_QUANTILE.get(len(percents) - 1)
    if quantile is None:
        return f"{mean:+.2f}"
    half = quantile * statistics.stdev(percents) / math.sqrt(len(percents))
    verdict = "" if mean - half < 0 < mean + half else " *"
    return f"{mean:+.2f} ± {half:.2f}{verdict}"


def by_seed(results: list[Result], split: str, length: str = "") -> dict[int, float]:
    return {result["seed"]: result[split][length] if length else result[split]
            for result in results}


def print_table(results: list[Result]) -> None:
    first = results[0]
    lengths = list(first["test"])
    masks: dict[str, list[Result]] = {}
    for result in results:
        masks.setdefault(result["mask"], []).append(result)
    print(f"**{first['preset']}, {first['position']}**, trained on {first['context']} tokens, "
          f"{first['steps']} steps of {first['batch']} sequences (epochs: {first['epochs']}), "
          f"peak learning rate {first['lr']}; "
          f"{', '.join(sorted({result['card'] for result in results}))}\n")
    beyond = " | ".join(f"test, {length}" for length in lengths)
    print(f"| mask | seeds | valid | {beyond} | to causal: valid, % | test, % |")
    print("| --- " * (5 + len(lengths)) + "|")
    for mask, runs in masks.items():
        cells = [mask, str(len(runs)), f"{statistics.mean(by_seed(runs, 'valid').values()):.2f}"]
        cells += [f"{statistics.mean(by_seed(runs, 'test', length).values()):.2f}"
                  for length in lengths]
        if mask == "causal" or "causal" not in masks:
            cells += ["", ""]
        else:
            causal = masks["causal"]
            cells.append(difference(by_seed(runs, "valid"), by_seed(causal, "valid")))
            cells.append(difference(by_seed(runs, "test", lengths[0]),
                                    by_seed(causal, "test", lengths[0])))
        print(f"| {' | '.join(cells)} |")
    print()


def main() -> None:
    results = [json.loads(line) for name in sys.argv[1:]
               for line in Path(name).read_text().splitlines()]
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        key = tuple(result[name] for name in ("preset", "context", "epochs", "position"))
        groups.setdefault(key, []).append(result)
    if not groups:
        sys.exit("perplexity.py: no results; name files of scripts/study/perplexity.sh")
    for key in sorted(groups, reverse=True):
        print_table(sorted(groups[key], key=lambda r: (r["mask"] != "causal", r["mask"], r["seed"])))
    print("* the interval excludes zero")


main()
