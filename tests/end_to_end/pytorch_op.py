"""The operator of src/python against the literal formula: results, gradients, torch.compile, autocast,
errors, and the example with transformers. pytorch_op.sh runs it.

    pytorch_op.py FOLDER EXAMPLE [TEST...]

FOLDER contains the package `stablemask`, EXAMPLE is src/python/examples/llama.py.
"""

import importlib.util
import shutil
import sys
import sysconfig
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FOLDER, EXAMPLE = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
sys.path.insert(0, str(FOLDER))

import stablemask  # noqa: E402

torch.set_num_threads(1)
Options = dict[str, Any]
Inputs = tuple[list[torch.Tensor], Options]
ENDLESS = 3000  # columns of the literal formula for an infinite mask length: e^-150 remains

# (B, H, Hkv, T, S, D), options. Two heads' numbers are repeated for all heads.
GAMMA, BASE = [0.05, 1.0], [0.0, -1.5]
CASES: dict[str, tuple[tuple[int, ...], Options]] = {
    "causal": ((2, 2, 2, 13, 13, 8), {}),
    "one": ((1, 2, 1, 1, 1, 8), dict(gamma=GAMMA, p_base=BASE, mask_length=1)),
    "longer-mask": ((2, 2, 2, 13, 13, 8), dict(gamma=GAMMA, p_base=BASE, mask_length=29)),
    "shorter-mask": ((1, 4, 2, 17, 17, 16), dict(gamma=GAMMA, p_base=BASE, mask_length=7)),
    "no-mass-beyond": ((1, 2, 1, 17, 17, 8), dict(gamma=[0.0, 2.0], p_base=BASE, mask_length=7,
                                                  beyond="none", scale=0.3)),
    "infinite": ((2, 4, 4, 11, 11, 24), dict(gamma=GAMMA, p_base=BASE)),
    "alibi": ((2, 4, 2, 23, 23, 16), dict(gamma=GAMMA, mask_length=23, alibi_slopes=[0.5, 0.1])),
    "alibi-causal": ((1, 2, 2, 9, 9, 8), dict(alibi_slopes=[0.5, 0.1])),
    "window": ((1, 4, 2, 19, 19, 8), dict(gamma=GAMMA, p_base=BASE, mask_length=12, window=5)),
    "cache": ((2, 4, 2, 3, 14, 8), dict(gamma=GAMMA, p_base=BASE, mask_length=13)),
    "cache-alibi": ((2, 2, 2, 1, 14, 8), dict(gamma=GAMMA, alibi_slopes=[0.5, 0.1])),
    "cache-window": ((1, 2, 2, 2, 6, 8), dict(gamma=GAMMA, p_base=BASE, mask_length=16, window=4,
                                              key_offset=7)),
    "documents": ((2, 4, 2, 12, 12, 8), dict(gamma=GAMMA, p_base=BASE, mask_length=9,
                                             alibi_slopes=[0.5, 0.1])),
}


