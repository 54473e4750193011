#!/usr/bin/env python3
"""Compares `stablemask eval` with an evaluation in float64 that shares no code with it.

  float64_evaluation.py PROGRAM CHECKPOINT TEXT

Writes checkpoints of small random models by itself, with the tokenizer of CHECKPOINT, lets PROGRAM
evaluate each on TEXT, and recomputes the sum of the negative log-likelihoods in NumPy from
model.safetensors, config.json and the token ids of the shard, by the formulas of
docs/stablemask.md: literal pseudo slots, no closed forms. Each setting also names a model that
differs from it in the point in question: its sum must be another. Ends with 77 (skipped) where
Python has no NumPy.
"""
from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import erf
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError:
    print(f"float64_evaluation.py: Skipped\n{sys.executable} has no numpy")
    sys.exit(77)

TOLERANCE = 1e-7  # relative, of sums; measured: up to 2e-8
CONTEXT = 32
STEP = 300  # that of CHECKPOINT, whose state.json is used
MODEL: dict[str, Any] = {
    "vocab_size": 320, "layers": 2, "channels": 24, "heads": 6, "kv_heads": 6, "head_dim": 4,
    "ffn_hidden": 40, "ffn": "swiglu", "norm": "rms", "norm_eps": 1e-5, "qk_norm": False,
    "tied_head": False, "position": "rope", "rope_theta": 10000.0, "rope_scaling": 1.0,
    "rope_dims": 0, "window": 0, "log_length_scale": False, "attention": "auto",
}
MASK: dict[str, Any] = {
    "enabled": True, "gamma": "auto", "p_base": 0.0, "mask_length": CONTEXT, "beyond": "infinite",
    "learnable": False,
}


@dataclass
class Setting:
    """A model, how it is evaluated, and what another model would have instead."""
    name: str
    model: dict[str, Any] = field(default_factory=dict)
    mask: dict[str, Any] = field(default_factory=dict)
    unlike: dict[str, Any] = field(default_factory=dict)
    window: int = CONTEXT
    stride: int = 0
    documents: bool = False
    flags: tuple[str, ...] = ()  # what the program is told instead of finding it in the checkpoint
    flag_model: dict[str, Any] = field(default_factory=dict)  # what these mean
    flag_mask: dict[str, Any] = field(default_factory=dict)


