#!/usr/bin/env python3
"""The same model in Python PyTorch: the peer that training speed is compared with.

Pre-norm decoder with RMSNorm, half-split RoPE or ALiBi or neither, SwiGLU, packed projections,
AdamW every step, gradients clipped to norm 1. Attention is scaled_dot_product_attention when
causal, and with StableMask the literal way: real and pseudo scores in one matrix, softmax, pseudo
slots multiplied by zero. float32 on the CPU, or bfloat16 autocast with --bf16; on a GPU bfloat16
autocast and cuDNN attention.

Started by torchrun with several processes it trains with DistributedDataParallel: one process per
GPU, float32 gradients averaged while the backward goes on. --batch is then that of all processes
(by default the preset's times the processes), speed is that of all, memory the largest; process 0
prints.

  peer_torch.py --config resolved.json --mask causal             (from `stablemask config show`)
  peer_torch.py --preset 160m --mask causal --compile            (sizes, batch and context of 160m)
  peer_torch.py --preset 1.4b --mask causal --compile --float8          (with torchao)
  peer_torch.py --check CHECKPOINT... --shard FILE     sum of NLL of a shard, as `stablemask eval`
  torchrun --nproc-per-node 4 peer_torch.py --preset 160m --mask causal --compile --ddp blocks
"""
import argparse
import json
import math
import mmap
import os
import resource
import statistics
import struct
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

PRESETS = {
    "71m": dict(layers=6, channels=512, heads=8, ffn_hidden=1536, batch=64, context=1024),
    "160m": dict(layers=12, channels=768, heads=12, ffn_hidden=2048, batch=32, context=1024),
    "400m": dict(layers=24, channels=1024, heads=16, ffn_hidden=2816, batch=16, context=1024),
    "1.4b": dict(layers=24, channels=2048, heads=16, ffn_hidden=5632, batch=8, context=2048),
}
H100_BF16_FLOPS = 989e12
# How compilation and DistributedDataParallel are combined.
DDP = {
    "whole": "the wrapped model is compiled; the graph is split at the buckets of gradients",
    "unsplit": "the same without the splits: reductions start when the backward has ended",
    "blocks": "each block is compiled by itself, and the loss; the wrapper is not",
}
FLOAT8 = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
SDPA = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass
class Shape:
    vocab: int = 50304
    layers: int = 6
    channels: int = 512
    heads: int = 8
    kv_heads: int = 0
    head_dim: int = 0
    ffn_hidden: int = 1536
    eps: float = 1e-5
    tied: bool = False
    position: str = "rope"
    theta: float = 10000.0
    rope_dims: int = 0
    mask: str = "stablemask"
    gamma: object = "slopes"
    p_base: object = 0.0
    mask_length: int = 0
    context: int = 1024
    batch: int = 32
    micro_batch: int = 0

    def resolve(self, processes=1):
        """Fills what is 0 from the rest."""
        self.kv_heads = self.kv_heads or self.heads
        self.head_dim = self.head_dim or self.channels // self.heads
        self.rope_dims = self.rope_dims or self.head_dim
        self.mask_length = self.mask_length or self.context
        self.micro_batch = self.micro_batch or self.batch // processes
        if self.batch % (max(self.micro_batch, 1) * processes):
            sys.exit(f"peer_torch.py: --batch {self.batch} is no multiple of --micro-batch "
                     f"{self.micro_batch} x {processes} processes")
        return self

    @staticmethod
    def from_config(config):
        """From a resolved config of the project."""
        model, train = config["model"], config["train"]
        expected = {"ffn": "swiglu", "norm": "rms", "qk_norm": False, "window": 0,
                    "log_length_scale": False}
        for key, value in expected.items():
            if model[key] != value:
                sys.exit(f"peer_torch.py: model.{key} = {model[key]!r} is not implemented here")
        stable = model["stable_mask"]
        if stable["enabled"] and stable["learnable"]:
            sys.exit("peer_torch.py: model.stable_mask.learnable = True is not implemented here")
        length = stable["mask_length"]
        gamma = stable["gamma"]
        if gamma == "auto":
            gamma = "slopes" if model["position"] == "alibi" else 1.0
        return Shape(
            vocab=model["vocab_size"], layers=model["layers"], channels=model["channels"],
            heads=model["heads"], kv_heads=model["kv_heads"], head_dim=model["head_dim"],
            ffn_hidden=model["ffn_hidden"], eps=model["norm_eps"], tied=model["tied_head"],
            position=model["position"], theta=model["rope_theta"], rope_dims=model["rope_dims"],
            mask="stablemask" if stable["enabled"] else "causal", gamma=gamma,
            p_base=stable["p_base"],
            mask_length=math.inf if length == "infinite" else length if isinstance(length, int) else 0,
            context=train["context"], batch=train["batch"], micro_batch=train["micro_batch"])


