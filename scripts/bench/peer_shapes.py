"""Sizes of the models that generation is compared at: those of model.preset, a vocabulary of 50,304
as in `stablemask bench`."""
import argparse
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    layers: int
    channels: int
    heads: int
    ffn_hidden: int
    vocab: int = 50304

    @property
    def head_dim(self) -> int:
        return self.channels // self.heads

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied by: all but the embedding, whose rows are looked up."""
        block = 4 * self.channels ** 2 + 3 * self.channels * self.ffn_hidden
        return self.layers * block + self.vocab * self.channels


SHAPES = {
    "tiny": Shape(2, 64, 4, 128, 512),
    "71m": Shape(6, 512, 8, 1536),
    "160m": Shape(12, 768, 12, 2048),
    "400m": Shape(24, 1024, 16, 2816),
    "1.4b": Shape(24, 2048, 16, 5632),
}


def add_load(parser: argparse.ArgumentParser) -> None:
    """The options that say what is generated."""
    parser.add_argument("--preset", choices=SHAPES, default="71m")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=1024, help="to generate for each prompt")
    parser.add_argument("--repeats", type=int, default=3,
                        help="the figure is the median; one more run before is not timed")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: all cores")


def figures(shape: Shape, arguments: argparse.Namespace, weight_bytes: int,
            runs: list[tuple[float, float]]) -> dict[str, float]:
    """Medians over runs of (seconds of the prompts and the first ids, seconds of the others)."""
    batch, tokens = getattr(arguments, "batch", 1), arguments.tokens
    prompts = statistics.median(first for first, _ in runs)
    step = statistics.median(rest for _, rest in runs) / (tokens - 1)
    whole = statistics.median(first + rest for first, rest in runs)
    return {
        "tokens_per_second": batch * tokens / whole, "prefill_ms": 1e3 * prompts,
        "step_ms": 1e3 * step, "decoded_tokens_per_second": batch / step,
        "weight_bytes_per_second": weight_bytes * shape.multiplied / step}