SETTINGS = [
    Setting("RoPE", unlike={"enabled": False}),
    Setting("RoPE, windows of 29 by 7", window=29, stride=7, unlike={"stride": 29}),
    Setting("RoPE, windows of 13 by 1", window=13, stride=1, unlike={"stride": 2}),
    Setting("one window longer than the text", window=4001, unlike={"beyond": "none"}),
    Setting("RoPE in 2 of 4 dimensions, tied head",
            {"rope_dims": 2, "tied_head": True, "rope_theta": 50.0}, unlike={"rope_dims": 4}),
    Setting("RoPE scaled by 3, beyond N", {"rope_scaling": 3.0}, window=77,
            unlike={"rope_scaling": 1.0}),
    Setting("beyond N without mass", mask={"beyond": "none"}, window=51,
            unlike={"beyond": "infinite"}),
    Setting("N of the sequence", mask={"mask_length": "sequence", "gamma": 0.25}, window=31,
            unlike={"mask_length": 31}),
    Setting("infinite N by a flag", mask={"gamma": 0.5}, flags=("--mask-length", "infinite"),
            flag_mask={"mask_length": "infinite"}, unlike={"mask_length": CONTEXT}),
    Setting("N = 17 by a flag", mask={"gamma": "slopes"}, flags=("--mask-length", "17"),
            flag_mask={"mask_length": 17}, unlike={"mask_length": 18}),
    Setting("gamma 0, finite N", mask={"gamma": 0.0, "beyond": "none", "p_base": -1.5},
            unlike={"p_base": -1.0}),
    Setting("gamma and p_base of each head",
            mask={"gamma": [0.1, 0.2, 0.4, 0.8, 1.6, 3.2], "p_base": [1, 0, -1, 0.5, 2, -0.5]},
            unlike={"p_base": [0, 1, -1, 0.5, 2, -0.5]}),
    Setting("learned mask", mask={"learnable": True}, window=45, unlike={"learnable": False}),
    Setting("ALiBi", {"position": "alibi"}, unlike={"position": "none"}),
    Setting("ALiBi, 2 key heads of 6, beyond N, windows of 101 by 33",
            {"position": "alibi", "kv_heads": 2}, window=101, stride=33,
            unlike={"beyond": "none"}),
    Setting("ALiBi, infinite N", {"position": "alibi"}, {"mask_length": "infinite"},
            unlike={"mask_length": CONTEXT}),
    Setting("ALiBi, causal, LayerNorm, GELU", {"position": "alibi", "norm": "layer", "ffn": "gelu"},
            {"enabled": False}, unlike={"ffn": "relu"}),
    Setting("RoPE, causal", {}, {"enabled": False}, unlike={"enabled": True}),
    Setting("no positions", {"position": "none", "norm": "layer"}, window=21,
            unlike={"gamma": 1.0}),
    Setting("attention window of 5", {"window": 5}, unlike={"window": 6}),
    Setting("attention window of 9 by a flag, ALiBi, windows of 63 by 9",
            {"position": "alibi", "kv_heads": 3}, window=63, stride=9,
            flags=("--attention-window", "9"), flag_model={"window": 9}, unlike={"window": 10}),
    Setting("attention window beyond N", {"window": 11}, {"mask_length": 20}, window=47,
            unlike={"mask_length": 21}),
    Setting("documents", documents=True, unlike={"documents": False}),
    Setting("documents, ALiBi, N = 9", {"position": "alibi"}, {"mask_length": 9}, window=61,
            documents=True, unlike={"beyond": "none"}),
    Setting("documents, attention window of 7, windows of 57 by 19",
            {"window": 7, "kv_heads": 1}, window=57, stride=19, documents=True,
            unlike={"window": 0}),
    Setting("documents, learned mask, reference formula", {"attention": "reference"},
            {"learnable": True}, window=90, documents=True, unlike={"documents": False}),
    Setting("normed queries and keys, 1 key head", {"qk_norm": True, "kv_heads": 1},
            unlike={"qk_norm": False}),
    Setting("scores by the logarithm of the length", {"log_length_scale": True}, window=37,
            unlike={"log_length_scale": False}),
    Setting("more channels in heads than in the model, padded vocabulary",
            {"channels": 20, "heads": 3, "kv_heads": 3, "head_dim": 10, "vocab_size": 352},
            unlike={"rope_dims": 6}),
]


# Files.

