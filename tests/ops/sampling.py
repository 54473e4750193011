#!/usr/bin/env python3
"""Draws ids by the rules of include/stablemask/ops/sampling.h and compares them with those in CASES.

  sampling.py CASES

CASES has a record for each draw: int64 columns, vocabulary, top_k, drawn, seed, id; float64
temperature, top_p, min_p, repetition penalty; float32 logits and uint8 seen of each column.
Ends with 1 if an id differs, and with 77 (skipped) where Python has no NumPy.
"""
from __future__ import annotations

import sys
from fractions import Fraction

try:
    import numpy as np
except ImportError:
    sys.exit(77)


def uniform(seed: int, drawn: int) -> Fraction:
    """Number `drawn` of SplitMix64(seed): its first 53 bits as a number in [0, 1)."""
    mask = 2**64 - 1
    z = (seed + (drawn + 1) * 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return Fraction((z ^ (z >> 31)) >> 11, 2**53)


def first_at(sums: list[int], goal: Fraction, inclusive: bool) -> int:
    """The index of the first sum that reaches the goal, or exceeds it."""
    return next(i for i, value in enumerate(sums) if value > goal or (inclusive and value == goal))


def draw(logits: np.ndarray, seen: np.ndarray, temperature: float, top_k: int, top_p: float,
         min_p: float, penalty: float, seed: int, drawn: int) -> int:
    wide = logits.astype(np.float64)
    changed = np.where(wide > 0, wide / penalty, wide * penalty)
    x = np.where(seen != 0, changed, wide).astype(np.float32).astype(np.float64)
    if temperature == 0:
        return int(np.argmax(x))
    order = np.argsort(-x, kind="stable")
    if top_k > 0:
        order = order[:top_k]
    probability = np.rint(2.0**40 * np.exp((x[order] - x[order[0]]) / temperature))
    sums = np.cumsum(probability.astype(np.int64)).tolist()
    kept = first_at(sums, Fraction(top_p) * sums[-1], inclusive=True) + 1
    kept = min(kept, int(np.count_nonzero(probability >= min_p * probability[0])))
    u = uniform(seed, drawn)
    return int(order[first_at(sums[:kept], u * sums[kept - 1], inclusive=False)])


def main() -> int:
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    at, cases, wrong = 0, 0, 0
    while at < len(data):
        columns, vocabulary, top_k, drawn, seed, id_drawn = (
            int(value) for value in np.frombuffer(data, "<i8", 6, at))
        temperature, top_p, min_p, penalty = (
            float(value) for value in np.frombuffer(data, "<f8", 4, at + 48))
        at += 80
        logits = np.frombuffer(data, "<f4", columns, at)[:vocabulary]
        seen = np.frombuffer(data, "u1", columns, at + 4 * columns)[:vocabulary]
        at += 5 * columns
        expected = draw(logits, seen, temperature, top_k, top_p, min_p, penalty, seed, drawn)
        if expected != id_drawn:
            wrong += 1
            print(f"case {cases}: id {id_drawn}, expected {expected}; temperature {temperature}, "
                  f"top_k {top_k}, top_p {top_p}, min_p {min_p}, penalty {penalty}, seed {seed}, "
                  f"drawn {drawn}")
        cases += 1
    print(f"{cases} draws, {wrong} wrong")
    return 1 if wrong or cases == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
