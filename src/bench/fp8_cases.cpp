#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/bench/op_cases.h"
#include "src/ops/cuda/gemm.h"
#include "stablemask/ops/fp8.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

namespace stablemask::bench {
namespace {

using namespace stablemask::ops;
using at::Tensor;

enum class Precision { kBf16, kFp8, kFp8Fast };

/// A projection [out, in] of a block.
struct Projection {
  const char* name;
  int64_t in, out;
};

std::vector<Projection> projections(const Shape& s) {
  return {{"fp8: qkv", s.channels, 3 * s.heads * s.head_dim},
          {"fp8: proj", s.heads * s.head_dim, s.channels},
          {"fp8: up", s.channels, 2 * s.hidden},
          {"fp8: down", s.hidden, s.channels}};
}

/// A slot whose scale fits x.
fp8::Slot fitted(const Tensor& x, fp8::Format format) {
  const fp8::Slot slot = fp8::make_scaling({format}, 1, 1.0, at::kCUDA).slot(0);
  slot.maximum.copy_(fp32(x).abs().max());
  fp8::fit_scale_(slot);
  return slot;
}

/// x as a factor: in FP8, and the numbers that this stands for.
struct Factor {
  Tensor bf16;
  fp8::Operand fp8;
};

Factor factor_of(int64_t rows, int64_t inner, fp8::Format format) {
  const Tensor x = random({rows, inner});
  const fp8::Slot slot = fitted(x, format);
  fp8::Matrix matrix = fp8::make_matrix(rows, inner, slot, fp8::Parts::kValues);
  fp8::quantize(x, slot, matrix);
  return {(fp32(matrix.values) * slot.inverse).to(at::kBFloat16), matrix.direct()};
}

double product_flops(int64_t m, int64_t n, int64_t k) {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

/// out = a·bᵀ, or with `onto` out += a·bᵀ in fp32. The bf16 product has its factors stored as
/// training has them: those of dx and dw are read along their rows.
Case product_case(const std::string& name, const std::array<int64_t, 3>& sizes, char direction,
                  Precision precision) {
  const auto [m, n, k] = sizes;
  const bool onto = direction == 'w';
  const Factor a = factor_of(m, k, direction == 'y' ? fp8::Format::kE4M3 : fp8::Format::kE5M2);
  const Factor b = factor_of(n, k, fp8::Format::kE4M3);
  const Tensor left = onto ? a.bf16.t().contiguous() : a.bf16,
               right = direction == 'y' ? b.bf16 : b.bf16.t().contiguous();
  Tensor out = onto ? at::zeros({m, n}, gpu(at::kFloat)) : at::empty({m, n}, gpu(at::kBFloat16));
  const Run run = [=]() mutable {
    if (precision == Precision::kBf16) {
      return cuda::gemm(out, {left, onto}, {right, direction == 'y'}, onto ? 1.0 : 0.0);
    }
    fp8::product(out, a.fp8, b.fp8, onto ? 1.0 : 0.0, {},
                 precision == Precision::kFp8 ? fp8::Sums::kPromoted : fp8::Sums::kFast);
  };
  const auto error = [=]() mutable {
    run();
    const int64_t checked = std::min<int64_t>(m, 256);
    return difference(out.narrow(0, 0, checked),
                      at::mm(fp32(a.bf16.narrow(0, 0, checked)), fp32(b.bf16).t()));
  };
  const double bytes = precision == Precision::kBf16 ? bytes_of({a.bf16, b.bf16, out})
                                                     : bytes_of({a.fp8.values, b.fp8.values, out});
  return {name, bytes, error, run, product_flops(m, n, k)};
}

CaseMaker product_maker(size_t index, char direction, Precision precision) {
  return [=](const Shape& s) {
    const Projection p = projections(s)[index];
    const int64_t t = s.tokens();
    const std::array<int64_t, 3> sizes = direction == 'y' ? std::array<int64_t, 3>{t, p.out, p.in}
                                         : direction == 'x'
                                             ? std::array<int64_t, 3>{t, p.in, p.out}
                                             : std::array<int64_t, 3>{p.out, p.in, t};
    const char* kind = precision == Precision::kBf16  ? ", bf16"
                       : precision == Precision::kFp8 ? ", fp8"
                                                      : ", fp8 fast";
    const std::string what = direction == 'y' ? " y" : direction == 'x' ? " dx" : " dw";
    return product_case(p.name + what + kind, sizes, direction, precision);
  };
}

/// A producer: `fill` writes an FP8 matrix [rows, columns] and its twin from `inputs`; `plain` is
/// what it quantises.
Case producer(const std::string& name, const Tensor& plain, double bytes,
              const std::function<void(const fp8::Slot&, fp8::Matrix&)>& fill) {
  const fp8::Slot slot = fitted(plain, fp8::Format::kE4M3);
  fp8::Matrix out = fp8::make_matrix(plain.size(0), plain.size(1), slot, fp8::Parts::kBoth);
  const Run run = [=]() mutable { fill(slot, out); };
  const auto error = [=]() mutable {
    run();
    fp8::Matrix expected = fp8::make_matrix(plain.size(0), plain.size(1), slot, fp8::Parts::kBoth);
    fp8::quantize(plain, slot, expected, Kernels::kReference);
    return difference(out.values, expected.values) + difference(out.twin, expected.twin);
  };
  return {name, bytes + bytes_of({out.values, out.twin}), error, run};
}

Case quantize_activations(const Shape& s) {
  const Tensor x = random({s.tokens(), s.channels});
  return producer("fp8: quantize [rows, C]", x, bytes_of({x}),
                  [x](const fp8::Slot& slot, fp8::Matrix& out) { fp8::quantize(x, slot, out); });
}

Case quantize_weight(const Shape& s) {
  const Tensor x = random({2 * s.hidden, s.channels});
  return producer("fp8: quantize [2F, C]", x, bytes_of({x}),
                  [x](const fp8::Slot& slot, fp8::Matrix& out) { fp8::quantize(x, slot, out); });
}

Case quantize_norm(const Shape& s) {
  const Tensor x = random({s.tokens(), s.channels}), residual = random(x.sizes());
  const Tensor weight = random({s.channels});
  const Tensor sum = at::empty_like(x), rstd = at::empty({s.tokens()}, gpu(at::kFloat));
  const auto fill = [=](const fp8::Slot& slot, fp8::Matrix& out) {
    Tensor to = sum, factors = rstd;
    fp8::quantize_rms_norm(x, residual, weight, 1e-5, slot, to, factors, out);
  };
  return producer("fp8: rms_norm", rms_norm(x + residual, weight, 1e-5),
                  bytes_of({x, residual, sum}), fill);
}

Case quantize_swiglu(const Shape& s) {
  const Tensor gate_up = random({s.tokens(), 2 * s.hidden});
  return producer(
      "fp8: swiglu", swiglu(gate_up), bytes_of({gate_up}),
      [=](const fp8::Slot& slot, fp8::Matrix& out) { fp8::quantize_swiglu(gate_up, slot, out); });
}

Case quantize_swiglu_backward(const Shape& s) {
  const Tensor gate_up = random({s.tokens(), 2 * s.hidden}).requires_grad_();
  const Tensor dout = random({s.tokens(), s.hidden}), given = gate_up.detach();
  swiglu(gate_up).backward(dout);
  return producer("fp8: swiglu backward", gate_up.grad(), bytes_of({given, dout}),
                  [=](const fp8::Slot& slot, fp8::Matrix& out) {
                    fp8::quantize_swiglu_backward(dout, given, slot, out);
                  });
}

Case up_swiglu(const Shape& s) {
  const int64_t rows = s.tokens();
  const Factor x = factor_of(rows, s.channels, fp8::Format::kE4M3);
  const Factor weight = factor_of(2 * s.hidden, s.channels, fp8::Format::kE4M3);
  Tensor gate_up = at::empty({rows, 2 * s.hidden}, gpu(at::kBFloat16));
  fp8::product(gate_up, x.fp8, weight.fp8);
  const fp8::Slot slot = fitted(swiglu(gate_up), fp8::Format::kE4M3);
  fp8::Matrix out = fp8::make_matrix(rows, s.hidden, slot, fp8::Parts::kBoth);
  const Run run = [=]() mutable {
    fp8::product_swiglu(gate_up, x.fp8, weight.fp8, slot, out, fp8::Sums::kFast);
  };
  const auto error = [=]() mutable {
    run();
    fp8::Matrix expected = fp8::make_matrix(rows, s.hidden, slot, fp8::Parts::kBoth);
    fp8::quantize_swiglu(gate_up, slot, expected);
    const Tensor exact = at::mm(fp32(x.bf16.narrow(0, 0, 256)), fp32(weight.bf16).t());
    return difference(gate_up.narrow(0, 0, 256), exact) + difference(out.values, expected.values) +
           difference(out.twin, expected.twin);
  };
  return {"fp8: up + swiglu",
          bytes_of({x.fp8.values, weight.fp8.values, gate_up, out.values, out.twin}), error, run,
          product_flops(rows, 2 * s.hidden, s.channels)};
}

Case qkv_rope(const Shape& s) {
  const int64_t heads = 3 * s.heads, columns = heads * s.head_dim;
  const Factor x = factor_of(s.tokens(), s.channels, fp8::Format::kE4M3);
  const Factor weight = factor_of(columns, s.channels, fp8::Format::kE4M3);
  const RopeInputs inputs{s.head_dim, at::arange(s.length, gpu(at::kLong)),
                          rope_table(s.length, s.head_dim, 1e4).to(at::kCUDA)};
  Tensor packed = at::empty({s.batch, s.length, heads, s.head_dim}, gpu(at::kBFloat16));
  const Run run = [=]() mutable {
    fp8::product_rope(packed, x.fp8, weight.fp8, 2 * s.heads, inputs, fp8::Sums::kFast);
  };
  const auto error = [=]() mutable {
    run();
    const Tensor plain = at::mm(fp32(x.bf16.narrow(0, 0, s.length)), fp32(weight.bf16).t());
    return difference(packed.narrow(0, 0, 1),
                      reference::rope(plain.view({1, s.length, heads, s.head_dim}), 2 * s.heads,
                                      s.head_dim, inputs.positions, inputs.table));
  };
  return {"fp8: qkv + rope", bytes_of({x.fp8.values, weight.fp8.values, packed}), error, run,
          product_flops(s.tokens(), columns, s.channels)};
}

}  // namespace

std::vector<CaseMaker> fp8_cases() {
  std::vector<CaseMaker> all = {
      quantize_activations,     quantize_weight, quantize_norm, quantize_swiglu,
      quantize_swiglu_backward, up_swiglu,       qkv_rope};
  for (size_t index = 0; index < 4; ++index) {
    for (const char direction : {'y', 'x', 'w'}) {
      for (const auto precision : {Precision::kBf16, Precision::kFp8, Precision::kFp8Fast}) {
        all.push_back(product_maker(index, direction, precision));
      }
    }
  }
  return all;
}

}  // namespace stablemask::bench
