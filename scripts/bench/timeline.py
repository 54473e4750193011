"""What communication and computation do at the same time, from the traces of `bench step --trace`.

A trace is a JSON object in Chrome's trace format. The program marks each step on the host with
"optimizer step"; the GPU's work of a step lies inside that mark, since the host waits for the
result.
"""
import json
import re
from collections import defaultdict
from pathlib import Path

STEP = "optimizer step"
GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
COLLECTIVES = ("ReduceScatter", "AllGather", "AllReduce", "Broadcast")
WIDTH = 92  # columns of the chart


def collective_of(name):
    """The name of the collective that a kernel belongs to, or "" for computation."""
    if "nccl" not in name.lower():
        return ""
    return next((kind for kind in COLLECTIVES if kind in name), "other NCCL")


def merged(intervals):
    """Sorted intervals without overlap."""
    result = []
    for begin, end in sorted(intervals):
        if result and begin <= result[-1][1]:
            result[-1][1] = max(result[-1][1], end)
        else:
            result.append([begin, end])
    return result


def length(intervals):
    return sum(end - begin for begin, end in merged(intervals))


class Step:
    """The GPU's work of one step: intervals in microseconds."""

    def __init__(self, events):
        self.computation, self.communication = [], defaultdict(list)
        self.marks = []  # (begin, end, letter) of computation that the chart shows by a letter
        for event in events:
            interval = (event["ts"], event["ts"] + event["dur"])
            kind = collective_of(event["name"])
            if kind:
                self.communication[kind].append(interval)
            else:
                self.computation.append(interval)
                letter = letter_of(event["name"])
                if letter:
                    self.marks.append((*interval, letter))
        everything = self.computation + self.collectives()
        self.begin = min(begin for begin, _ in everything)
        self.end = max(end for _, end in everything)

    def collectives(self):
        return [interval for kind in self.communication.values() for interval in kind]

    def exposed(self, intervals):
        """Time of `intervals` without any computation."""
        return length(self.computation + intervals) - length(self.computation)

    def figures(self):
        """Milliseconds by name."""
        everything = self.computation + self.collectives()
        values = {"span": self.end - self.begin, "computation": length(self.computation),
                  "communication": length(self.collectives()),
                  "exposed": self.exposed(self.collectives()),
                  "idle": self.end - self.begin - length(everything)}
        for kind, intervals in self.communication.items():
            values[kind] = length(intervals)
            values[kind + " exposed"] = self.exposed(intervals)
        return {name: value / 1e3 for name, value in values.items()}


def letter_of(name):
    if "adamw" in name:
        return "A"
    return "X" if "cross_entropy" in name else ""


def load_steps(path):
    """The steps of a trace but the first, which begins with the profiler's start."""
    with open(path, encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    work = [event for event in events if event.get("cat") in GPU_WORK]
    marks = sorted((event["ts"], event["ts"] + event["dur"]) for event in events
                   if event["name"] == STEP and event.get("cat") == "user_annotation")
    steps = []
    for begin, end in marks[1:]:
        inside = [event for event in work if begin <= event["ts"] < end]
        if inside:
            steps.append(Step(inside))
    return steps


def chart(step):
    """Two lines of text: computation above, communication below."""
    columns = [(step.begin + i * (step.end - step.begin) / WIDTH,
                step.begin + (i + 1) * (step.end - step.begin) / WIDTH) for i in range(WIDTH)]

    def covered(intervals, column):
        return length([(max(begin, column[0]), min(end, column[1])) for begin, end in intervals
                       if begin < column[1] and end > column[0]])

    upper, lower = "", ""
    computation = merged(step.computation)
    for column in columns:
        half = (column[1] - column[0]) / 2
        letters = {letter: covered([mark[:2] for mark in step.marks if mark[2] == letter], column)
                   for letter in "AX"}
        letter = max(letters, key=letters.get)
        busy = covered(computation, column) > half
        upper += (letter if letters[letter] > half else "#") if busy else "."
        kinds = {kind: covered(intervals, column) for kind, intervals in step.communication.items()}
        kind = max(kinds, key=kinds.get, default="")
        lower += "." if not kind or kinds[kind] <= half else {
            "ReduceScatter": "R", "AllGather": "G", "AllReduce": "S"}.get(kind, "?")
    return ["    computation   " + upper, "    communication " + lower]


def mean(figures):
    names = {name for values in figures for name in values}
    return {name: sum(values.get(name, 0.0) for values in figures) / len(figures) for name in names}


def report(folder):
    """Markdown of all traces MODEL-PROCESSES.RANK.json in `folder`."""
    runs = defaultdict(list)
    for path in sorted(Path(folder).glob("*.json")):
        match = re.fullmatch(r"(.+)-(\d+)\.(\d+)\.json", path.name)
        if match:
            runs[match[1], int(match[2])].append(path)
    rows, charts = [], []
    for (model, processes), paths in sorted(runs.items()):
        steps = [step for path in paths for step in load_steps(path)]
        if not steps:
            rows.append(f"| {model} | {processes} | the trace has no kernels: CUPTI is not "
                        "available to this program | | | | | | | |")
            continue
        values = mean([step.figures() for step in steps])
        hidden = values["communication"] - values["exposed"]
        cells = [values["span"], values["computation"], values["communication"], hidden,
                 values["exposed"], values.get("ReduceScatter exposed", 0.0),
                 values.get("AllGather exposed", 0.0), values["idle"]]
        rows.append(f"| {model} | {processes} | " +
                    " | ".join(f"{value:.2f}" for value in cells) + " |")
        if processes > 1:
            charts += [f"    {model}, {processes} GPUs, process 0, {values['span']:.1f} ms:",
                       *chart(load_steps(paths[0])[-1]), ""]
    if not rows:
        return []
    return ["| model | GPUs | step ms | computation | communication | hidden | not hidden | "
            "of these reduce-scatter | all-gather | idle |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", *rows, "",
            *charts,
            "`#` computation, `X` cross-entropy, `A` AdamW, `R` reduce-scatter, `G` all-gather, "
            "`S` all-reduce, `.` less than half of the column", ""]