def alibi_slopes(heads):
    """2^(-8(h+1)/H); for H not a power of two those of the next lower power, then every other one
    of the next higher power."""
    def powers(n):
        return [2.0 ** (-8.0 * (h + 1) / n) for h in range(n)]
    lower = 2 ** int(math.log2(heads))
    return torch.tensor(powers(lower) + powers(2 * lower)[0::2][: heads - lower])


def per_head(value, heads):
    if value == "slopes":
        return alibi_slopes(heads)
    return torch.tensor(value, dtype=torch.float32).expand(heads).clone()


def make_tables(shape, length, device):
    """Cosines, biases and masks of a block of this length."""
    tables = {}
    i = torch.arange(length, device=device)[:, None]
    j = torch.arange(length, device=device)
    causal = j <= i
    if shape.position == "rope":
        exponent = torch.arange(0, shape.rope_dims, 2, device=device) / shape.rope_dims
        angle = i * shape.theta ** -exponent
        tables.update(cos=angle.cos(), sin=angle.sin())
    if shape.position == "alibi":
        slopes = alibi_slopes(shape.heads).to(device)[:, None, None]
        tables["distance"] = -slopes * (i - j)
        tables["bias"] = tables["distance"].masked_fill(~causal, -math.inf)[None]
    if shape.mask == "stablemask":
        gamma = per_head(shape.gamma, shape.heads).to(device)[:, None, None]
        p_base = per_head(shape.p_base, shape.heads).to(device)[:, None, None]
        if math.isinf(shape.mask_length):
            # All slots of a row as one behind the block; their mass is a geometric series.
            pseudo = torch.full((shape.heads, length, length + 1), -math.inf, device=device)
            pseudo[..., length:] = p_base - torch.log(-torch.expm1(-gamma))
        else:
            j = torch.arange(max(length, shape.mask_length), device=device)
            slots = (j > i) & (j < shape.mask_length)
            pseudo = (p_base - gamma * (j - i - 1)).masked_fill(~slots, -math.inf)
        tables.update(pseudo=pseudo, causal=causal)
    return tables


def rotate(x, tables):
    cos, sin = tables["cos"].to(x.dtype), tables["sin"].to(x.dtype)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def stable_mask_attention(q, k, v, tables, shape):
    """softmax(A ⊙ C + P) ⊙ C · v, all of it in memory."""
    groups = shape.heads // shape.kv_heads
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    length = q.shape[2]
    scores = q @ k.transpose(-1, -2) * shape.head_dim ** -0.5
    if shape.position == "alibi":
        scores = scores + tables["distance"]
    pseudo, causal = tables["pseudo"].to(scores.dtype), tables["causal"]
    scores = torch.where(causal, scores, pseudo[..., :length])
    if pseudo.shape[-1] > length:  # slots behind the block
        behind = pseudo[..., length:].expand(q.shape[0], -1, -1, -1)
        scores = torch.cat([scores, behind], dim=-1)
    weights = scores.softmax(-1)[..., :length] * causal
    return weights.to(v.dtype) @ v


def causal_attention(q, k, v, tables, shape):
    grouped = shape.heads != shape.kv_heads
    if shape.position == "alibi":
        bias = tables["bias"].to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def weight(rows, columns):
    return nn.Parameter(torch.empty(rows, columns).normal_(0.0, 0.02))


