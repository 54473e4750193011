"""One finished run of the study as one line of JSON.

    python3 scripts/study/result.py RUN KEY=VALUE…

RUN/valid.json and RUN/test.json are reports of `stablemask eval`, RUN/metrics.jsonl is the training's.
Prints the keys and values, then loss and speed of training and the word perplexities.
"""

import json
import sys
from pathlib import Path


def plain(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def main() -> None:
    run = Path(sys.argv[1])
    valid = json.loads((run / "valid.json").read_text())
    test = json.loads((run / "test.json").read_text())
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = dict(pair.split("=", 1) for pair in sys.argv[2:])
    result = {key: value if key == "mask" else plain(value) for key, value in result.items()}
    print(json.dumps(result | {
        "tokens": steps[-1]["tokens"],
        "largest_grad_norm": max(step["grad_norm"] for step in steps),
        "train_loss": steps[-1]["loss"],
        "valid": valid["word_perplexity"],
        "test": {str(row["window"]): row["word_perplexity"] for row in test["lengths"]},
    }))


main()
