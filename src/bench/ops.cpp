// ms: median with the inputs evicted from L2 before each run. GB/s counts each input and each
// output once, the minimum that the kernel must move; TFLOP/s counts the GEMM's multiplications and
// additions.
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "src/bench/bench.h"
#include "src/bench/gpu_timing.h"
#include "src/bench/op_cases.h"
#include "src/ops/cuda/gemm.h"
#include "src/ops/cuda/projections.h"
#include "src/ops/kernels.h"
#include "stablemask/base/stop.h"
#include "stablemask/ops/ema.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

namespace stablemask::bench {
namespace {

using namespace stablemask::ops;
using at::Tensor;

constexpr double kPeakGBs = 3000.0;  // H100, device-to-device copy, bytes read and written
constexpr int64_t kCheckedRows = 256;

constexpr Shape kShapes[] = {{"160M 32x1024", 32, 1024, 12, 768, 2048, 12, 64, 50304},
                             {"1.4B 8x2048", 8, 2048, 24, 2048, 5632, 16, 128, 50304}};

Tensor head(const Tensor& x) { return x.narrow(0, 0, std::min(kCheckedRows, x.size(0))); }

Case rms_norm_forward(const Shape& s) {
  const Tensor x = random({s.tokens(), s.channels}), residual = random(x.sizes());
  const Tensor weight = random({s.channels});
  Tensor sum = at::empty_like(x), y = at::empty_like(x);
  Tensor rstd = at::empty({s.tokens()}, gpu(at::kFloat));
  const Run run = [=]() mutable {
    cuda::rms_norm_forward(x, residual, weight, 1e-5, sum, y, rstd);
  };
  const auto error = [=]() mutable {
    run();
    const auto truth = reference::rms_norm(fp32(head(sum)), fp32(weight), 1e-5);
    return std::max(difference(head(y), truth), difference(sum, fp32(x) + fp32(residual)));
  };
  return {"rms_norm + residual", bytes_of({x, residual, sum, y}), error, run};
}

Case rms_norm_backward(const Shape& s) {
  const Tensor x = random({s.tokens(), s.channels}), dy = random(x.sizes()),
               dsum = random(x.sizes());
  const Tensor weight = random({s.channels});
  const Tensor rstd = at::rsqrt(fp32(x).square().mean(1));
  Tensor dx = at::empty_like(x), dw = at::zeros({s.channels}, gpu(at::kFloat));
  const Run run = [=]() mutable { cuda::rms_norm_backward(dy, dsum, x, weight, rstd, dx, dw); };
  const auto error = [=]() mutable {
    run();
    const Tensor normed = fp32(x) * rstd.unsqueeze(1);
    const Tensor dw_error = (fp32(dy) * normed).sum(0);
    const Tensor g = fp32(head(dy)) * fp32(weight), n = head(normed);
    const Tensor true_dx = head(rstd).unsqueeze(1) * (g - n * (g * n).mean(1, true)) + head(dsum);
    return std::max(difference(head(dx), true_dx), difference(dw, dw_error));
  };
  return {"rms_norm backward", bytes_of({x, dy, dsum, dx}), error, run};
}

Case swiglu_forward(const Shape& s) {
  const Tensor gate_up = random({s.tokens(), 2 * s.hidden});
  Tensor out = random({s.tokens(), s.hidden});
  const Run run = [=]() mutable { cuda::swiglu_forward(gate_up, out); };
  const auto error = [=]() mutable {
    run();
    return difference(head(out), reference::swiglu(fp32(head(gate_up))));
  };
  return {"swiglu", bytes_of({gate_up, out}), error, run};
}

Case swiglu_backward(const Shape& s) {
  const Tensor gate_up = random({s.tokens(), 2 * s.hidden});
  const Tensor dout = random({s.tokens(), s.hidden});
  Tensor grad = at::empty_like(gate_up);
  const Run run = [=]() mutable { cuda::swiglu_backward(dout, gate_up, grad); };
  const auto error = [=]() mutable {
    run();
    const Tensor in = fp32(head(gate_up)).requires_grad_(true);
    reference::swiglu(in).backward(fp32(head(dout)));
    return difference(head(grad), in.grad());
  };
  return {"swiglu backward", bytes_of({gate_up, dout, grad}), error, run};
}

Case rope(const Shape& s) {
  Tensor packed = random({s.batch, s.length, 3 * s.heads, s.head_dim});
  const Tensor table = rope_table(s.length, s.head_dim, 10000.0).to(at::kCUDA);
  const Tensor positions = at::arange(s.length, gpu(at::kLong));
  const Run run = [=]() mutable {
    cuda::rope_(packed, 2 * s.heads, s.head_dim, positions, table, /*inverse=*/false);
  };
  const auto error = [=]() mutable {
    const Tensor truth =
        reference::rope(fp32(packed.narrow(0, 0, 1)), 2 * s.heads, s.head_dim, positions, table);
    run();
    return difference(packed.narrow(0, 0, 1), truth);
  };
  return {"rope, packed", 2.0 / 3.0 * 2.0 * bytes_of({packed}), error, run};
}

double gemm_flops(int64_t rows, int64_t inner, int64_t columns) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(inner) *
         static_cast<double>(columns);
}

/// cuBLASLt's GEMM alone, the baseline of the fused projections.
Case plain_gemm(const char* name, int64_t rows, int64_t inner, int64_t columns) {
  const Tensor x = random({rows, inner}), weight = random({columns, inner});
  Tensor out = at::empty({rows, columns}, gpu(at::kBFloat16));
  const Run run = [=]() mutable { cuda::gemm(out, {x}, {weight, /*transposed=*/true}); };
  const auto error = [=]() mutable {
    run();
    return difference(head(out), at::mm(fp32(head(x)), fp32(weight).t()));
  };
  return {name, bytes_of({x, weight, out}), error, run, gemm_flops(rows, inner, columns)};
}

Case swiglu_projection(const Shape& s) {
  const Tensor x = random({s.tokens(), s.channels}), weight = random({2 * s.hidden, s.channels});
  Tensor gate_up = at::empty({s.tokens(), 2 * s.hidden}, gpu(at::kBFloat16));
  Tensor out = at::empty({s.tokens(), s.hidden}, gpu(at::kBFloat16));
  const Run run = [=]() mutable { cuda::swiglu_projection(x, weight, gate_up, out); };
  const auto error = [=]() mutable {
    run();
    const Tensor truth = at::mm(fp32(head(x)), fp32(weight).t());
    return std::max(difference(head(gate_up), truth),
                    difference(head(out), reference::swiglu(fp32(head(gate_up)))));
  };
  return {"projection + swiglu", bytes_of({x, weight, gate_up, out}), error, run,
          gemm_flops(s.tokens(), s.channels, 2 * s.hidden)};
}

Case swiglu_projection_backward(const Shape& s) {
  const Tensor dy = random({s.tokens(), s.channels}), weight = random({s.channels, s.hidden});
  const Tensor gate_up = random({s.tokens(), 2 * s.hidden});
  Tensor grad = at::empty_like(gate_up);
  const Run run = [=]() mutable { cuda::swiglu_projection_backward(dy, weight, gate_up, grad); };
  const auto error = [=]() mutable {
    run();
    const Tensor in = fp32(head(gate_up)).requires_grad_(true);
    reference::swiglu(in).backward(at::mm(fp32(head(dy)), fp32(weight)));
    return difference(head(grad), in.grad());
  };
  return {"projection + swiglu bwd", bytes_of({dy, weight, gate_up, grad}), error, run,
          gemm_flops(s.tokens(), s.channels, s.hidden)};
}

Case rope_projection(const Shape& s) {
  const int64_t columns = 3 * s.heads * s.head_dim;
  const Tensor x = random({s.tokens(), s.channels}), weight = random({columns, s.channels});
  const Tensor table = rope_table(s.length, s.head_dim, 10000.0).to(at::kCUDA);
  const Tensor positions = at::arange(s.length, gpu(at::kLong));
  Tensor packed = at::empty({s.batch, s.length, 3 * s.heads, s.head_dim}, gpu(at::kBFloat16));
  const Run run = [=]() mutable {
    cuda::rope_projection(x, weight, 2 * s.heads, positions, table, packed);
  };
  const auto error = [=]() mutable {
    run();
    const Tensor plain = at::mm(fp32(x.narrow(0, 0, s.length)), fp32(weight).t());
    const Tensor truth = reference::rope(plain.view({1, s.length, 3 * s.heads, s.head_dim}),
                                         2 * s.heads, s.head_dim, positions, table);
    return difference(packed.narrow(0, 0, 1), truth);
  };
  return {"projection + rope", bytes_of({x, weight, packed}), error, run,
          gemm_flops(s.tokens(), s.channels, columns)};
}

Case cross_entropy(const Shape& s, int64_t vocab) {
  Tensor logits = random({s.tokens(), vocab});
  const Tensor targets = at::randint(vocab, {s.tokens()}, gpu(at::kLong));
  Tensor losses = at::empty({s.tokens()}, gpu(at::kFloat));
  const double scale = 1.0 / static_cast<double>(s.tokens());
  const Tensor scale_tensor = at::full({}, scale, gpu(at::kDouble));
  const Run run = [=]() mutable {
    cuda::cross_entropy_(logits, targets, scale_tensor, 1e-4, /*grad=*/true, losses);
  };
  const auto error = [=]() mutable {
    const Tensor in = fp32(head(logits)).requires_grad_(true);
    const Tensor truth = reference::cross_entropy(in, head(targets), 1e-4);
    (truth.sum() * scale).backward();
    run();
    return std::max(difference(head(logits), in.grad()), difference(head(losses), truth));
  };
  return {"cross_entropy V=" + std::to_string(vocab), 2.0 * bytes_of({logits}), error, run};
}

Case stable_mask_correct(const Shape& s) {
  Tensor out = random({s.batch, s.length, s.heads, s.head_dim});
  Tensor lse = random({s.batch, s.heads, s.length}, at::kFloat);
  const Tensor log_mass = random({s.heads, s.length}, at::kFloat);
  const Run run = [=]() mutable { cuda::stable_mask_correct_(out, lse, log_mass); };
  const auto error = [=]() mutable {
    const Tensor after = at::logaddexp(lse, log_mass);
    const Tensor truth = fp32(out) * at::exp(lse - after).transpose(1, 2).unsqueeze(3);
    run();
    return std::max(difference(out, truth), difference(lse, after));
  };
  return {"stable_mask correction", 2.0 * bytes_of({out, lse}), error, run};
}

Case stable_mask_mass_gradient(const Shape& s) {
  const Tensor out = random({s.batch, s.length, s.heads, s.head_dim}), dout = random(out.sizes());
  const Tensor log_mass = random({s.heads, s.length}, at::kFloat);
  const Tensor lse = at::logaddexp(random({s.batch, s.heads, s.length}, at::kFloat), log_mass);
  const Run run = [=] { cuda::stable_mask_mass_gradient(dout, out, lse, log_mass); };
  const auto error = [=] {
    const Tensor products = (fp32(dout) * fp32(out)).sum(3).transpose(1, 2);
    return difference(cuda::stable_mask_mass_gradient(dout, out, lse, log_mass),
                      -(at::exp(log_mass - lse) * products).sum(0));
  };
  return {"stable_mask log S bwd", bytes_of({dout, out, lse}), error, run};
}

Case embedding_backward(const Shape& s) {
  const Tensor dy = random({s.tokens(), s.channels});
  // Token frequencies as skewed as in text.
  const Tensor uniform = at::rand({s.tokens()}, gpu(at::kDouble));
  const Tensor ids = (uniform.pow(4) * static_cast<double>(s.vocab)).to(at::kLong);
  Tensor dw = at::zeros({s.vocab, s.channels}, gpu(at::kFloat));
  const int64_t rows = std::get<0>(at::_unique2(ids)).size(0);
  const Run run = [=]() mutable { cuda::embedding_backward(dy, ids, dw); };
  const auto error = [=]() mutable {
    run();
    return difference(dw, at::zeros_like(dw).index_add_(0, ids, fp32(dy)));
  };
  const double touched = 2.0 * 4.0 * static_cast<double>(rows * s.channels);
  return {"embedding backward", bytes_of({dy}) + touched, error, run};
}

Case adamw(const Shape& s, at::ScalarType moments) {
  const int64_t size = s.parameters();
  const auto [rounded, rest] = split_weights(random({size}, at::kFloat));
  Tensor weights = rounded, remainder = rest, m = random({size}, moments);
  Tensor v = random({size}, moments).square_();
  const Tensor grad = random({size}, at::kFloat);
  const AdamWArgs args{0.9, 0.95, 1e-8, 0.1};
  const Tensor control = update_control(1e-3, 10, 0.5).to(at::kCUDA);
  const Run run = [=]() mutable { cuda::adamw_(weights, remainder, m, v, grad, args, control); };
  const auto error = [=]() mutable {
    const auto part = [](const Tensor& x) { return x.narrow(0, 0, 1 << 20).clone(); };
    Tensor w = part(weights), rest1 = part(remainder), m1 = part(m), v1 = part(v);
    reference::adamw_(w, rest1, m1, v1, part(grad), args, control);
    run();
    return 100.0 *
           difference(join_weights({part(weights), part(remainder)}), join_weights({w, rest1}));
  };
  return {moments == at::kFloat ? "adamw" : "adamw, bf16 state",
          2.0 * bytes_of({weights, remainder, m, v}) + bytes_of({grad}), error, run};
}

Case ema(const Shape& s) {
  const auto [rounded, rest] = split_weights(random({s.parameters()}, at::kFloat));
  const Tensor weights = rounded, remainder = rest;
  Tensor average = random({s.parameters()}, at::kFloat);
  const Tensor control = update_control(1e-3, 10).to(at::kCUDA);
  const Run run = [=]() mutable { cuda::ema_(average, weights, remainder, 0.5, control); };
  const auto error = [=]() mutable {
    const auto part = [](const Tensor& x) { return x.narrow(0, 0, 1 << 20).clone(); };
    Tensor truth = part(average);
    reference::ema_(truth, part(weights), part(remainder), 0.5, control);
    run();
    return difference(part(average), truth);
  };
  return {"average of weights", 2.0 * bytes_of({average}) + bytes_of({weights, remainder}), error,
          run};
}

Case sum_of_squares(const Shape& s) {
  const Tensor x = random({s.parameters()}, at::kFloat);
  const Run run = [=] { cuda::sum_of_squares(x); };
  const auto error = [=] {
    const double truth = x.norm().item<double>();
    return std::abs(cuda::sum_of_squares(x).item<double>() / (truth * truth) - 1.0);
  };
  return {"sum of squares", bytes_of({x}), error, run};
}

/// Upper bound of the memory bandwidth on this machine, measured in the same way.
Case copy(const Shape& s) {
  const Tensor from = random({s.tokens(), 16384});
  Tensor to = at::empty_like(from);
  const Run run = [=]() mutable { to.copy_(from); };
  const auto error = [=]() mutable {
    run();
    return difference(head(to), head(from));
  };
  return {"copy (ceiling)", bytes_of({from, to}), error, run};
}

/// The product of a frozen weight and that of its adapter of rank 16: forward with a residual, or
/// the gradient of x.
Case sum_projection(const char* name, int64_t rows, int64_t inner, int64_t columns, bool plain) {
  constexpr int64_t kRank = 16;
  const auto weight_of = [&](int64_t depth) {
    return plain ? random({depth, columns}) : random({columns, depth});
  };
  const Tensor x = random({rows, inner}), weight = weight_of(inner);
  const SecondFactors second{random({rows, kRank}), weight_of(kRank)};
  const Tensor addend = plain ? Tensor() : random({rows, columns});
  Tensor out = at::empty({rows, columns}, gpu(at::kBFloat16));
  const Run run = [=]() mutable { cuda::sum_projection(x, weight, second, addend, plain, out); };
  const auto error = [=]() mutable {
    run();
    const auto product = [&](const Tensor& a, const Tensor& b) {
      return at::mm(fp32(head(a)), plain ? fp32(b) : fp32(b).t());
    };
    Tensor truth = product(x, weight) + product(second.x, second.weight);
    if (addend.defined()) truth += fp32(head(addend));
    return difference(head(out), truth);
  };
  return {name, bytes_of({x, weight, second.x, second.weight, out}), error, run,
          gemm_flops(rows, inner + kRank, columns)};
}

/// Five times the size of L2; read before each run to evict the inputs.
double cold_median_ms(const Run& run) {
  const Tensor other = at::zeros({int64_t{64} << 20}, gpu(at::kFloat));
  return median_ms(run, [other] { other.sum(); });
}

std::vector<CaseMaker> makers() {
  std::vector<CaseMaker> all = {
      copy,
      rms_norm_forward,
      rms_norm_backward,
      swiglu_forward,
      swiglu_backward,
      rope,
      [](const Shape& s) { return plain_gemm("gemm up", s.tokens(), s.channels, 2 * s.hidden); },
      swiglu_projection,
      [](const Shape& s) { return plain_gemm("gemm down^T", s.tokens(), s.channels, s.hidden); },
      swiglu_projection_backward,
      [](const Shape& s) {
        return plain_gemm("gemm qkv", s.tokens(), s.channels, 3 * s.heads * s.head_dim);
      },
      rope_projection,
      [](const Shape& s) { return plain_gemm("gemm down", s.tokens(), s.hidden, s.channels); },
      [](const Shape& s) {
        return sum_projection("down + adapter", s.tokens(), s.hidden, s.channels, false);
      },
      [](const Shape& s) {
        return sum_projection("up^T + adapter", s.tokens(), 2 * s.hidden, s.channels, true);
      },
      stable_mask_correct,
      stable_mask_mass_gradient,
      [](const Shape& s) { return cross_entropy(s, 32000); },
      [](const Shape& s) { return cross_entropy(s, 50257); },
      [](const Shape& s) { return cross_entropy(s, s.vocab); },
      embedding_backward,
      sum_of_squares,
      [](const Shape& s) { return adamw(s, at::kFloat); },
      [](const Shape& s) { return adamw(s, at::kBFloat16); },
      ema};
  std::ranges::move(muon_cases(), std::back_inserter(all));
  std::ranges::move(decoding_cases(), std::back_inserter(all));
  std::ranges::move(fp8_cases(), std::back_inserter(all));
  return all;
}

void measure(const CaseMaker& make, const Shape& shape, const std::vector<std::string>& only,
             Report& report) {
  constexpr double kTolerance = 4e-3;  // rounding to bf16 alone gives 1.7e-3
  const Case c = make(shape);
  const std::string name = c.kernel + ", " + shape.name;
  const auto matches = [&](const std::string& piece) { return name.find(piece) != name.npos; };
  if (!std::ranges::all_of(only, matches)) return;
  const double error = c.error();
  const bool right = error <= kTolerance;
  const double ms = right ? cold_median_ms(c.run) : 0.0;
  const double gb_per_s = right ? c.bytes / ms * 1e-6 : 0.0;
  const double tflops = right ? c.flops / ms * 1e-9 : 0.0;
  report.right = report.right && right;
  report.json["rows"].push_back({{"kernel", c.kernel},
                                 {"shape", shape.name},
                                 {"error", error},
                                 {"right", right},
                                 {"ms", ms},
                                 {"gb_per_s", gb_per_s},
                                 {"of_peak", gb_per_s / kPeakGBs},
                                 {"tflop_per_s", tflops}});
  std::printf("%-24s %-14s %9.1e %9.4f %9.0f %8.1f %%", c.kernel.c_str(), shape.name, error, ms,
              gb_per_s, 100.0 * gb_per_s / kPeakGBs);
  if (c.flops > 0) std::printf(" %9.0f", tflops);
  std::printf("%s\n", right ? "" : "  WRONG, not timed");
  std::fflush(stdout);
}

}  // namespace

Report run_ops(const std::vector<std::string>& only) {
  Report report;
  report.json = {{"device", require_gpu()}, {"rows", nlohmann::ordered_json::array()}};
  at::manual_seed(1);
  std::printf("%-24s %-14s %9s %9s %9s %10s %9s\n", "kernel", "shape", "error", "ms", "GB/s",
              "of 3 TB/s", "TFLOP/s");
  for (const Shape& shape : kShapes) {
    for (const CaseMaker& make : makers()) {
      check_stop("benchmarking");
      measure(make, shape, only, report);
    }
  }
  return report;
}

}  // namespace stablemask::bench
