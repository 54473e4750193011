#!/usr/bin/env python3
"""Compares what the program computes on a CPU with recorded numbers.

    golden.py PROGRAM losses [--exact] [--only PATTERN] [--record]
    golden.py PROGRAM checkpoint [--exact] [--record]

losses      trains the small models of losses.json, a few steps each, and compares the loss and the
            gradient norm of every step and the final validation loss.
checkpoint  reads the checkpoint in tests/fixtures/checkpoint-v0: verify, eval, generate, resume,
            finetune; a damaged copy must be refused.

By default numbers agree within the tolerances in the JSON files, because other kinds of CPU and
other versions of LibTorch round differently. --exact, or STABLEMASK_GOLDEN_EXACT=1, requires equal
bits, and for losses equal bytes of the trained weights; it holds on the kind of CPU that the file
names. Both print the largest relative difference. --record runs everything twice and, when the two
runs are equal, writes the numbers to the JSON file; do this only when a change is meant to alter
them. Exit code 0: all agree; 1: a difference or a failed command.

Python's standard library is enough.
"""

import argparse
import copy
import fnmatch
import hashlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
LOSSES = HERE / "losses.json"
FIXTURES = HERE.parent / "fixtures"
CHECKPOINT = FIXTURES / "checkpoint-v0"
CHECKPOINT_DATA = FIXTURES / "checkpoint-v0-data"
EXPECTED = CHECKPOINT_DATA / "expected.json"
CURVES = ("loss", "grad_norm")  # of every step
FIGURES = ("valid_loss", "valid_word_ppl")  # of the steps with a validation
CHECKPOINT_ERROR = 4  # exit code, include/stablemask/base/error.h


class Failure(Exception):
    """A command that failed or recorded input that cannot be reproduced."""


class Program:
    """Runs the binary in `folder` with one thread."""

    def __init__(self, path, folder):
        self.path = str(pathlib.Path(path).resolve())
        self.folder = pathlib.Path(folder)
        self.environment = dict(os.environ, OMP_NUM_THREADS="1")

    def run(self, *arguments, code=0):
        """Standard output; Failure unless the command ends with `code`."""
        command = [self.path, *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, timeout=300,
                              stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != code:
            errors = done.stderr.decode(errors="replace").strip()
            raise Failure(f"{' '.join(command)}: exit code {done.returncode}, expected {code}\n"
                          f"{errors}")
        return done.stdout.decode()


class Comparison:
    """Collects differences between recorded and computed values."""

    def __init__(self, exact):
        self.exact = exact
        self.failures = []
        self.largest = (0.0, "every number is equal")

    def number(self, name, expected, actual, tolerance):
        if expected == actual:
            return
        if not all(isinstance(value, (int, float)) for value in (expected, actual)):
            self.failures.append(f"{name}: recorded {expected!r}, now {actual!r}")
            return
        difference = abs(actual - expected) / max(abs(expected), 1e-300)
        self.largest = max(self.largest, (difference, name))
        if self.exact or not difference <= tolerance:
            self.failures.append(f"{name}: recorded {expected!r}, now {actual!r}, relative "
                                 f"difference {difference:.2e}")

    def curves(self, run, expected, actual, tolerance, first_step=1):
        """The numbers that curves() returns, each with the tolerance of its name."""
        for name in (*CURVES, *FIGURES):
            if len(expected[name]) != len(actual[name]):
                self.failures.append(f"{run}: {name}: recorded {len(expected[name])} values, now "
                                     f"{len(actual[name])}")
            where = "step" if name in CURVES else "validation"
            first = first_step if name in CURVES else 1
            for i, pair in enumerate(zip(expected[name], actual[name]), start=first):
                self.number(f"{run}: {name}, {where} {i}", *pair, tolerance[name])

    def equal(self, name, expected, actual):
        if expected != actual:
            self.failures.append(f"{name}: recorded {expected!r}, now {actual!r}")

    def report(self, what, recorded_on):
        if self.exact and self.failures and recorded_on != cpu_name():
            print(f"recorded on another kind of CPU ({recorded_on}) than this one ({cpu_name()}), "
                  f"which may round differently: compare without --exact")
        for failure in self.failures:
            print(failure)
        difference, where = self.largest
        print(f"{what}: {len(self.failures)} differences; largest relative difference "
              f"{difference:.2e} ({where})")
        return not self.failures


def merged(config, fields):
    """A copy of the config with `{"section.field": value}` applied."""
    result = copy.deepcopy(config)
    for path, value in fields.items():
        *sections, field = path.split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
        target[field] = value
    return result


def metrics(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def curves(lines):
    result = {name: [line.get(name) for line in lines] for name in CURVES}
    for name in FIGURES:
        result[name] = [line[name] for line in lines if name in line]
    return result


def newest_checkpoint(run):
    return max((run / "checkpoints").glob("step-????????"))


def weights_sha256(checkpoint):
    """Of names, shapes and bytes of all weights, in the order of their names."""
    data = (checkpoint / "model.safetensors").read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + header_bytes])
    digest = hashlib.sha256()
    for name in sorted(header.keys() - {"__metadata__"}):
        tensor = header[name]
        begin, end = (8 + header_bytes + offset for offset in tensor["data_offsets"])
        digest.update(f"{name} {tensor['dtype']} {tensor['shape']}\n".encode())
        digest.update(data[begin:end])
    return digest.hexdigest()


