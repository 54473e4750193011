#!/usr/bin/env python3
"""Tables of scaling.sh's results in Markdown, and the efficiency computed for more GPUs.

  scaling.py FOLDER               FOLDER holds results.jsonl and traces/
  scaling.py FOLDER --validate    only compare the losses of one process and of several
"""
import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import prediction
import timeline

TOLERANCE = 1e-3  # nats
MODELS = ("71m", "160m", "400m", "1.4b")
GIB = 2**30


class Results:
    """The figures of results.jsonl by the name of the measurement."""

    def __init__(self, folder):
        self.runs = {}
        with open(folder / "results.jsonl", encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                self.runs[entry["run"]] = entry["figures"]

    def get(self, name):
        return self.runs.get(name)

    def by_number(self, prefix):
        """{number: figures} of the measurements called prefix-NUMBER."""
        found = {}
        for name, figures in self.runs.items():
            match = re.fullmatch(re.escape(prefix) + r"-(\d+)", name)
            if match:
                found[int(match[1])] = figures
        return dict(sorted(found.items()))

    def singles(self, prefix):
        """Figures of the processes that ran alone on a card each, in the order of the cards."""
        return list(self.by_number(f"{prefix}-1").values())


def table(header, rows, left=2):
    """A Markdown table; the first `left` columns are text."""
    if not rows:
        return []
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return ["| " + " | ".join(map(str, row)) + " |" for row in [header, rule, *rows]] + [""]


def ratio(x, y):
    return f"{x / y:.3f}" if y else "–"


def speed_rows(name, multiple, singles, title):
    """A row for each number of GPUs; `singles` are the runs of one process a card."""
    rows = []
    if singles:
        mean = statistics.mean(run["tokens_per_second"] for run in singles)
        slowest = min(run["tokens_per_second"] for run in singles)
        rows.append(row_of(title, 1, singles[0], mean, "1.000", f"slowest card {slowest:,.0f}"))
    for processes, run in multiple.items():
        cards = [single["tokens_per_second"] for single in singles[:processes]]
        speed = run["tokens_per_second"]
        efficiency = ratio(speed, sum(cards)) if len(cards) == processes else "–"
        against = ratio(speed, processes * min(cards)) if cards else "–"
        rows.append(row_of(title, processes, run, speed, efficiency, against))
    return rows


def row_of(title, processes, run, speed, efficiency, slowest):
    mfu = f"{100 * run['mfu']:.1f} %" if run["mfu"] else "–"
    milliseconds = run["batch"] * run["context"] / speed * 1e3
    return [title, processes, f"{speed:,.0f}", efficiency, slowest, f"{milliseconds:.2f}", mfu,
            f"{run['peak_memory_bytes'] / GIB:.2f}"]


SPEED_HEADER = ["model", "GPUs", "tokens/s", "efficiency", "of the slowest card", "step ms", "MFU",
                "peak GiB a GPU"]


def head(results):
    figures = [run for name, run in results.runs.items() if name.startswith(("weak-", "strong-"))]
    if not figures:
        return []
    run = max(figures, key=lambda figures: figures["processes"])
    return [f"{run['processes']} x {run['device']}; StableMask, RoPE, V = {run['vocabulary']:,}; "
            f"optimizer state: shard {run['shard']}; gradients reduced in {run['reduce_dtype']}; "
            f"medians of {run['timed_steps']} steps", ""]


def weak(results):
    rows = []
    for model in MODELS:
        multiple = results.by_number(f"weak-{model}")
        rows += speed_rows(model, multiple, results.singles(f"weak-{model}"), model)
    return section("Weak scaling: the same batch on each GPU", table(SPEED_HEADER, rows, left=1))


def strong(results):
    prefix = "strong-160m"
    rows = speed_rows(prefix, results.by_number(prefix), results.singles(prefix), "160m")
    return section("Strong scaling: 128 x 1024 tokens a step", table(SPEED_HEADER, rows, left=1))


def memory(results):
    singles = results.singles("weak-1.4b")
    rows = []
    for processes, run in results.by_number("weak-1.4b").items():
        if singles:
            one, many = singles[0]["peak_memory_bytes"], run["peak_memory_bytes"]
            rows.append(["1.4b", processes, f"{one / GIB:.2f}", f"{many / GIB:.2f}",
                         ratio(many, one)])
    header = ["model", "GPUs", "GiB with 1", "GiB a GPU", "ratio"]
    return section("Peak memory of a GPU", table(header, rows, left=1))


def peer(results):
    rows = []
    for model in MODELS:
        found = [(name, run) for name, run in results.runs.items()
                 if name.startswith(f"peer-{model}-")]
        for name, run in sorted(found, key=lambda item: -item[1]["tokens_per_second"]):
            ours = results.get(f"weak-{model}-{run['processes']}")
            rows.append([model, run["program"], run["processes"],
                         f"{run['tokens_per_second']:,.0f}", f"{run['step_ms']:.2f}",
                         f"{run['peak_memory_bytes'] / GIB:.2f}",
                         ratio(ours["tokens_per_second"], run["tokens_per_second"])
                         if ours else "–"])
    header = ["model", "program", "GPUs", "tokens/s", "step ms", "peak GiB a GPU",
              "this program / it"]
    return section("Python PyTorch, DistributedDataParallel", table(header, rows))


def collectives(results):
    speeds, sizes = defaultdict(dict), set()
    for name, run in results.runs.items():
        if name.startswith("collectives-"):
            for entry in run["collectives"]:
                key = (run["processes"], entry["collective"])
                speeds[key][entry["bytes"]] = entry
                sizes.add(entry["bytes"])
    rows = []
    for (processes, collective), entries in sorted(speeds.items()):
        cells = []
        for size in sorted(sizes):
            entry = entries.get(size)
            cells.append(f"{entry['bus_bytes_per_second'] / 1e9:.1f} "
                         f"({entry['microseconds']:.0f})" if entry else "–")
        rows.append([processes, collective, *cells])
    header = ["GPUs", "collective", *(f"{size / 2**20:g} MiB" for size in sorted(sizes))]
    return section("Bus bandwidth, GB/s (microseconds a call)", table(header, rows))


def killed(results):
    rows = []
    for name in ("kill-last", "kill-first", "kill-resume"):
        run = results.get(name)
        if run:
            seconds = ["> limit" if s is None else f"{s:.1f}" for s in run["seconds"]]
            victim = "–" if run["victim"] is None else run["victim"]
            rows.append([name, run["message"].replace("|", "/"), run["processes"], victim,
                         f"{run['first_step']} → {run['last_step']}", ", ".join(seconds),
                         ", ".join(map(str, run["exit_codes"]))])
    header = ["part", "last line of a survivor", "processes", "killed", "steps",
              "seconds until the others ended", "exit codes"]
    return section("A killed process", table(header, rows))


def section(title, lines):
    return [f"**{title}**", "", *lines] if lines else []


def validate(results):
    """Prints how far losses of several processes are from those of one; returns whether all are
    within the tolerance."""
    reference, right = results.get("valid-1"), True
    for name, run in results.runs.items():
        if not name.startswith("valid-") or name == "valid-1" or reference is None:
            continue
        apart = max(abs(a - b) for a, b in zip(run["losses"], reference["losses"]))
        enough = len(run["losses"]) == len(reference["losses"]) > 5 and apart <= TOLERANCE
        right = right and enough
        print(f"valid: {run['processes']} processes, shard {run['shard']}: losses at most "
              f"{apart:.6f} nats from those of one in {len(run['losses'])} steps"
              f"{'' if enough else '  WRONG'}")
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--validate", action="store_true")
    arguments = parser.parse_args()
    results = Results(arguments.folder)
    if arguments.validate:
        sys.exit(not validate(results))
    lines = head(results)
    for part in (weak, strong, memory, peer):
        lines += part(results)
    lines += section("Where a step's time goes", timeline.report(arguments.folder / "traces"))
    for part in (collectives, killed):
        lines += part(results)
    lines += section("Computed for more GPUs", prediction.report(results))
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    main()