def linear(rows, columns):
    layer = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return layer


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        packed = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.qkv = linear(packed, shape.channels)
        self.proj = linear(shape.channels, shape.heads * shape.head_dim)

    def forward(self, x, tables):
        s = self.shape
        batch, length, _ = x.shape
        packed = self.qkv(x).view(batch, length, -1, s.head_dim).transpose(1, 2)
        q, k, v = packed.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
        if s.position == "rope":
            q, k = rotate(q, tables), rotate(k, tables)
        attend = stable_mask_attention if s.mask == "stablemask" else causal_attention
        out = attend(q, k, v, tables, s)
        return self.proj(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.up = linear(2 * shape.ffn_hidden, shape.channels)
        self.down = linear(shape.channels, shape.ffn_hidden)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.channels, eps=shape.eps)
        self.attention = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.channels, eps=shape.eps)
        self.ffn = FeedForward(shape)

    def forward(self, x, tables):
        x = x + self.attention(self.attention_norm(x), tables)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    """Parameter names are those of a checkpoint's model.safetensors, with `.weight` behind those of
    the blocks' projections."""

    def __init__(self, shape):
        super().__init__()
        self.embedding = weight(shape.vocab, shape.channels)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.channels, eps=shape.eps)
        if not shape.tied:
            self.head = weight(shape.vocab, shape.channels)
        self.tied = shape.tied

    def forward(self, tokens, targets, tables, reduction="mean"):
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, tables)
        return self.loss(x, targets, reduction)

    def loss(self, x, targets, reduction):
        logits = F.linear(self.norm(x), self.embedding if self.tied else self.head)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(),
                               reduction=reduction)


def train_in_float8(model, recipe):
    """The blocks' projections with torchao's float8; embedding and head as they are."""
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        sys.exit(f"peer_torch.py: --float8 needs the package torchao: {error}")
    convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name(recipe))


def make_optimizer(model):
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)


@dataclass
class World:
    """The processes that train together; `rank` is this one's number."""
    rank: int = 0
    size: int = 1

    def barrier(self):
        if self.size > 1:
            torch.distributed.barrier()

    def largest(self, values):
        """The elementwise maximum of a list of numbers over all processes."""
        if self.size == 1:
            return values
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        result = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(result, torch.distributed.ReduceOp.MAX)
        return result.tolist()