def cpu_name():
    """Vendor, family and model of this CPU, which decide how LibTorch rounds."""
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    widest = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
              if flag in fields.get("flags", "").split()]
    return (f"{fields.get('vendor_id')} family {fields.get('cpu family')} model "
            f"{fields.get('model')}, {' '.join(widest)}")


# Losses


def make_corpus(program, recipe):
    """Text, tokenizer and shards of losses.json; returns the SHA-256 of each shard's tokens."""
    program.run("data", "synth", "--output", ".", "--megabytes", recipe["megabytes"], "--seed",
                recipe["seed"])
    program.run("tokenizer", "train", "--input", "wiki.train.tokens", "--output",
                "tokenizer.model", "--vocab-size", recipe["vocab_size"])
    hashes = {}
    for split in ("train", "valid", "test"):
        program.run("data", "prepare", "--input", f"wiki.{split}.tokens", "--tokenizer",
                    "tokenizer.model", "--output", f"{split}.shard")
        description = json.loads(program.run("data", "inspect", f"{split}.shard", "--json"))
        hashes[split] = description["payload_sha256"]
    return hashes


def train(program, base, name, run):
    """Trains one entry of losses.json in a folder of its name and returns its numbers."""
    config = merged(base, run["set"])
    config["train"]["out"] = name
    if "init_from" in run:
        del config["model"]  # a finetuned model is the checkpoint's
        config["train"]["init_from"] = run["init_from"]
    file = program.folder / f"{name}.json"
    file.write_text(json.dumps(config))
    program.run("finetune" if "init_from" in run else "pretrain", file.name, "--quiet")
    folder = program.folder / name
    return {**curves(metrics(folder)), "weights_sha256": weights_sha256(newest_checkpoint(folder))}


def selected_runs(runs, pattern):
    """Names that match, with the runs that they start from."""
    names = [name for name in runs if fnmatch.fnmatch(name, pattern)]
    if not names:
        raise Failure(f"--only {pattern}: no such run; there are {', '.join(runs)}")
    needed = {runs[name]["init_from"] for name in names if "init_from" in runs[name]}
    return [name for name in runs if name in needed or name in names]


def compute_losses(program_path, golden, names):
    with tempfile.TemporaryDirectory() as folder:
        program = Program(program_path, folder)
        results = {"corpus": make_corpus(program, golden["corpus"])}
        for name in names:
            results[name] = train(program, golden["base"], name, golden["runs"][name])
        return results


def check_losses(program_path, exact, pattern):
    golden = json.loads(LOSSES.read_text())
    names = selected_runs(golden["runs"], pattern)
    with tempfile.TemporaryDirectory() as folder:
        program = Program(program_path, folder)
        if make_corpus(program, golden["corpus"]) != golden["corpus"]["payload_sha256"]:
            raise Failure("the tokens of the corpus differ from the recorded ones: `data synth`, "
                          "`tokenizer train`, `data prepare` or the version of SentencePiece "
                          "changed, so that the losses cannot be compared")
        comparison = Comparison(exact)
        for name in names:
            run = golden["runs"][name]
            actual = train(program, golden["base"], name, run)
            tolerance = {**golden["tolerance"], **run.get("tolerance", {})}
            comparison.curves(name, run, actual, tolerance)
            if exact:
                comparison.equal(f"{name}: weights_sha256", run["weights_sha256"],
                                 actual["weights_sha256"])
    return comparison.report(f"{len(names)} runs", golden["recorded_on"])


def record_losses(program_path):
    golden = json.loads(LOSSES.read_text())
    first = compute_losses(program_path, golden, list(golden["runs"]))
    second = compute_losses(program_path, golden, list(golden["runs"]))
    differing = [name for name in first if first[name] != second[name]]
    if differing:
        raise Failure(f"two runs of the same program differ: {', '.join(differing)}")
    golden["recorded_on"] = cpu_name()
    golden["corpus"]["payload_sha256"] = first.pop("corpus")
    for name, numbers in first.items():
        golden["runs"][name].update(numbers)
    LOSSES.write_text(compact_json(golden) + "\n")
    print(f"{len(first)} runs, each twice and equal: {LOSSES}")


# The checkpoint fixture


def read_checkpoint(program):
    """Everything that expected.json records of the fixture."""
    results = {"eval": {}, "generate": {}}
    program.run("checkpoint", "verify", CHECKPOINT)
    requests = json.loads(EXPECTED.read_text())["requests"]
    for name, arguments in requests["eval"].items():
        report = program.folder / f"{name}.json"
        arguments = [word.replace("DATA/", f"{CHECKPOINT_DATA}/") for word in arguments]
        program.run("eval", "--device", "cpu", "--checkpoint", CHECKPOINT, "--json", report,
                    *arguments)
        results["eval"][name] = numbers_in(json.loads(report.read_text()))
    for name, arguments in requests["generate"].items():
        results["generate"][name] = program.run("generate", "--device", "cpu", "--checkpoint",
                                                CHECKPOINT, *arguments)
    results["resume"] = resume_fixture(program)
    results["finetune"] = finetune_fixture(program)
    return results


