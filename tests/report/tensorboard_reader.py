#!/usr/bin/env python3
"""Compares a run's event files, as TensorBoard's own reader sees them, with its other files.

    tensorboard_reader.py RUN

Every number of metrics.jsonl must be a scalar of the same step and, as float32, of the same value;
the texts must be config.json and those of samples.jsonl. Exit code 0: all agree; 1: a difference.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import struct
import sys
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

TAGS = {
    "tokens": "progress/tokens",
    "loss": "loss/train",
    "loss_mean": "loss/train_mean",
    "grad_norm": "optimizer/grad_norm",
    "lr": "optimizer/lr",
    "skipped": "optimizer/skipped_steps",
    "fp8_clipped": "optimizer/fp8_clipped",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "peak_memory_bytes": "memory/peak_bytes",
    "seconds": "progress/seconds",
    "valid_loss": "loss/valid",
    "valid_word_ppl": "perplexity/valid_word",
    "valid_tokens": "progress/valid_tokens",
}


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def check(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"tensorboard_reader.py: {message}")


def texts_of(reader: event_accumulator.EventAccumulator, tag: str) -> list[tuple[int, str]]:
    """Step and text of every event of a tag."""
    return [
        (event.step, tensor_util.make_ndarray(event.tensor_proto).item().decode("utf-8"))
        for event in reader.Tensors(tag)
    ]


def code_in(markdown: str) -> str:
    """The content of a text that is one Markdown code block."""
    match = re.fullmatch(r"(`{3,})[a-z]*\n(.*)\n\1", markdown, re.DOTALL)
    check(match is not None, f"not a code block: {markdown!r}")
    assert match is not None
    return match[2]


def compare_scalars(reader: event_accumulator.EventAccumulator, run: pathlib.Path) -> int:
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(run / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step":
                number = math.nan if value is None else as_float32(value)
                expected.setdefault(TAGS[name], []).append((line["step"], number))
    tags = reader.Tags()["scalars"]
    check(sorted(tags) == sorted(expected), f"tags {tags}, expected {list(expected)}")
    for tag, points in expected.items():
        found = [(event.step, event.value) for event in reader.Scalars(tag)]
        check(found == points, f"{tag}: {found}, expected {points}")
    return sum(len(points) for points in expected.values())


def compare_texts(reader: event_accumulator.EventAccumulator, run: pathlib.Path) -> int:
    configs = texts_of(reader, "config")
    check(
        json.loads(code_in(configs[-1][1])) == json.loads((run / "config.json").read_text()),
        "the config's text is not config.json",
    )
    check(len({text for _, text in configs}) == len(configs), "a config is recorded twice")
    samples: dict[str, list[tuple[int, str]]] = {}
    for line in read_lines(run / "samples.jsonl"):
        tag = f"samples/prompt {line['number']}"
        samples.setdefault(tag, []).append((line["step"], line["prompt"] + line["continuation"]))
    check(len(samples) == 2, "the run has samples of two prompts")
    for tag, expected in samples.items():
        found = texts_of(reader, tag)
        check([step for step, _ in found] == [step for step, _ in expected], f"{tag}: steps")
        for (_, markdown), (_, text) in zip(found, expected):
            # Line ends stand where a long line was broken at a space; control characters are gone.
            text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\ufffd", text.replace("\t", " "))
            check(code_in(markdown).split() == text.split(), f"{tag}: {markdown!r}, not {text!r}")
            html = plugin_util.markdown_to_safe_html(markdown)
            check("<pre><code>" in html, f"{tag}: rendered without a code block: {html}")
    check(set(reader.Tags()["tensors"]) == {"config", *samples}, "other texts")
    return len(configs) + sum(len(found) for found in samples.values())


def main() -> None:
    run = pathlib.Path(sys.argv[1])
    reader = event_accumulator.EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
    )
    reader.Reload()
    for tag in reader.Tags()["tensors"]:
        plugin = reader.SummaryMetadata(tag).plugin_data.plugin_name
        check(plugin == "text", f"{tag} is for the plugin {plugin}")
    check(reader.file_version == 2.0, f"file version {reader.file_version}")
    print(f"{compare_scalars(reader, run)} scalars, {compare_texts(reader, run)} texts agree")


if __name__ == "__main__":
    main()
