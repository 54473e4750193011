#!/usr/bin/env python3
"""Generation of text in Python PyTorch: the peers of `stablemask bench generate`.

  hf-dynamic   transformers' LlamaForCausalLM.generate with the cache that grows
  hf-static    the same with a cache of fixed size, which transformers compiles on a GPU
  compiled     a decoding loop in plain PyTorch: cache of fixed size, one compiled graph a token
               (torch.compile, mode reduce-overhead, which records CUDA graphs), sampling in it

Random weights, bfloat16 on a GPU and float32 on a CPU, sampling with a temperature of 1 from all
ids. Every peer's ids are checked: their number, their range, and that they differ. Prints one JSON
object with the names of `bench generate`: tokens_per_second includes the prompts;
decoded_tokens_per_second counts the ids of all sequences after the first of each.

  peer_generate.py --program compiled --preset 160m --batch 64
"""
import argparse
import json
import sys
import time
from collections.abc import Callable

from peer_shapes import SHAPES, Shape, add_load, figures

SKIPPED = 77  # exit code: not installed
try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as missing:
    print(f"peer_generate.py: skipped: {missing}", file=sys.stderr)
    sys.exit(SKIPPED)

# Seconds of the prompts and first ids, seconds of the others, ids [B, N].
Run = tuple[float, float, torch.Tensor]


class Clock:
    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