def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    base = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:base]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            assert entry["dtype"] == "F32"
            values = np.frombuffer(data[base + begin:base + end], dtype="<f4")
            tensors[name] = values.reshape(entry["shape"]).astype(np.float64)
    return tensors


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the first token of each document (docs/formats.md)."""
    data = path.read_bytes()
    assert data[:8] == b"SMTOKENS"
    header_bytes, token_bytes = struct.unpack_from("<II", data, 12)
    count, = struct.unpack_from("<Q", data, 32)
    documents, = struct.unpack_from("<Q", data, 64)
    kind = "<u2" if token_bytes == 2 else "<u4"
    tokens = np.frombuffer(data, kind, count, header_bytes).astype(np.int64)
    starts_at = header_bytes + -(-count * token_bytes // 8) * 8
    return tokens, np.frombuffer(data, "<u8", documents, starts_at).astype(np.int64)


def write_checkpoint(folder: Path, files: dict[str, bytes]) -> None:
    """With the manifest that docs/formats.md and src/io/manifest.h describe."""
    folder.mkdir(parents=True)
    listed = {}
    for name, data in sorted(files.items()):
        (folder / name).write_bytes(data)
        listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest: dict[str, Any] = {"format": "stablemask-checkpoint", "version": 1, "step": STEP,
                                "files": listed}
    text = json.dumps(manifest, indent=2)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def random_weights(model: dict[str, Any], mask: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Large enough for sharp attention and an uneven distribution of the next token."""
    random = np.random.default_rng(seed)
    channels, heads, width = model["channels"], model["heads"], model["head_dim"]
    weights: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        weights[name] = random.normal(0, 1.2 / np.sqrt(columns), (rows, columns))

    def norm(name: str, size: int, bias: bool) -> None:
        weights[name] = random.uniform(0.5, 1.5, size)
        if bias:
            weights[name.removesuffix("weight") + "bias"] = random.normal(0, 0.3, size)

    layer_norm = model["norm"] == "layer"
    matrix("embedding", model["vocab_size"], channels)
    if not model["tied_head"]:
        matrix("head", model["vocab_size"], channels)
    for layer in range(model["layers"]):
        block = f"blocks.{layer}."
        norm(block + "attention_norm.weight", channels, layer_norm)
        matrix(block + "attention.qkv", (heads + 2 * model["kv_heads"]) * width, channels)
        matrix(block + "attention.proj", channels, heads * width)
        if model["qk_norm"]:
            norm(block + "attention.q_norm", width, False)
            norm(block + "attention.k_norm", width, False)
        if mask["enabled"] and mask["learnable"]:
            weights[block + "attention.stable_mask.gamma_raw"] = random.normal(-1, 1, heads)
            weights[block + "attention.stable_mask.p_base"] = random.normal(0, 1, heads)
        norm(block + "ffn_norm.weight", channels, layer_norm)
        gated = 2 if model["ffn"] == "swiglu" else 1
        matrix(block + "ffn.up", gated * model["ffn_hidden"], channels)
        matrix(block + "ffn.down", channels, model["ffn_hidden"])
    norm("norm.weight", channels, layer_norm)
    return weights


# The evaluation.

def alibi_slopes(heads: int) -> np.ndarray:
    """2^(-8k/H) for k = 1 … H; for H that is no power of two, those of the power below, then every
    other one of the power above."""
    def powers(n: int) -> list[float]:
        return [2.0 ** (-8.0 * k / n) for k in range(1, n + 1)]
    below = 1 << (heads.bit_length() - 1)
    return np.array(powers(below) + powers(2 * below)[::2][:heads - below])


def pseudo_mass(mask: dict[str, Any], gamma: np.ndarray, p_base: np.ndarray,
                positions: np.ndarray, length: int) -> np.ndarray:
    """[H, T]: the sum of the exponentiated pseudo scores of each row."""
    def infinite(head: int) -> float:
        return np.exp(p_base[head]) / (1 - np.exp(-gamma[head]))
    n = length if mask["mask_length"] == "sequence" else mask["mask_length"]
    mass = np.zeros((len(gamma), len(positions)))
    for head in range(len(gamma)):
        for row, position in enumerate(positions):
            if n == "infinite" or (position >= n and mask["beyond"] == "infinite"):
                mass[head, row] = infinite(head)
            else:
                slots = np.arange(position + 1, n)
                mass[head, row] = np.exp(p_base[head] - gamma[head] * (slots - position - 1)).sum()
    return mass


