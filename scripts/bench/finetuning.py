"""Prints the Markdown table of scripts/bench/finetuning.sh.

    python3 scripts/bench/finetuning.py FOLDER

FOLDER/WAY-RATE-SEED/{valid,test}.json are reports of `stablemask eval`; metrics.jsonl is the training's.
"""

import json
import statistics
import sys
from pathlib import Path

ORDER = ["none", "full", "frozen", "lora", "mask", "warm", "mask-lora"]


def perplexity(path: Path) -> float:
    return json.loads(path.read_text())["word_perplexity"]


def first_validation(run: Path) -> str:
    """Word perplexity of the first validation during the run."""
    metrics = run / "metrics.jsonl"
    if not metrics.exists():
        return ""
    for line in metrics.read_text().splitlines():
        step = json.loads(line)
        if step.get("valid_word_ppl") is not None:
            return f"{step['valid_word_ppl']:.2f} (step {step['step']})"
    return ""


def main() -> None:
    folder = Path(sys.argv[1])
    table: dict[str, dict[str, list[Path]]] = {}
    for report in sorted(folder.glob("*-*-*/test.json")):
        way, rate, _ = report.parent.name.rsplit("-", 2)
        table.setdefault(way, {}).setdefault(rate, []).append(report.parent)
    if not table:
        sys.exit(f"finetuning.py: no WAY-RATE-SEED/test.json in {folder}")
    print("| way | learning rate | valid | test, each seed | mean | first validation, first seed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way in sorted(table, key=ORDER.index):
        valid = {rate: statistics.mean(perplexity(run / "valid.json") for run in runs)
                 for rate, runs in table[way].items()}
        best = min(valid, key=valid.__getitem__)
        tests = [perplexity(run / "test.json") for run in table[way][best]]
        cells = [way, "" if way == "none" else best, f"{valid[best]:.2f}",
                 " ".join(f"{test:.2f}" for test in tests), f"{statistics.mean(tests):.2f}",
                 first_validation(table[way][best][0])]
        print(f"| {' | '.join(cells)} |")


main()
