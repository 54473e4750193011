"""One finished run as one line of JSON, and what the tables of such lines share.

    python3 scripts/study/result.py --result RUN KEY=VALUE…

Prints the keys and values, then the figures of RUN/metrics.jsonl, which the training wrote, and, where
they are there, of RUN/valid.json and RUN/test.json, reports of `stablemask eval`.
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

# 97.5 % quantiles of Student's t distribution by degrees of freedom.
T_QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
# Keys whose values are names, even where they look like numbers.
NAMES = ("mask", "way")

# Names of model.position in tables and pictures.
POSITIONS = {"rope": "RoPE", "alibi": "ALiBi"}

Result = dict[str, Any]


def plain(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def steps_of(run: Path) -> list[Result]:
    """The lines of RUN/metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_results(program: str) -> list[Result]:
    """The lines of the files that the command line names; the mask `auto` by what it stands for."""
    results = [json.loads(line) for name in sys.argv[1:]
               for line in Path(name).read_text().splitlines()]
    if not results:
        sys.exit(f"{Path(sys.argv[0]).name}: no results; name files of {program}")
    for result in results:
        if result.get("mask") == "auto":
            result["mask"] = "1" if result["position"] == "rope" else "slopes"
    return results


def grouped(results: list[Result], *keys: str) -> dict[tuple[Any, ...], list[Result]]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in keys), []).append(result)
    return groups


def header(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cards(results: list[Result]) -> str:
    return ", ".join(sorted({result["card"] for result in results}))


def interval(values: list[float], digits: int = 2) -> str:
    """The mean of differences with its 95 % confidence interval; a star: it excludes zero."""
    if not values:
        return ""
    mean = statistics.mean(values)
    quantile = T_QUANTILE.get(len(values) - 1)
    if quantile is None:
        return f"{mean:+.{digits}f}"
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.{digits}f} ± {half:.{digits}f}{' *' if abs(mean) > half else ''}"


def shared(values: dict[int, float], baseline: dict[int, float]) -> list[int]:
    """The seeds that have both."""
    return sorted(set(values) & set(baseline))


def less(values: dict[int, float], baseline: dict[int, float], digits: int = 2) -> str:
    """The mean of value − baseline with its interval."""
    return interval([values[seed] - baseline[seed] for seed in shared(values, baseline)], digits)


def percents(values: dict[int, float], baseline: dict[int, float]) -> dict[int, float]:
    """By seed: 100 · (value / baseline − 1)."""
    return {seed: 100 * (values[seed] / baseline[seed] - 1) for seed in shared(values, baseline)}


def difference(values: dict[int, float], baseline: dict[int, float]) -> str:
    """The percents' mean with its interval."""
    return interval(list(percents(values, baseline).values()))


def stated(pairs: list[str]) -> Result:
    """KEY=VALUE…"""
    return {key: value if key in NAMES else plain(value)
            for key, value in (pair.split("=", 1) for pair in pairs)}


def origin(run: Path, pairs: list[str]) -> Result:
    """What a measurement of a finished run begins with: which run it is, and the keys and values."""
    result = json.loads((run / "result.json").read_text())
    keys = ("preset", "context", "epochs", "batch", "steps", "position", "mask", "seed")
    return {key: result[key] for key in keys} | stated(pairs)


def run_line(run: Path, pairs: list[str]) -> Result:
    result = stated(pairs)
    steps = steps_of(run)
    speeds = sorted(step["tokens_per_second"] for step in steps)
    result |= {
        "tokens": steps[-1]["tokens"],
        "tokens_per_second": speeds[len(speeds) // 2],
        "largest_grad_norm": max(step["grad_norm"] for step in steps if step["grad_norm"] is not None),
        "train_loss": steps[-1]["loss"],
    }
    if "valid_loss" in steps[-1]:
        result["valid_loss"] = steps[-1]["valid_loss"]
    if (run / "valid.json").exists():
        result["valid"] = json.loads((run / "valid.json").read_text())["word_perplexity"]
    if (run / "test.json").exists():
        lengths = json.loads((run / "test.json").read_text())["lengths"]
        result["test"] = {str(one["window"]): one["word_perplexity"] for one in lengths}
    return result


def command(line_of: Any, print_tables: Any) -> None:
    """`--result RUN KEY=VALUE…` prints a line, names of files print tables."""
    if len(sys.argv) > 2 and sys.argv[1] == "--result":
        print(json.dumps(line_of(Path(sys.argv[2]), sys.argv[3:])))
    else:
        print_tables()


def measurements(program: str, line_of: Any, print_tables: Any, chart: Any) -> None:
    """`--result RUN KEY=VALUE…` prints a line, `--chart FILE RESULTS…` writes a picture of the lines,
    names of files alone print tables."""
    if sys.argv[1:2] == ["--chart"]:
        picture = Path(sys.argv[2])
        del sys.argv[1:3]
        picture.write_text(chart(read_results(program)))
    else:
        command(line_of, lambda: print_tables(read_results(program)))


def no_table() -> None:
    sys.exit(__doc__)


if __name__ == "__main__":
    command(run_line, no_table)
