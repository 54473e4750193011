"""Prints the Markdown tables of scripts/study/perplexity.sh.

    python3 scripts/study/perplexity.py RESULTS.jsonl…

For each setting (model size, training length, epochs) and position encoding: word perplexity of every
mask, mean over the seeds, and the difference to the causal model of the same seed in percent with the
95 % confidence interval of its mean (Student's t over the seeds).
"""

import statistics

from result import Result, cards, difference, grouped, header, read_results, row


def by_seed(results: list[Result], split: str, length: str = "") -> dict[int, float]:
    return {result["seed"]: result[split][length] if length else result[split]
            for result in results}


def print_table(results: list[Result]) -> None:
    first = results[0]
    lengths = list(first["test"])
    masks = {mask: runs for (mask,), runs in grouped(results, "mask").items()}
    print(f"**{first['preset']}, {first['position']}**, trained on {first['context']} tokens, "
          f"{first['steps']} steps of {first['batch']} sequences (epochs: {first['epochs']}), "
          f"peak learning rate {first['lr']}; {cards(results)}\n")
    print(header(["mask", "seeds", "valid"] + [f"test, {length}" for length in lengths] +
                 ["to causal: valid, %", "test, %"]))
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
        print(row(cells))
    print()


def main() -> None:
    results = read_results("scripts/study/perplexity.sh")
    groups = grouped(results, "preset", "context", "epochs", "position")
    for key in sorted(groups, reverse=True):
        print_table(sorted(groups[key], key=lambda r: (r["mask"] != "causal", r["mask"], r["seed"])))
    print("* the interval excludes zero")


main()