class Evaluation:
    def __init__(self, weights: dict[str, np.ndarray], model: dict[str, Any],
                 mask: dict[str, Any]) -> None:
        self.weights, self.model, self.mask = weights, model, mask

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        w, eps = self.weights, self.model["norm_eps"]
        if self.model["norm"] == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[name + ".weight"]
        return x + w[name + ".bias"] if self.model["norm"] == "layer" else x

    def rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x [heads, T, D]: dimension k is turned together with dimension k + dims/2."""
        dims = self.model["rope_dims"] or x.shape[-1]
        half = dims // 2
        frequency = self.model["rope_theta"] ** (-2.0 * np.arange(half) / dims)
        turn = np.exp(1j * np.outer(positions / self.model["rope_scaling"], frequency))
        turned = (x[..., :half] + 1j * x[..., half:dims]) * turn
        return np.concatenate([turned.real, turned.imag, x[..., dims:]], -1)

    def per_head(self, value: Any) -> np.ndarray:
        heads, position = self.model["heads"], self.model["position"]
        if value == "auto":
            value = 1.0 if position == "rope" else "slopes"
        return alibi_slopes(heads) if value == "slopes" else np.broadcast_to(value, heads)

    def attention(self, x: np.ndarray, block: str, start: np.ndarray) -> np.ndarray:
        model, w, mask = self.model, self.weights, self.mask
        heads, kv_heads, width, length = model["heads"], model["kv_heads"], model["head_dim"], len(x)
        positions = np.arange(length) - start
        packed = (x @ w[block + "qkv"].T).reshape(length, -1, width).transpose(1, 0, 2)
        q, k, v = np.split(packed, [heads, heads + kv_heads])
        if model["qk_norm"]:
            def normed(y: np.ndarray, name: str) -> np.ndarray:
                root = np.sqrt((y * y).mean(-1, keepdims=True) + model["norm_eps"])
                return y / root * w[block + name]
            q, k = normed(q, "q_norm"), normed(k, "k_norm")
        if model["position"] == "rope":
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        group = np.arange(heads) // (heads // kv_heads)
        scores = q @ k[group].transpose(0, 2, 1) / np.sqrt(width)
        if model["log_length_scale"]:
            scores *= np.log(length) / np.log(1024)
        i, j = np.arange(length)[:, None], np.arange(length)
        if model["position"] == "alibi":
            scores -= alibi_slopes(heads)[:, None, None] * (i - j)
        seen = (j <= i) & (j >= start[:, None])
        if model["window"]:
            seen &= j > i - model["window"]
        highest = np.where(seen, scores, -np.inf).max(-1, keepdims=True)
        weights = np.where(seen, np.exp(np.minimum(scores - highest, 0)), 0)
        total = weights.sum(-1, keepdims=True)
        if mask["enabled"]:
            if mask["learnable"]:
                gamma = np.log1p(np.exp(w[block + "stable_mask.gamma_raw"]))
                p_base = w[block + "stable_mask.p_base"]
            else:
                gamma, p_base = self.per_head(mask["gamma"]), self.per_head(mask["p_base"])
            mass = pseudo_mass(mask, gamma, p_base, positions, length)
            total = total + mass[..., None] * np.exp(-highest)
        mixed = (weights / total) @ v[group]
        return mixed.transpose(1, 0, 2).reshape(length, -1) @ w[block + "proj"].T

    def feed_forward(self, x: np.ndarray, block: str) -> np.ndarray:
        up = x @ self.weights[block + "up"].T
        if self.model["ffn"] == "swiglu":
            gate, up = np.split(up, 2, -1)
            hidden = gate / (1 + np.exp(-gate)) * up
        elif self.model["ffn"] == "gelu":
            hidden = up * 0.5 * (1 + np.vectorize(erf)(up / np.sqrt(2)))
        else:
            hidden = np.maximum(up, 0)
        return hidden @ self.weights[block + "down"].T

    def nll(self, inputs: np.ndarray, targets: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Of each target; `start`: the first column of each column's document."""
        w = self.weights
        x = w["embedding"][inputs]
        for layer in range(self.model["layers"]):
            block = f"blocks.{layer}."
            x = x + self.attention(self.norm(x, block + "attention_norm"), block + "attention.",
                                   start)
            x = x + self.feed_forward(self.norm(x, block + "ffn_norm"), block + "ffn.")
        logits = self.norm(x, "norm") @ w["embedding" if self.model["tied_head"] else "head"].T
        logits -= logits.max(-1, keepdims=True)
        return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]

    def total(self, tokens: np.ndarray, documents: np.ndarray, window: int, stride: int) -> float:
        """Every token once. The text ends with a line, so its last token is EOS. `documents`: the
        first token of each; empty: all of the text is one."""
        stride = stride or window
        x = np.concatenate([tokens[-1:], tokens[:-1]])  # x[p] is read to predict tokens[p]
        # The document of x[p]: an EOS before a document belongs to the one before.
        document = np.searchsorted(documents, np.arange(len(x)) - 1, side="right")
        total, scored = 0.0, 0
        for begin in range(0, len(x), stride):
            end = min(begin + window, len(x))
            inputs = x[begin:end].copy()
            if stride == window:
                inputs[0] = tokens[-1]
            start = np.searchsorted(document[begin:end], document[begin:end], side="left")
            nll = self.nll(inputs, tokens[begin:end], start)
            total += nll[scored - begin:].sum()
            scored = end
            if end == len(x):
                return total
        raise AssertionError("no tokens")