class Attention(nn.Module):
    """Causal self-attention with RoPE on a cache of fixed size."""

    def __init__(self, shape: Shape, batch: int, slots: int) -> None:
        super().__init__()
        self.shape = shape
        self.qkv = nn.Linear(shape.channels, 3 * shape.channels, bias=False)
        self.proj = nn.Linear(shape.channels, shape.channels, bias=False)
        cache = torch.zeros(batch, shape.heads, slots, shape.head_dim)
        self.register_buffer("keys", cache)
        self.register_buffer("values", cache.clone())

    def forward(self, x: torch.Tensor, position: torch.Tensor, angles: torch.Tensor,
                mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, self.shape.heads, -1).transpose(1, 2)
                   for part in self.qkv(x).chunk(3, dim=-1))
        q, k = rotate(q, angles), rotate(k, angles)
        self.keys[:, :, position] = k
        self.values[:, :, position] = v
        out = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(batch, length, -1))


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, shape: Shape, batch: int, slots: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.channels, eps=1e-5)
        self.attention = Attention(shape, batch, slots)
        self.ffn_norm = nn.RMSNorm(shape.channels, eps=1e-5)
        self.up = nn.Linear(shape.channels, 2 * shape.ffn_hidden, bias=False)
        self.down = nn.Linear(shape.ffn_hidden, shape.channels, bias=False)

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), *context)
        gate, up = self.up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Transformer(nn.Module):
    def __init__(self, shape: Shape, batch: int, slots: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.channels)
        self.blocks = nn.ModuleList(Block(shape, batch, slots) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.channels, eps=1e-5)
        self.head = nn.Linear(shape.channels, shape.vocab, bias=False)
        half = shape.head_dim // 2
        frequencies = 10000.0 ** -(torch.arange(half) / half)
        angles = torch.arange(slots)[:, None] * frequencies
        self.register_buffer("angles", angles)
        self.register_buffer("causal", torch.ones(slots, slots, dtype=torch.bool).tril())

    def forward(self, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """ids [B,T] at `position` [T] → ids [B,1] drawn after the last."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, position, self.angles[position], self.causal[position])
        return draw(self.head(self.norm(x[:, -1])))


def draw(logits: torch.Tensor) -> torch.Tensor:
    """One id a row from softmax(logits), without waiting for the device: the largest of p / e with
    exponential e."""
    p = logits.float().softmax(-1)
    return (p / torch.empty_like(p).exponential_(1)).argmax(-1, keepdim=True)


def compiled(shape: Shape, arguments: argparse.Namespace, prompt: torch.Tensor,
             dtype: torch.dtype) -> Callable[[], Run]:
    slots = arguments.prompt + arguments.tokens
    with torch.device(prompt.device):
        model = Transformer(shape, arguments.batch, slots)
    angles = model.angles.clone()
    model = model.to(dtype).eval()
    model.angles = angles  # positions need more bits
    if arguments.tune:
        torch._inductor.config.coordinate_descent_tuning = True
    step = torch.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False)
    clock = Clock(prompt.device)

    def run() -> Run:
        start = clock.now()
        position = torch.arange(arguments.prompt, device=prompt.device)
        ids = [model(prompt, position)]
        middle = clock.now()
        position = position[-1:] + 1
        for _ in range(arguments.tokens - 1):
            ids.append(step(ids[-1], position).clone())  # the graph's next run overwrites it
            position += 1
        return middle - start, clock.now() - middle, torch.cat(ids, dim=1)

    return run


def transformers(shape: Shape, arguments: argparse.Namespace, prompt: torch.Tensor,
                 dtype: torch.dtype) -> Callable[[], Run]:
    try:
        from transformers import (GenerationConfig, LlamaConfig, LlamaForCausalLM,
                                  StoppingCriteria, StoppingCriteriaList)
    except ImportError as missing:
        print(f"peer_generate.py: skipped: {missing}; pip install transformers", file=sys.stderr)
        sys.exit(SKIPPED)
    length = arguments.prompt + arguments.tokens
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.channels, intermediate_size=shape.ffn_hidden,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads, max_position_embeddings=length, rms_norm_eps=1e-5,
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    with torch.device(prompt.device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=arguments.tokens,
        min_new_tokens=arguments.tokens, pad_token_id=0,
        cache_implementation="static" if arguments.program == "hf-static" else None)
    clock = Clock(prompt.device)

    class FirstToken(StoppingCriteria):
        """Takes the time when the first id of each sequence is there; stops nothing."""
        time = 0.0

        def __call__(self, input_ids: torch.Tensor, scores: object,
                     **kwargs: object) -> torch.Tensor:
            if not self.time:
                self.time = clock.now()
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def run() -> Run:
        first = FirstToken()
        start = clock.now()
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt),
                             generation_config=settings,
                             stopping_criteria=StoppingCriteriaList([first]))
        return first.time - start, clock.now() - first.time, ids[:, prompt.shape[1]:]

    return run


def check(ids: torch.Tensor, shape: Shape, arguments: argparse.Namespace) -> None:
    if tuple(ids.shape) != (arguments.batch, arguments.tokens):
        sys.exit(f"peer_generate.py: got ids {tuple(ids.shape)}")
    if ids.min() < 0 or ids.max() >= shape.vocab or len(ids.unique()) < 2:
        sys.exit("peer_generate.py: the ids are not drawn from the vocabulary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_load(parser)
    programs = {"hf-dynamic": transformers, "hf-static": transformers, "compiled": compiled}
    parser.add_argument("--program", choices=programs, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: bf16 on a GPU")
    parser.add_argument("--tune", action="store_true",
                        help="compiled: Inductor's coordinate descent, which takes minutes")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dtype_name = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    shape = SHAPES[arguments.preset]
    torch.manual_seed(0)
    prompt = torch.randint(shape.vocab, (arguments.batch, arguments.prompt), device=device)
    dtype = torch.bfloat16 if dtype_name == "bf16" else torch.float32
    begin = time.perf_counter()
    with torch.inference_mode():
        run = programs[arguments.program](shape, arguments, prompt, dtype)
        run()
        start_s = time.perf_counter() - begin
        runs = [run() for _ in range(arguments.repeats)]
    for _, _, ids in runs:
        check(ids, shape, arguments)
    print(json.dumps({
        "program": arguments.program, "torch": torch.__version__, "preset": arguments.preset,
        "batch": arguments.batch, "dtype": dtype_name, "device": arguments.device,
        "threads": torch.get_num_threads(), "prompt": arguments.prompt,
        "tokens": arguments.tokens, "start_s": start_s,
        **figures(shape, arguments, dtype.itemsize, [run[:2] for run in runs])}))


if __name__ == "__main__":
    main()
