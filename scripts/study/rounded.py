"""Likelihood of a text under a model whose block projections multiply rounded numbers; needs torch.

    python3 scripts/study/rounded.py CHECKPOINT SHARD

The model is that of scripts/bench/peer_torch.py, in fp32, on a GPU with products in TF32, which holds
rounded numbers exactly. Inputs and weights of the projections (qkv, proj, gate and up, down) are rounded
to a format, each tensor with one scale:

  int8, int6, int4  round(x / s), s = max |x| / (2^(bits − 1) − 1)
  fp8               e4m3, after a multiplication by the largest power of two with which max |x| stays
                    within 448 (docs/fp8.md)

Scales are those of the tensor itself; an input is that of eight windows. Embedding, head, norms,
attention and the residual stream are not rounded. Prints an object with the sum of NLL without
rounding ("none") and for each format with rounded "weights", "inputs" and "both", and with the largest
number of each projection's input in units of its root mean square ("outliers", by block, four each).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import peer_torch  # noqa: E402

FORMATS = ("int8", "int6", "int4", "fp8")


def rounded(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the format, as fp32, and what to multiply them by to get near x."""
    largest = x.abs().max().clamp_min(1e-30)
    if kind == "fp8":
        scale = torch.exp2(torch.floor(torch.log2(448.0 / largest)))
        return (x * scale).to(torch.float8_e4m3fn).to(x.dtype), 1 / scale
    step = largest / (2 ** (int(kind[3:]) - 1) - 1)
    return torch.round(x / step), step


class Projections(TorchFunctionMode):
    """While it is entered, the products by these weights are of rounded factors."""

    def __init__(self, weights: list[torch.Tensor], kind: str, what: str):
        super().__init__()
        self.weights = {id(weight): rounded(weight, kind) if what != "inputs" else (weight, 1.0)
                        for weight in weights}
        self.kind = kind if what != "weights" else None

    def __torch_function__(self, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        if function is not F.linear or id(args[1]) not in self.weights:
            return function(*args, **(kwargs or {}))
        x, x_scale = rounded(args[0], self.kind) if self.kind else (args[0], 1.0)
        weight, weight_scale = self.weights[id(args[1])]
        return F.linear(x, weight) * (x_scale * weight_scale)


class Outliers(TorchFunctionMode):
    """The largest number of each projection's inputs, in units of its root mean square."""

    def __init__(self, weights: list[torch.Tensor]):
        super().__init__()
        self.largest = {id(weight): weight.new_zeros(()) for weight in weights}

    def __torch_function__(self, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        if function is F.linear and id(args[1]) in self.largest:
            ratio = args[0].abs().max() / args[0].square().mean().sqrt()
            self.largest[id(args[1])] = torch.maximum(ratio, self.largest[id(args[1])])
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def main() -> None:
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, model = peer_torch.load_checkpoint(Path(sys.argv[1]), device)
    text = peer_torch.read_shard(sys.argv[2]).to(device)
    weights = [weight for block in model.blocks for weight in block.parameters() if weight.dim() == 2]
    outliers = Outliers(weights)
    with outliers:
        nll = {"none": peer_torch.text_nll(shape, model, text)}
    for kind in FORMATS:
        for what in ("weights", "inputs", "both"):
            with Projections(weights, kind, what):
                nll[f"{kind} {what}"] = peer_torch.text_nll(shape, model, text)
    print(json.dumps({"tokens": len(text), "nll": nll,
                      "outliers": [round(value.item(), 2) for value in outliers.largest.values()]}))


if __name__ == "__main__":
    main()
