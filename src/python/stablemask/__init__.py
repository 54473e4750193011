"""StableMask attention as an operator of PyTorch: `stablemask.attention`, and the operator itself,
`torch.ops.stablemask.attention`. Forward and backward on the CPU and on NVIDIA GPUs, torch.compile,
autocast. docs/pytorch.md of the repository has the installation and the limits."""

from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["alibi_slopes", "attention"]
__version__ = "0.1.0"

_LIBRARY = Path(__file__).with_name("_attention.so")
try:
    torch.ops.load_library(_LIBRARY)
except OSError as error:
    raise ImportError(f"stablemask: {_LIBRARY} cannot be loaded by torch {torch.__version__}; install "
                      f"the package again with this torch (docs/pytorch.md): {error}") from error

Scores = float | Sequence[float] | torch.Tensor


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *,
              gamma: Scores | None = None, p_base: Scores = 0.0, mask_length: int | None = None,
              beyond: str = "infinite", scale: float | None = None, window: int | None = None,
              alibi_slopes: Scores | None = None, key_offset: int = 0,
              document_start: torch.Tensor | None = None) -> torch.Tensor:
    """Causal attention with StableMask (Yin et al., arXiv 2402.04779), without a T x S matrix.

        softmax(A * C + P) * C @ value      A = scale * query @ key^T + ALiBi
        P[h,i,j] = p_base[h] - gamma[h] * (j - i - 1)      for i < j <= N - 1

    C is the causal mask: position i sees the positions j <= i. The last position of key is that of
    query, so T < S continues a KV cache and i = S - T + key_offset for the first row.

    query           [B,H,T,D], float32, float64 or bfloat16
    key, value      [B,Hkv,S,D] of query's dtype; H is a multiple of Hkv, S at least T
    gamma           decay of the pseudo scores per position, at least 0: a number, one a head, or a
                    tensor [H]; None: plain causal attention, without StableMask
    p_base          score of the first pseudo slot: a number, one a head, or a tensor [H]
    mask_length     N, at least 1; None: infinite, which needs gamma > 0
    beyond          rows i >= N: "infinite" gives them the mass of an infinite N, "none" no mass
    scale           None: 1 / sqrt(D)
    window          positions that a row sees, its own included; None: all
    alibi_slopes    numbers or a tensor [H]: A_ij = scale * q_i . k_j - slope * (i - j); None: none
    key_offset      position of the first key, for a cache that has dropped what no window reaches
    document_start  int64 [B,T]: first position of each row's document, S = T. Rows see their
                    document only, and the positions of the mask count from its start

    Returns [B,H,T,D] in query's dtype, with the strides of torch.empty_like(query). Differentiable
    in query, key, value and, given as tensors, in gamma and p_base. Strides are free; tensors
    that the kernels cannot read in place are copied. Under autocast query, key and value are cast.
    A number for gamma, p_base or alibi_slopes makes a tensor in each call; give tensors in a loop.

    On CUDA, bfloat16 with D a multiple of 8 and at most 256 (248 with ALiBi) runs on flash kernels;
    other inputs take O(T * S) memory and time of the plain formula.
    """
    if beyond not in ("infinite", "none"):
        raise ValueError(f'stablemask.attention: beyond must be "infinite" or "none", got {beyond!r}')
    if window is not None and window < 1:
        raise ValueError(f"stablemask.attention: window must be at least 1 or None, got {window}")
    heads = query.shape[1] if query.dim() == 4 else 1
    # Without gamma the operator refuses a tensor; the default number has no effect.
    base = p_base if gamma is not None or isinstance(p_base, torch.Tensor) else None
    return torch.ops.stablemask.attention(
        query, key, value, gamma=_per_head(gamma, heads, query), p_base=_per_head(base, heads, query),
        mask_length=mask_length, infinite_beyond=beyond == "infinite", scale=scale,
        window=window or 0, alibi_slopes=_per_head(alibi_slopes, heads, query),
        key_offset=key_offset, document_start=document_start)


def _per_head(values: Scores | None, heads: int, like: torch.Tensor) -> torch.Tensor | None:
    if values is None or isinstance(values, torch.Tensor):
        return values
    if isinstance(values, (int, float)):
        return torch.full((heads,), float(values), dtype=torch.float32, device=like.device)
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def alibi_slopes(heads: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Slopes of ALiBi (Press et al., arXiv 2108.12409), float32 [heads]: 2^(-8 (h + 1) / heads) for
    a power of two; otherwise those of the next lower power of two, then every other slope of the
    next higher one. With `gamma=alibi_slopes(heads)` the decay of the mask is that of the paper."""
    if heads < 1:
        raise ValueError(f"stablemask.alibi_slopes: heads must be at least 1, got {heads}")
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-8 * (2 * h + 1) / (2 * power)) for h in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


# Shapes and strides of the results, for torch.compile and for tensors on the device "meta".
@torch.library.register_fake("stablemask::attention_forward")
def _forward_shapes(query: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=_wide(query))


@torch.library.register_fake("stablemask::attention_backward")
def _backward_shapes(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, gamma: torch.Tensor | None, p_base: torch.Tensor | None,
                     out: torch.Tensor, lse: torch.Tensor, mask_gradients: bool,
                     *_: object) -> tuple[torch.Tensor, ...]:
    mask = (gamma, p_base) if mask_gradients else (lse.new_empty(0), lse.new_empty(0))
    return tuple(torch.empty_like(x) for x in (query, key, value, *mask))


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
