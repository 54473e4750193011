"""Prints the Markdown table of scripts/bench/optimizers.sh.

    python3 scripts/bench/optimizers.py RESULTS.jsonl…
"""

import json
import sys
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def print_table(results: list[Result]) -> None:
    first = results[0]
    print(f"**{first['preset']}**, {first['batch']} sequences of {first['context']} tokens a step, "
          f"seed {first['seed']}; {', '.join(sorted({one['card'] for one in results}))}\n")
    adamw = [one for one in results if one["optimizer"] == "adamw"]
    goal = min(adamw, key=lambda one: one["valid_loss"])
    print("| optimizer | steps | share | validation loss by learning rate | best − AdamW's |")
    print("| --- " * 5 + "|")
    for optimizer in ("adamw", "muon"):
        mine = [one for one in results if one["optimizer"] == optimizer]
        for steps in sorted({one["steps"] for one in mine}, reverse=True):
            runs = sorted((one for one in mine if one["steps"] == steps), key=lambda one: one["lr"])
            losses = ", ".join(f"{one['lr']:g}: {one['valid_loss']:.4f}" for one in runs)
            best = min(one["valid_loss"] for one in runs)
            print(f"| {optimizer} | {steps} | {steps / goal['steps']:.3f} | {losses} | "
                  f"{best - goal['valid_loss']:+.4f} |")
    print()


def main() -> None:
    results = [json.loads(line) for name in sys.argv[1:]
               for line in Path(name).read_text().splitlines()]
    if not results:
        sys.exit("optimizers.py: no results; name files of scripts/bench/optimizers.sh")
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for one in results:
        groups.setdefault(tuple(one[key] for key in ("preset", "context", "batch", "seed")),
                          []).append(one)
    for group in groups.values():
        print_table(group)


main()