# The comparison.

class Comparison:
    def __init__(self, program: str, base: Path, text: Path, work: Path) -> None:
        self.program, self.work = program, work
        self.files = {name: (base / name).read_bytes()
                      for name in ("tokenizer.model", "state.json")}
        self.shard = work / "text.shard"
        subprocess.run([program, "data", "prepare", "--input", text, "--output", self.shard,
                        "--tokenizer", base / "tokenizer.model"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.tokens, self.documents = read_shard(self.shard)

    def of_program(self, setting: Setting, folder: Path) -> float:
        command = [self.program, "eval", "--checkpoint", folder, "--data", self.shard, "--device",
                   "cpu", "--window", setting.window, "--stride", setting.stride, "--json", "-",
                   *setting.flags]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"float64_evaluation.py: {setting.name}: {done.stderr}")
        return json.loads(done.stdout)["nll"]

    def here(self, setting: Setting, folder: Path, change: dict[str, Any]) -> float:
        config = json.loads((folder / "config.json").read_text())
        model, mask = config["model"], config["model"].pop("stable_mask")
        model.update(setting.flag_model)
        mask.update(setting.flag_mask)
        for part in (model, mask):
            part.update({key: value for key, value in change.items() if key in part})
        documents = self.documents
        if not change.get("documents", config["data"]["document_mask"]):
            documents = np.array([], dtype=np.int64)
        weights = read_safetensors(folder / "model.safetensors")
        return Evaluation(weights, model, mask).total(
            self.tokens, documents, setting.window, change.get("stride", setting.stride))

    def compare(self, number: int) -> tuple[str, bool]:
        setting = SETTINGS[number]
        model, mask = MODEL | setting.model, MASK | setting.mask
        folder = self.work / f"{number}" / f"step-{STEP:08}"
        config = {"version": 2, "model": model | {"stable_mask": mask},
                  "data": {"document_mask": setting.documents}, "train": {"context": CONTEXT}}
        write_checkpoint(folder, self.files | {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": safetensors_bytes(random_weights(model, mask, number))})
        theirs, ours = self.of_program(setting, folder), self.here(setting, folder, {})
        other = self.here(setting, folder, setting.unlike)
        error, difference = abs(theirs / ours - 1), abs(other / ours - 1)
        good = error < TOLERANCE and difference > 100 * TOLERANCE
        line = (f"{'' if good else 'WRONG '}{setting.name}: NLL {theirs:.6f}, here {ours:.6f}, "
                f"relative difference {error:.1e}; with {setting.unlike} {difference:.1e}")
        return line, good


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(2) as pool:
        comparison = Comparison(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(work))
        results = list(pool.map(comparison.compare, range(len(SETTINGS))))
    for line, _ in results:
        print(line)
    wrong = sum(not good for _, good in results)
    print(f"{len(results)} settings, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