def join_world(arguments):
    """Meets the other processes that torchrun has started, if it has; sets the GPU's index."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    backend = "gloo"
    if arguments.device.startswith("cuda"):
        arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(arguments.device)
        backend = "nccl"
    torch.distributed.init_process_group(backend)
    return World(torch.distributed.get_rank(), size)


def make_forward(model, arguments, world, accumulates):
    """The function that computes the loss; with several processes it reduces the gradients."""
    if world.size == 1:
        return torch.compile(model, mode=arguments.compile) if arguments.compile else model
    blocks = arguments.compile and arguments.ddp == "blocks"
    if blocks:
        for block in model.blocks:
            block.compile(mode=arguments.compile)
        model.loss = torch.compile(model.loss, mode=arguments.compile)
    # The first step of a static graph must neither be traced nor leave out a reduction.
    wrapped = DistributedDataParallel(
        model, bucket_cap_mb=arguments.bucket_mb, gradient_as_bucket_view=True,
        static_graph=not accumulates and (blocks or not arguments.compile))
    if not arguments.compile or blocks:
        return wrapped
    if arguments.ddp == "unsplit":
        torch._dynamo.config.optimize_ddp = False
    return torch.compile(wrapped, mode=arguments.compile)


def make_step(shape, model, forward, optimizer, device, micro_batches, bf16):
    tables = make_tables(shape, shape.context, device)

    def step(tokens):
        parts = tokens.split(shape.micro_batch)
        for index, part in enumerate(parts):
            last_follows = index + 1 < len(parts) and hasattr(forward, "no_sync")
            with forward.no_sync() if last_follows else nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = forward(part[:, :-1], part[:, 1:], tables)
                (loss / micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss
    return step


def benchmark(shape, arguments, world):
    device = torch.device(arguments.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.manual_seed(0)
    model = Transformer(shape).to(device)
    if arguments.float8:
        train_in_float8(model, arguments.float8)
    micro_batches = shape.batch // (shape.micro_batch * world.size)
    forward = make_forward(model, arguments, world, micro_batches > 1)
    step = make_step(shape, model, forward, make_optimizer(model), device, micro_batches,
                     arguments.bf16 or device.type == "cuda")
    on_chosen_kernel = nullcontext()
    if device.type == "cuda" and shape.mask == "causal" and shape.position != "alibi":
        on_chosen_kernel = sdpa_kernel(SDPA[arguments.attention])
    times = []
    torch.manual_seed(world.rank)
    rows = shape.batch // world.size
    with on_chosen_kernel:
        for index in range(arguments.warmup + arguments.steps):
            if index == arguments.warmup and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # compiling and its trials need more
            tokens = torch.randint(shape.vocab, (rows, shape.context + 1), device=device)
            wait()
            world.barrier()
            wait()
            start = time.perf_counter()
            loss = step(tokens)
            wait()
            if index >= arguments.warmup:
                times.append(time.perf_counter() - start)
    if not math.isfinite(loss.item()):
        sys.exit(f"peer_torch.py: the last loss is {loss.item()}")
    return summary(shape, arguments, world, model, statistics.median(world.largest(times)))


def summary(shape, arguments, world, model, seconds):
    parameters = sum(p.numel() for p in model.parameters())
    tokens_per_second = shape.batch * shape.context / seconds
    result = {
        "program": f"torch.compile {arguments.compile}" if arguments.compile else "torch eager",
        "mask": shape.mask, "position": shape.position, "parameters": parameters,
        "batch": shape.batch, "micro_batch": shape.micro_batch, "context": shape.context,
        "device": arguments.device, "threads": torch.get_num_threads(), "processes": world.size,
        "step_ms": 1e3 * seconds, "tokens_per_second": tokens_per_second,
    }
    if arguments.device.startswith("cuda"):
        lookup_only = 0 if shape.tied else shape.vocab * shape.channels
        flops = 6 * (parameters - lookup_only) + \
            6 * shape.layers * shape.heads * shape.head_dim * shape.context
        result["mfu"] = flops * tokens_per_second / (H100_BF16_FLOPS * world.size)
        memory = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]
    else:
        memory = [1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    names = ("peak_memory_bytes", "peak_reserved_bytes")
    result.update((name, int(value)) for name, value in zip(names, world.largest(memory)))
    if arguments.bf16:
        result["program"] += ", bf16 autocast"
    if arguments.float8:
        result["program"] += f", torchao float8 {arguments.float8}"
    if world.size > 1:
        kind = f"DDP {arguments.ddp}" if arguments.compile else "DDP"
        result["program"] += f", {kind}, buckets of {arguments.bucket_mb} MB"
    return result


def read_safetensors(path):
    types = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64}
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    base = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:base]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = np.frombuffer(data[base + begin:base + end], dtype=types[entry["dtype"]])
            tensors[name] = torch.from_numpy(array.reshape(entry["shape"]).copy())
    return tensors


def read_shard(path):
    """Tokens of a shard; the layout is documented in src/data/shards.cpp."""
    with open(path, "rb") as file:
        header = file.read(256)
    if header[:8] != b"SMTOKENS":
        sys.exit(f"peer_torch.py: {path} is not a token shard")
    header_bytes, token_bytes = struct.unpack_from("<II", header, 12)
    count = struct.unpack_from("<Q", header, 32)[0]
    kind = np.uint16 if token_bytes == 2 else np.uint32
    tokens = np.fromfile(path, dtype=kind, count=count, offset=header_bytes)
    return torch.from_numpy(tokens.astype(np.int64))


def load_checkpoint(folder, device):
    """The shape and the model of a checkpoint of the project."""
    shape = Shape.from_config(json.loads((folder / "config.json").read_text())).resolve()
    weights = read_safetensors(folder / "model.safetensors")
    shape.vocab = weights["embedding"].shape[0]
    with device:
        model = Transformer(shape)
    model.load_state_dict({name: weights.get(name, weights.get(name.removesuffix(".weight")))
                           for name in model.state_dict()})
    return shape, model


@torch.no_grad()
def text_nll(shape, model, targets):
    """Sum of NLL over windows that do not overlap. A block starts from EOS, which is the last token
    of every text that ends with a line's end."""
    inputs = targets.roll(1)
    inputs[::shape.context] = targets[-1]
    total, batch = 0.0, 8
    for x, y in zip(inputs.split(batch * shape.context), targets.split(batch * shape.context)):
        rows = len(x) // shape.context
        whole = rows * shape.context
        for part, shaped in ((slice(0, whole), (rows, -1)), (slice(whole, None), (1, -1))):
            if len(x[part]):
                block_x, block_y = x[part].view(shaped), y[part].view(shaped)
                tables = make_tables(shape, block_x.shape[1], targets.device)
                total += model(block_x, block_y, tables, "none").double().sum().item()
    return total