def numbers_in(report):
    """Counts, figures and settings of an evaluation report, without paths and names."""
    result = {}
    for name, value in report.items():
        if isinstance(value, dict):
            result.update({f"{name}.{field}": inner for field, inner in numbers_in(value).items()})
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            result[name] = value
    return result


def fixture_data():
    """The overrides that point a config at the fixture's files."""
    return ["--set", f'data.train=["{CHECKPOINT_DATA}/train.shard"]',
            "--set", f"data.valid={CHECKPOINT_DATA}/valid.shard",
            "--set", f"data.tokenizer={CHECKPOINT}/tokenizer.model"]


def resume_fixture(program, checkpoint=CHECKPOINT, code=0):
    """The steps that the fixture's run had left; None when a failure is expected."""
    program.run("pretrain", CHECKPOINT / "config.json", "--quiet", "--resume", checkpoint,
                "--set", "train.out=resumed", *fixture_data(), code=code)
    return curves(metrics(program.folder / "resumed")) if code == 0 else None


def finetune_fixture(program):
    config = {"train": {"init_from": str(CHECKPOINT), "out": "finetuned", "device": "cpu",
                        "context": 32, "batch": 4, "steps": 4, "log_every": 1, "threads": 1},
              "schedule": {"warmup_steps": 0}}
    (program.folder / "finetune.json").write_text(json.dumps(config))
    program.run("finetune", "finetune.json", "--quiet", *fixture_data())
    return curves(metrics(program.folder / "finetuned"))


def refuse_damage(program):
    """One changed bit in any file of the checkpoint ends `verify` with exit code 4, in the weights
    also `eval`, in the optimizer's state also `pretrain --resume`."""
    for file in sorted(CHECKPOINT.iterdir()):
        damaged = program.folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(CHECKPOINT, damaged)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / file.name).write_bytes(content)
        program.run("checkpoint", "verify", damaged, code=CHECKPOINT_ERROR)
        if file.name == "model.safetensors":
            program.run("eval", "--device", "cpu", "--checkpoint", damaged, "--data",
                        CHECKPOINT_DATA / "valid.shard", code=CHECKPOINT_ERROR)
        if file.name == "optimizer.safetensors":
            shutil.rmtree(program.folder / "resumed", ignore_errors=True)
            resume_fixture(program, damaged, CHECKPOINT_ERROR)


def check_checkpoint(program_path, exact):
    golden = json.loads(EXPECTED.read_text())
    tolerance = golden["tolerance"]
    comparison = Comparison(exact)
    with tempfile.TemporaryDirectory() as folder:
        program = Program(program_path, folder)
        actual = read_checkpoint(program)
        refuse_damage(program)
    expected = golden["expected"]
    for name, report in expected["eval"].items():
        for field, value in report.items():
            comparison.number(f"eval {name}: {field}", value, actual["eval"][name].get(field),
                              tolerance["eval"])
    for name, text in expected["generate"].items():
        comparison.equal(f"generate {name}", text, actual["generate"][name])
    for run in ("resume", "finetune"):
        comparison.curves(run, expected[run], actual[run], tolerance,
                          first_step=golden["step"] + 1 if run == "resume" else 1)
    return comparison.report("checkpoint-v0", golden["recorded_on"])


def record_checkpoint(program_path):
    golden = json.loads(EXPECTED.read_text())
    results = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            results.append(read_checkpoint(Program(program_path, folder)))
    if results[0] != results[1]:
        raise Failure("two runs of the same program differ")
    golden["recorded_on"] = cpu_name()
    golden["expected"] = results[0]
    EXPECTED.write_text(compact_json(golden) + "\n")
    print(f"recorded twice and equal: {EXPECTED}")


def compact_json(value, indent=""):
    """JSON with lists and objects of plain values on one line each."""
    if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()):
        inner = indent + " "
        lines = [f"{inner}{json.dumps(key)}: {compact_json(item, inner)}"
                 for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return json.dumps(value)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the stablemask binary")
    parser.add_argument("what", choices=("losses", "checkpoint"))
    parser.add_argument("--exact", action="store_true", help="require equal bits",
                        default=os.environ.get("STABLEMASK_GOLDEN_EXACT", "0") not in ("", "0"))
    parser.add_argument("--only", metavar="PATTERN", default="*", help="losses: runs to train")
    parser.add_argument("--record", action="store_true", help="write the numbers")
    return parser.parse_args()


def main():
    options = parse_arguments()
    try:
        if options.what == "losses":
            if options.record:
                record_losses(options.program)
                return 0
            good = check_losses(options.program, options.exact, options.only)
        else:
            if options.record:
                record_checkpoint(options.program)
                return 0
            good = check_checkpoint(options.program, options.exact)
    except (Failure, OSError, subprocess.TimeoutExpired) as failure:
        print(f"golden.py: {failure}")
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