def literal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *,
            gamma: torch.Tensor | None = None, p_base: torch.Tensor | None = None,
            mask_length: int | None = None, beyond: str = "infinite", scale: float | None = None,
            window: int | None = None, alibi_slopes: torch.Tensor | None = None,
            key_offset: int = 0, document_start: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(A * C + P) * C @ value with every pseudo slot as a column."""
    (rows, dims), (keys, device) = query.shape[2:], (key.shape[2], query.device)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    width = keys + (ENDLESS if gamma is not None else 0)
    j = torch.arange(key_offset, key_offset + width, device=device)
    i = (j[keys - 1] - rows + 1 + torch.arange(rows, device=device)).view(1, 1, -1, 1)
    start = torch.zeros_like(i) if document_start is None else document_start[:, None, :, None]
    real = (j <= i) & (j >= start) & (j > i - (window or 1 << 40))
    scores = query @ key.mT * (scale or dims ** -0.5)
    scores = torch.nn.functional.pad(scores, (0, width - keys))
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.to(scores.dtype).view(-1, 1, 1) * (i - j)
    scores = torch.where(real, scores, -torch.inf)
    if gamma is not None:
        decay = gamma.to(scores.dtype).view(-1, 1, 1)
        base = 0 if p_base is None else p_base.to(scores.dtype).view(-1, 1, 1)
        end = torch.full_like(i, 1 << 40 if mask_length is None else mask_length)
        if beyond == "infinite":
            end = torch.where(i - start >= end, 1 << 40, end)
        slots = (j > i) & (j - start < end)
        scores = torch.where(slots, base - decay * (j - i - 1), scores)
    weights = torch.where(real, torch.softmax(scores, -1), 0)[..., :keys]
    return weights @ value


def make(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu", grow: int = 1,
         layout: str = "tokens") -> Inputs:
    """query, key, value that require gradients, and the options as tensors. `grow` multiplies D."""
    (batch, heads, kv_heads, rows, keys, dims), given = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    dims *= grow

    def normal(heads: int, length: int) -> torch.Tensor:
        x = torch.randn(batch, length, heads, dims, generator=generator).to(device, dtype)
        x = x.transpose(1, 2) if layout == "tokens" else x.transpose(1, 2).contiguous()
        return x.requires_grad_()

    inputs = [normal(heads, rows), normal(kv_heads, keys), normal(kv_heads, keys)]
    options = dict(given)
    for field in ("gamma", "p_base", "alibi_slopes"):
        if field in given:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            options[field] = torch.tensor(given[field], dtype=wide, device=device).repeat(heads // 2)
    for field in ("gamma", "p_base"):
        if field in given:
            options[field].requires_grad_()
    if name == "documents":
        starts = [[0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 3, 3], [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 10, 10]]
        options["document_start"] = torch.tensor(starts, device=device)
    return inputs, options


def leaves(inputs: Inputs) -> list[torch.Tensor]:
    return inputs[0] + [x for x in inputs[1].values()
                        if isinstance(x, torch.Tensor) and x.requires_grad]


def run(function: Callable[..., torch.Tensor], inputs: Inputs) -> list[torch.Tensor]:
    """The result and the gradients of all leaves."""
    out = function(*inputs[0], **inputs[1])
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    loss = (out.double() * weights.to(out.device)).sum()
    return [out.detach(), *torch.autograd.grad(loss, leaves(inputs))]


def in_float64(inputs: Inputs) -> Inputs:
    def wide(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        return x.detach().double().requires_grad_(x.requires_grad)

    return [wide(x) for x in inputs[0]], {name: wide(x) for name, x in inputs[1].items()}


def operands(inputs: Inputs) -> tuple[list[torch.Tensor], Options]:
    """Arguments of torch.ops.stablemask.attention."""
    options = dict(inputs[1])
    options["infinite_beyond"] = options.pop("beyond", "infinite") == "infinite"
    return inputs[0], options


class OperatorTest(unittest.TestCase):
    device = "cpu"
    grow = 1
    bfloat16_tolerance = 2e-2

    def compare(self, ours: list[torch.Tensor], truth: list[torch.Tensor], tolerance: float) -> None:
        """Relative to the largest element of each tensor."""
        for x, y in zip(ours, truth, strict=True):
            error = (x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1e-3)
            self.assertLess(error.item(), tolerance)

    def same(self, ours: list[torch.Tensor], other: list[torch.Tensor]) -> None:
        """Results and gradients of the same kernels; those of GPUs add gradients in any order."""
        self.assertTrue(torch.equal(ours[0], other[0]))
        self.compare(ours, other, 1e-2 if self.device == "cuda" else 1e-30)

    def compare_with_formula(self, dtype: torch.dtype, tolerance: float,
                             layout: str = "tokens") -> None:
        for name in CASES:
            with self.subTest(name, dtype=dtype, layout=layout):
                inputs = make(name, dtype, self.device, self.grow, layout)
                truth = run(literal, in_float64(inputs))
                results = run(stablemask.attention, inputs)
                self.compare(results, truth, tolerance)
                for x, like in zip(results, [inputs[0][0], *leaves(inputs)], strict=True):
                    self.assertEqual((x.dtype, x.stride()), (like.dtype, like.stride()))

    def test_bfloat16_agrees_with_the_formula(self) -> None:
        self.compare_with_formula(torch.bfloat16, self.bfloat16_tolerance)

    def test_float32_agrees_with_the_formula(self) -> None:
        self.compare_with_formula(torch.float32, 2e-5)
        self.compare_with_formula(torch.float32, 2e-5, layout="heads")

    def test_views_that_kernels_cannot_read_are_copied(self) -> None:
        inputs, options = make("shorter-mask", torch.bfloat16, self.device, self.grow)
        query, key, value = (x.detach() for x in inputs)
        wide = torch.cat([query.new_zeros(*query.shape[:-1], 1), query], -1)
        with torch.no_grad():
            expected = stablemask.attention(query, key[:, :1], value[:, :1], **options)
            odd = stablemask.attention(wide[..., 1:], key[:, :1].expand_as(key),
                                       value[:, :1].mT.contiguous().mT.expand_as(value), **options)
        self.assertTrue(torch.equal(odd, expected))

    def test_compiled_as_one_graph(self) -> None:
        for name in ("causal", "longer-mask", "alibi", "cache-window", "documents"):
            for dynamic in (False, True):
                with self.subTest(name, dynamic=dynamic):
                    torch._dynamo.reset()
                    compiled = torch.compile(stablemask.attention, fullgraph=True,
                                             backend="aot_eager", dynamic=dynamic)
                    inputs = make(name, torch.bfloat16, self.device, self.grow)
                    ours, expected = run(compiled, inputs), run(stablemask.attention, inputs)
                    self.same(ours, expected)
                    self.assertEqual([x.stride() for x in ours], [x.stride() for x in expected])

    def test_operator_keeps_the_rules_of_torch(self) -> None:
        for name, checks in {"causal": None, "no-mass-beyond": None, "alibi": None,
                             "documents": ("test_schema", "test_faketensor")}.items():
            for layout in ("tokens", "heads"):
                arguments, options = operands(make(name, torch.float32, self.device, layout=layout))
                with self.subTest(name, layout=layout):
                    torch.library.opcheck(torch.ops.stablemask.attention.default, arguments, options,
                                          **({"test_utils": checks} if checks else {}))

    def test_parts_of_the_operator_keep_the_rules_of_torch(self) -> None:
        inputs, options = make("window", torch.float32, self.device)
        packed = torch.cat(inputs, 1).detach()
        query, key, value = packed.split([x.shape[1] for x in inputs], 1)
        gamma, p_base = options["gamma"].detach(), options["p_base"].detach()
        rest = (12, True, None, 5, None, 0, None)
        parts = torch.ops.stablemask
        arguments = (query, key, value, gamma, p_base, *rest)
        torch.library.opcheck(parts.attention_forward.default, arguments)
        out, lse = parts.attention_forward(*arguments)
        for mask_gradients in (False, True):
            torch.library.opcheck(parts.attention_backward.default,
                                  (out, query, key, value, gamma, p_base, out, lse, mask_gradients,
                                   *rest))

    def test_autocast_casts_query_key_and_value(self) -> None:
        inputs = make("longer-mask", torch.float32, self.device, self.grow)
        narrow = ([x.detach().bfloat16().requires_grad_() for x in inputs[0]], inputs[1])
        expected = run(stablemask.attention, narrow)

        def autocast(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
            with torch.autocast(self.device, dtype=torch.bfloat16):
                return stablemask.attention(*tensors, **options)

        results = run(autocast, inputs)
        self.assertEqual(results[0].dtype, torch.bfloat16)
        self.assertEqual([x.dtype for x in results[1:]], [x.dtype for x in leaves(inputs)])
        self.same(results, expected)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            inside = run(stablemask.attention, narrow)
        self.same(inside, expected)

    def test_without_gradients(self) -> None:
        inputs, options = make("alibi", torch.bfloat16, self.device, self.grow)
        expected = stablemask.attention(*inputs, **options)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                result = stablemask.attention(*inputs, **options)
            self.assertFalse(result.requires_grad)
            self.assertTrue(torch.equal(result, expected))

    def test_second_derivatives_are_refused(self) -> None:
        inputs, options = make("causal", torch.float32, self.device)
        out = stablemask.attention(*inputs, **options)
        first, = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "stablemask::attention_backward"):
            first.sum().backward()


class CpuTest(OperatorTest):
    def test_float64_agrees_with_the_formula(self) -> None:
        self.compare_with_formula(torch.float64, 1e-10)

    def test_numbers_and_lists_are_taken_for_every_head(self) -> None:
        (query, key, value), _ = make("longer-mask")
        full = torch.full((2,), 0.5)
        self.assertTrue(torch.equal(
            stablemask.attention(query, key, value, gamma=0.5, p_base=[1, 2], alibi_slopes=0.5),
            stablemask.attention(query, key, value, gamma=full, p_base=torch.tensor([1.0, 2.0]),
                                 alibi_slopes=full)))
        half = full.bfloat16()
        self.assertTrue(torch.equal(stablemask.attention(query, key, value, gamma=half),
                                    stablemask.attention(query, key, value, gamma=full)))

    def test_slopes_of_alibi(self) -> None:
        self.assertEqual(stablemask.alibi_slopes(4).tolist(), [2.0 ** -p for p in (2, 4, 6, 8)])
        self.assertEqual(stablemask.alibi_slopes(6).tolist(),
                         [2.0 ** -p for p in (2, 4, 6, 8, 1, 3)])

    def test_errors_name_the_argument(self) -> None:
        (query, key, value), _ = make("causal", torch.float32)
        attention = stablemask.attention
        wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
            (TypeError, "query must be float32, float64 or bfloat16, got .*[Hh]alf",
             lambda: attention(query.half(), key.half(), value.half())),
            (TypeError, "key must have query's dtype", lambda: attention(query, key.double(), value)),
            (ValueError, r"key \[B,Hkv,S,D\].*got \[2, 2, 13, 8\]",
             lambda: attention(query, key[0], value[0])),
            (ValueError, "no dimension may be 0", lambda: attention(query[:0], key[:0], value[:0])),
            (ValueError, "agree in batch and head dimension",
             lambda: attention(query, key[..., :4], value[..., :4])),
            (ValueError, "key has 12 positions, query has 13",
             lambda: attention(query, key[:, :, 1:], value[:, :, 1:])),
            (ValueError, r"gamma must be \[H\] = \[2\], got \[3\]",
             lambda: attention(query, key, value, gamma=[1.0, 1.0, 1.0])),
            (RuntimeError, "gamma .* must not be negative",
             lambda: attention(query, key, value, gamma=-1.0)),
            (RuntimeError, "gamma 0 gives an infinite mask length",
             lambda: attention(query, key, value, gamma=0.0)),
            (ValueError, "p_base and mask_length need gamma",
             lambda: attention(query, key, value, mask_length=5)),
            (RuntimeError, "mask length must be at least 1",
             lambda: attention(query, key, value, gamma=1.0, mask_length=0)),
            (ValueError, "beyond", lambda: attention(query, key, value, beyond="causal")),
            (ValueError, "window must be at least 1", lambda: attention(query, key, value, window=0)),
            (RuntimeError, "key_offset 3 leaves out keys",
             lambda: attention(query, key, value, key_offset=3)),
            (RuntimeError, r"document_start must be int64 \[B, T\]",
             lambda: attention(query, key, value, document_start=torch.zeros(2, 13))),
            (ValueError, "alibi_slopes have no gradient",
             lambda: attention(query, key, value, alibi_slopes=torch.ones(2).requires_grad_())),
        ]
        for kind, text, call in wrong:
            with self.subTest(text), self.assertRaisesRegex(kind, text):
                call()

    @unittest.skipUnless(importlib.util.find_spec("transformers"),
                         "transformers is not installed: scripts/setup.sh --dev")
    def test_llama_of_transformers(self) -> None:
        spec = importlib.util.spec_from_file_location("llama", EXAMPLE)
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        from transformers import LlamaConfig, LlamaForCausalLM
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=None)).eval()
        ids = torch.randint(2, 64, (2, 9))
        causal = model(ids).logits
        example.use_stable_mask(model, gamma=1.0, p_base=-1e4, mask_length=32)
        self.compare([model(ids).logits], [causal], 1e-5)  # a mask without weight
        example.use_stable_mask(model, gamma=1.0, p_base=0.0, mask_length=32)
        masked = model(ids).logits
        self.assertGreater((masked - causal).abs().max().item(), 1e-3)
        model(ids, labels=ids).loss.backward()
        self.assertGreater(model.model.layers[0].self_attn.k_proj.weight.grad.abs().max().item(), 0)
        greedy = model.generate(ids, max_new_tokens=5, do_sample=False)
        self.assertTrue(torch.equal(greedy[:, 9:], model(greedy[:, :-1]).logits[:, 8:].argmax(-1)))
        padded = torch.ones_like(ids)
        padded[0, 0] = 0
        with self.assertRaisesRegex(ValueError, "padding"):
            model(ids, attention_mask=padded)


@unittest.skipUnless(torch.cuda.is_available(), "no GPU")
class GpuTest(OperatorTest):
    device = "cuda"
    grow = 8  # head dimensions of flash kernels
    bfloat16_tolerance = 4e-2

    def test_long_rows_agree_with_the_formula(self) -> None:
        for name, dims in (("infinite", 64), ("alibi", 128), ("shorter-mask", 64)):
            for heads, kv_heads in ((4, 4), (4, 2)):
                CASES["long"] = ((2, heads, kv_heads, 700, 700, dims), CASES[name][1])
                with self.subTest(name, dims=dims, kv_heads=kv_heads):
                    inputs = make("long", torch.bfloat16, self.device)
                    self.compare(run(stablemask.attention, inputs),
                                 run(literal, in_float64(inputs)), self.bfloat16_tolerance)
        del CASES["long"]

    @unittest.skipUnless(
        shutil.which("gcc") and Path(sysconfig.get_path("include"), "Python.h").exists(),
        "Triton needs gcc and Python's headers")
    def test_inductor(self) -> None:
        compiled = torch.compile(stablemask.attention, fullgraph=True)
        inputs = make("alibi", torch.bfloat16, self.device, self.grow)
        self.compare(run(compiled, inputs), run(stablemask.attention, inputs), 1e-2)

    def test_tensors_of_other_devices_are_named(self) -> None:
        (query, key, value), _ = make("causal", torch.bfloat16, self.device, self.grow)
        with self.assertRaisesRegex(ValueError, "key must be on query's device cuda:0, got cpu"):
            stablemask.attention(query, key.cpu(), value)
        with self.assertRaisesRegex(ValueError, "gamma must be on query's device cuda:0, got cpu"):
            stablemask.attention(query, key, value, gamma=torch.ones(2))


def load_tests(loader: unittest.TestLoader, *_: Any) -> unittest.TestSuite:
    if len(sys.argv) > 3:
        return loader.loadTestsFromNames(sys.argv[3:], sys.modules[__name__])
    return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in (CpuTest, GpuTest))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
