#!/usr/bin/env python3
"""Generation by llama.cpp on the CPU: the peer of `stablemask bench generate` at batch 1.

Writes a GGUF file of the shape with random float32 weights (architecture llama, no tokenizer) and
measures the prompt and the generation of tokens apart, sampling with a temperature of 1. The cache
is float32 as ours is; --cache f16 is llama.cpp's default. Prints one JSON object.

  pip install llama-cpp-python gguf      (builds from source: some minutes)
  peer_llama_cpp.py --preset 71m --threads 2 --tokens 256
"""
import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from peer_shapes import SHAPES, Shape, add_load, figures

SKIPPED = 77  # exit code: not installed
try:
    import gguf
    import llama_cpp
    import numpy as np
except ImportError as missing:
    print(f"peer_llama_cpp.py: skipped: {missing}; pip install llama-cpp-python gguf",
          file=sys.stderr)
    sys.exit(SKIPPED)


def write_model(path: Path, shape: Shape, context: int) -> None:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(context)
    writer.add_embedding_length(shape.channels)
    writer.add_feed_forward_length(shape.ffn_hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    ones = np.ones(shape.channels, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(shape.vocab, shape.channels))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", matrix(shape.vocab, shape.channels))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{name}.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}{name}.weight", matrix(shape.channels, shape.channels))
        for name in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"{block}{name}.weight", matrix(shape.ffn_hidden, shape.channels))
        writer.add_tensor(f"{block}ffn_down.weight", matrix(shape.channels, shape.ffn_hidden))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Generator:
    def __init__(self, path: Path, context: int, threads: int, cache: str) -> None:
        self.log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), loading)
        if not self.model:
            sys.exit("peer_llama_cpp.py: llama.cpp refused the model")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = context
        options.n_batch = context
        options.n_threads = options.n_threads_batch = threads
        kind = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16}[cache]
        options.type_k = options.type_v = kind
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            sys.exit("peer_llama_cpp.py: llama.cpp refused the options")
        chain = llama_cpp.llama_sampler_chain_default_params()
        self.sampler = llama_cpp.llama_sampler_chain_init(chain)
        for part in (llama_cpp.llama_sampler_init_temp(1.0),
                     llama_cpp.llama_sampler_init_dist(1)):
            llama_cpp.llama_sampler_chain_add(self.sampler, part)

    def decode(self, ids: list[int]) -> None:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            sys.exit("peer_llama_cpp.py: llama_decode failed")

    def run(self, prompt: list[int], count: int) -> tuple[float, float, list[int]]:
        """Seconds of the prompt and its first id, seconds of the other ids, all ids."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        start = time.perf_counter()
        self.decode(prompt)
        ids = [llama_cpp.llama_sampler_sample(self.sampler, self.context, -1)]
        middle = time.perf_counter()
        while len(ids) < count:
            self.decode([ids[-1]])
            ids.append(llama_cpp.llama_sampler_sample(self.sampler, self.context, -1))
        return middle - start, time.perf_counter() - middle, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_load(parser)
    parser.add_argument("--cache", choices=("f32", "f16"), default="f32")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.preset]
    threads = arguments.threads or len(os.sched_getaffinity(0))
    context = arguments.prompt + arguments.tokens
    prompt = [(i * 7919 + 13) % shape.vocab for i in range(arguments.prompt)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, shape, context)
        generator = Generator(path, context, threads, arguments.cache)
        runs = [generator.run(prompt, arguments.tokens) for _ in range(1 + arguments.repeats)][1:]
    for _, _, ids in runs:
        if len(ids) != arguments.tokens or not all(0 <= one < shape.vocab for one in ids):
            sys.exit("peer_llama_cpp.py: not the ids that were asked for")
    print(json.dumps({
        "program": f"llama.cpp ({llama_cpp.__version__}), fp32, cache {arguments.cache}",
        "preset": arguments.preset, "batch": 1, "threads": threads, "device": "cpu",
        "prompt": arguments.prompt, "tokens": arguments.tokens,
        **figures(shape, arguments, 4, [run[:2] for run in runs])}))


if __name__ == "__main__":
    main()
