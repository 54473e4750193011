#!/usr/bin/env python3
"""Time of the operator in Python's torch (src/python) against scaled_dot_product_attention on a GPU.

bf16, 32768 tokens a call, head shapes of the presets; query, key and value are views [B,H,T,D] of
tensors [B,T,H,D], as projections give them. Forward without gradients, and forward with backward. Each
figure is the median over rounds of the mean of some calls; the programs take turns within a round.
Times are relative to the faster of the two SDPA kernels. "formula" is softmax(A * C + P) * C @ v with
matrices, under torch.compile. What differs from the formula is not timed.

    PYTHONPATH=build/python python3 scripts/bench/pytorch_op.py [--models 160m,1.4b]
        [--lengths 1024,4096] [--rounds 10] [--calls 10] [--json FILE]
"""
import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from peer_shapes import SHAPES
from torch.nn.attention import SDPBackend, sdpa_kernel

import stablemask

TOKENS = 32768
TOLERANCE = 2e-2  # of the largest element, bf16
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CASES = {
    "SDPA, cuDNN": "causal", "SDPA, flash": "causal", "ours, causal": "causal",
    "ours, StableMask": "mask", "ours, StableMask, learnable": "mask",
    "ours, ALiBi + StableMask": "alibi", "formula, compiled": "mask",
}


def sdpa(backend: SDPBackend, query: torch.Tensor, key: torch.Tensor,
         value: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def formula(gamma: torch.Tensor | None, slopes: torch.Tensor | None, query: torch.Tensor,
            key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The mask length is T."""
    length, dims = query.shape[2:]
    i = torch.arange(length, device=query.device)[:, None]
    j = torch.arange(length, device=query.device)
    scores = (query @ key.mT).float() * dims ** -0.5
    if slopes is not None:
        scores = scores - slopes.view(-1, 1, 1) * (i - j)
    hidden = torch.full_like(scores[:1], -torch.inf) if gamma is None else (
        -gamma.view(-1, 1, 1) * (j - i - 1))
    weights = torch.where(j <= i, scores, hidden).softmax(-1)
    return torch.where(j <= i, weights, 0).to(value.dtype) @ value


def programs(heads: int, length: int) -> dict[str, Attention]:
    slopes = stablemask.alibi_slopes(heads, "cuda")
    base = torch.zeros_like(slopes)
    learnt, learnt_base = slopes.clone().requires_grad_(), base.clone().requires_grad_()

    def ours(**options: object) -> Attention:
        return partial(stablemask.attention, **options)

    found = (
        partial(sdpa, SDPBackend.CUDNN_ATTENTION), partial(sdpa, SDPBackend.FLASH_ATTENTION), ours(),
        ours(gamma=slopes, p_base=base, mask_length=length),
        ours(gamma=learnt, p_base=learnt_base, mask_length=length),
        ours(gamma=slopes, p_base=base, mask_length=length, alibi_slopes=slopes),
        torch.compile(partial(formula, slopes, None), dynamic=False))
    return dict(zip(CASES, found, strict=True))


def inputs(batch: int, heads: int, length: int, dims: int) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    return [torch.randn(batch, length, heads, dims, device="cuda", generator=generator)
            .bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]


def both(attention: Attention, tensors: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    out = attention(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def check(heads: int, dims: int) -> None:
    """Every program and its gradients against the formula in fp64, on one short input."""
    length = 384
    tensors = inputs(2, heads, length, dims)
    grad = torch.randn_like(tensors[0])
    slopes = stablemask.alibi_slopes(heads, "cuda")
    truths = {kind: both(partial(formula, gamma, bias),
                         [x.detach().double().requires_grad_() for x in tensors], grad.double())
              for kind, gamma, bias in (("causal", None, None), ("mask", slopes, None),
                                        ("alibi", slopes, slopes))}
    for name, program in programs(heads, length).items():
        for ours, truth in zip(both(program, tensors, grad), truths[CASES[name]], strict=True):
            error = ((ours.double() - truth).abs().max() / truth.abs().max()).item()
            if not error < TOLERANCE:
                sys.exit(f"pytorch_op.py: {name}: differs from the formula by {error:.3g}")


def milliseconds(run: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def measure(model: str, length: int, rounds: int, calls: int) -> dict[str, dict[str, float]]:
    shape, batch = SHAPES[model], TOKENS // length
    tensors = inputs(batch, shape.heads, length, shape.head_dim)
    grad = torch.randn_like(tensors[0])
    plain = [x.detach() for x in tensors]
    times: dict[str, dict[str, list[float]]] = {}
    attempts = programs(shape.heads, length)
    for turn in range(rounds + 1):  # the first warms up
        for name, program in list(attempts.items()):
            try:
                with torch.no_grad():
                    forward = milliseconds(lambda: program(*plain), calls)
                whole = milliseconds(lambda: both(program, tensors, grad), calls)
            except torch.OutOfMemoryError:
                del attempts[name]
                times.pop(name, None)
                continue
            if turn:
                kinds = times.setdefault(name, {"forward": [], "forward+backward": []})
                kinds["forward"].append(forward)
                kinds["forward+backward"].append(whole)
    return {name: {kind: statistics.median(values) for kind, values in kinds.items()}
            for name, kinds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="160m,1.4b")
    parser.add_argument("--lengths", default="1024,4096")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("pytorch_op.py: needs a GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, {TOKENS} tokens a call\n")
    print("| heads | T | program | forward, ms | x SDPA | TFLOP/s | with backward, ms | x SDPA | TFLOP/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    results = []
    for model in options.models.split(","):
        shape = SHAPES[model]
        check(shape.heads, shape.head_dim)
        for length in map(int, options.lengths.split(",")):
            times = measure(model, length, options.rounds, options.calls)
            flops = 2 * TOKENS * length * shape.channels  # two products over half of the square
            for name in CASES:
                cells = []
                for kind, factor in (("forward", 1.0), ("forward+backward", 3.5)):
                    if name not in times:
                        cells += ["out of memory", "", ""]
                        continue
                    spent = times[name][kind]
                    best = min(times[peer][kind] for peer in times if peer.startswith("SDPA"))
                    cells += [f"{spent:.3f}", f"{spent / best:.2f}",
                              f"{factor * flops / spent / 1e9:.0f}"]
                    results.append({"model": model, "length": length, "program": name, "kind": kind,
                                    "ms": spent, "ratio": spent / best})
                print(f"| {shape.heads} x {shape.head_dim} | {length} | {name} | {' | '.join(cells)} |",
                      flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