def check(folder, shard, device):
    shape, model = load_checkpoint(folder, device)
    targets = read_shard(shard).to(device)
    print(json.dumps({"checkpoint": str(folder), "nll": text_nll(shape, model, targets),
                      "tokens": len(targets)}))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="resolved config of the project, JSON")
    parser.add_argument("--preset", choices=PRESETS)
    for name in ("layers", "channels", "heads", "ffn-hidden", "vocab", "context", "batch",
                 "micro-batch"):
        parser.add_argument("--" + name, type=int)
    parser.add_argument("--position", choices=("rope", "alibi", "none"))
    parser.add_argument("--mask", choices=("stablemask", "causal"))
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE",
                        help="torch.compile, by default in mode 'default'")
    parser.add_argument("--float8", nargs="?", const="tensorwise", choices=FLOAT8, metavar="RECIPE",
                        help="blocks' projections in torchao's float8: "
                        f"{', '.join(FLOAT8)}; by default the first")
    parser.add_argument("--ddp", choices=DDP, default="whole",
                        help="several processes, --compile: " +
                        "; ".join(f"{name}: {what}" for name, what in DDP.items()))
    parser.add_argument("--bucket-mb", type=int, default=25,
                        help="several processes: megabytes of gradients reduced at once")
    parser.add_argument("--attention", choices=SDPA, default="cudnn", help="GPU, causal, RoPE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast on the CPU too")
    parser.add_argument("--steps", type=int, default=20, help="timed")
    parser.add_argument("--warmup", type=int, default=3, help="steps before")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--check", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--shard")
    arguments = parser.parse_args()
    if arguments.check and not arguments.shard:
        parser.error("--check needs --shard")
    return arguments


def make_shape(arguments, world):
    shape = Shape()
    if arguments.config:
        shape = Shape.from_config(json.loads(Path(arguments.config).read_text()))
    for name, value in PRESETS.get(arguments.preset, {}).items():
        setattr(shape, name, value * world.size if name == "batch" else value)
    for name in ("layers", "channels", "heads", "ffn_hidden", "vocab", "context", "batch",
                 "micro_batch", "position", "mask"):
        value = getattr(arguments, name)
        if value is not None:
            setattr(shape, name, value)
    return shape.resolve(world.size)


def main():
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    for folder in arguments.check or ():
        check(folder, arguments.shard, torch.device(arguments.device))
    if arguments.check:
        return
    world = join_world(arguments)
    try:
        result = benchmark(make_shape(arguments, world), arguments, world)
    except torch.cuda.OutOfMemoryError:
        sys.exit("peer_torch.py: out of GPU memory; lower --micro-batch")
    if world.size > 1:
        torch.distributed.destroy_process_group()
    if world.rank != 0:
        return
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:20} {value:,.3f}" if isinstance(value, float) else f"{key:20} {value}")


if __name__ == "__main__":
    main()
