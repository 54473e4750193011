// Columns: "x cuDNN" is the total time relative to LibTorch's cuDNN operator with a plain causal
// mask in the same shape, "x causal" relative to this project's causal attention. TFLOP/s counts
// the causal half of the scores: 14·B·H·T²/2·D for forward and backward.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>

#include "src/bench/bench.h"
#include "src/bench/gpu_timing.h"
#include "src/ops/attention_flash.h"
#include "src/ops/cuda/cudnn_attention.h"
#include "src/ops/kernels.h"
#include "stablemask/base/stop.h"
#include "stablemask/ops/attention.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

namespace stablemask::bench {
namespace {

using namespace stablemask::ops;
using at::Tensor;

constexpr double kTolerance = 1e-2;  // eager bf16 attention has an error of 4e-3 to 5e-3

struct Shape {
  int64_t batch, heads, length, dim;
  std::string name() const { return c10::str("(", batch, ",", heads, ",", length, ",", dim, ")"); }
  double tera_flops() const {
    return 7.0 * static_cast<double>(batch * heads * dim) * static_cast<double>(length * length) *
           1e-12;
  }
};

constexpr Shape kShapes[] = {
    {16, 12, 1024, 64}, {8, 16, 2048, 128}, {4, 16, 4096, 128}, {2, 16, 8192, 64}};

/// Tensors of one shape, shared by all implementations.
struct Problem {
  Shape shape;
  Tensor packed, dout, out, lse, dpacked;
  Tensor dlog_mass;  ///< of learnable masks
  explicit Problem(const Shape& s)
      : shape(s),
        packed(at::randn({s.batch, s.length, 3 * s.heads, s.dim}, gpu(at::kBFloat16))),
        dout(at::randn({s.batch, s.length, s.heads, s.dim}, gpu(at::kBFloat16))),
        out(at::empty_like(dout)),
        lse(at::empty({s.batch, s.heads, s.length}, gpu(at::kFloat))),
        dpacked(at::empty_like(packed)) {}
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(shape.dim)); }
};

struct Implementation {
  std::string name;
  AttentionOptions options;
  Run forward, backward;
};

/// Whether gamma and p_base have gradients.
bool is_learnable(const AttentionOptions& options) {
  return options.pseudo && options.log_mass.requires_grad();
}

AttentionOptions options_of(const Problem& p, bool alibi, bool mask, MaskLength::Kind kind) {
  AttentionOptions options;
  const Tensor slopes = alibi_slopes(p.shape.heads).to(at::kCUDA);
  if (alibi) options.alibi_slopes = slopes;
  if (mask) {
    options.pseudo = PseudoScores{slopes, at::zeros_like(slopes), {kind, p.shape.length}};
    options.log_mass = row_log_mass(options, p.shape.length);
  }
  return options;
}

Implementation ours(Problem& p, const std::string& name, const AttentionOptions& options) {
  cuda::CudnnAttention call{p.shape.heads, p.shape.heads, p.scale(), options.alibi_slopes, {}};
  Tensor rows;
  if (options.pseudo && options.pseudo->length.kind == MaskLength::Kind::kInfinite) {
    call.sink = options.log_mass.select(1, 0).contiguous();
  } else {
    rows = options.log_mass;
  }
  const Run forward = [&p, call, rows] {
    cuda::cudnn_attention_forward(call, p.packed, p.out, p.lse);
    if (rows.defined()) cuda::stable_mask_correct_(p.out, p.lse, rows);
  };
  const Run backward = [&p, call, rows, learnable = is_learnable(options)] {
    if (learnable) p.dlog_mass = cuda::stable_mask_mass_gradient(p.dout, p.out, p.lse, rows);
    cuda::cudnn_attention_backward(call, p.dout, p.packed, p.out, p.lse, p.dpacked);
  };
  return {name, options, forward, backward};
}

/// LibTorch's operator on contiguous queries, keys and values.
Implementation stock(Problem& p) {
  struct Buffers {
    Tensor q, k, v;
    flash::Call call;
    flash::Result result;
  };
  const auto buffers = std::make_shared<Buffers>();
  const int64_t heads = p.shape.heads;
  buffers->q = p.packed.narrow(2, 0, heads).contiguous();
  buffers->k = p.packed.narrow(2, heads, heads).contiguous();
  buffers->v = p.packed.narrow(2, 2 * heads, heads).contiguous();
  buffers->call.kernel = flash::Kernel::kCudnn;
  buffers->call.scale = p.scale();
  const Run forward = [&p, buffers] {
    buffers->result = flash::forward(buffers->call, buffers->q, buffers->k, buffers->v);
    p.out = buffers->result.out;
  };
  const Run backward = [&p, buffers] {
    flash::backward(buffers->call, p.dout, buffers->q, buffers->k, buffers->v, buffers->result);
  };
  return {"cuDNN causal (LibTorch)", {}, forward, backward};
}

/// −Σ_b ρ·Σ_d dout·out in plain operators, from the attention's own out and lse.
Tensor eager_mass_gradient(const Problem& p, const Tensor& log_mass) {
  const Tensor products = (p.dout.to(at::kFloat) * p.out.to(at::kFloat)).sum(3).transpose(1, 2);
  return -(at::exp(log_mass - p.lse) * products).sum(0);
}

/// Maximum of the relative errors of output and gradients of the first sequence.
double error_of(Problem& p, const Implementation& implementation, bool gradients) {
  const int64_t heads = p.shape.heads;
  const Tensor packed = p.packed.narrow(0, 0, 1).to(at::kFloat).requires_grad_(true);
  const auto [q, k, v] = split_heads(packed, heads, heads);
  const Tensor truth = reference::attention(q, k, v, implementation.options, at::kFloat);
  implementation.forward();
  const double error = difference(p.out.narrow(0, 0, 1), truth.detach());
  if (!gradients) return error;
  implementation.backward();
  truth.backward(p.dout.narrow(0, 0, 1).to(at::kFloat));
  const double gradient = difference(p.dpacked.narrow(0, 0, 1), packed.grad());
  if (!is_learnable(implementation.options)) return std::max(error, gradient);
  const Tensor dlog_mass = eager_mass_gradient(p, implementation.options.log_mass.detach());
  return std::max({error, gradient, difference(p.dlog_mass, dlog_mass)});
}

class Table {
 public:
  Table() {
    report_.json = {{"device", require_gpu()}, {"rows", nlohmann::ordered_json::array()}};
    std::printf("%-18s %-26s %8s %8s %8s %8s %8s %8s %8s\n", "(B,H,T,D)", "program", "error",
                "fwd ms", "bwd ms", "total", "x cuDNN", "x causal", "TFLOP/s");
  }

  void add(const Shape& shape, const std::string& program, double error, double forward,
           double backward) {
    const double total = forward + backward;
    const bool right = error <= kTolerance;
    report_.right = report_.right && right;
    if (program.rfind("cuDNN", 0) == 0) stock_ = total;
    if (program.rfind("cuDNN", 0) == 0 || program == "causal") causal_ = total;
    const double tflops = right ? shape.tera_flops() / total * 1e3 : 0.0;
    report_.json["rows"].push_back({{"shape", shape.name()},
                                    {"program", program},
                                    {"error", error},
                                    {"right", right},
                                    {"forward_ms", forward},
                                    {"backward_ms", backward},
                                    {"against_cudnn", total / stock_},
                                    {"against_causal", total / causal_},
                                    {"tflops", tflops}});
    std::printf("%-18s %-26s %8.1e %8.3f %8.3f %8.3f %8.3f %8.3f %8.0f%s\n", shape.name().c_str(),
                program.c_str(), error, forward, backward, total, total / stock_, total / causal_,
                tflops, right ? "" : "  WRONG, not timed");
    std::fflush(stdout);
  }

  const Report& report() const { return report_; }

 private:
  Report report_;
  double stock_ = 1.0, causal_ = 1.0;
};

void measure(Problem& p, const Implementation& implementation, bool check_gradients, Table& table) {
  const double error = error_of(p, implementation, check_gradients);
  const bool right = error <= kTolerance;
  const double forward = right ? median_ms(implementation.forward) : 0.0;
  const double backward = right ? median_ms(implementation.backward) : 0.0;
  table.add(p.shape, implementation.name, error, forward, backward);
}

/// StableMask as published: eager operators with scores and pseudo scores in memory, and autograd.
void measure_eager(Problem& p, const AttentionOptions& options, Table& table) {
  const auto kept = std::make_shared<Tensor>();
  const Tensor packed = p.packed.detach().requires_grad_(true);
  const int64_t heads = p.shape.heads;
  const Run forward = [=] {
    const auto [q, k, v] = split_heads(packed, heads, heads);
    *kept = reference::attention(q, k, v, options, at::kBFloat16);
  };
  const Run both = [&p, packed, forward, kept] {
    forward();
    kept->backward(p.dout);
    packed.mutable_grad() = Tensor();
  };
  const double forward_ms = median_ms(forward);
  *kept = Tensor();
  table.add(p.shape, "StableMask, eager bf16", 0.0, forward_ms, median_ms(both) - forward_ms);
}

void measure_shape(const Shape& shape, Table& table) {
  Problem p(shape);
  const auto options = [&](bool alibi, bool mask, MaskLength::Kind kind) {
    return options_of(p, alibi, mask, kind);
  };
  using Kind = MaskLength::Kind;
  measure(p, stock(p), /*check_gradients=*/false, table);
  p.out = at::empty_like(p.dout);
  measure(p, ours(p, "causal", options(false, false, Kind::kFixed)), true, table);
  measure(p, ours(p, "StableMask", options(false, true, Kind::kFixed)), true, table);
  AttentionOptions learnable = options(false, true, Kind::kFixed);
  learnable.log_mass = learnable.log_mass.detach().requires_grad_();
  measure(p, ours(p, "StableMask, learnable", learnable), true, table);
  measure(p, ours(p, "StableMask, N infinite", options(false, true, Kind::kInfinite)), true, table);
  measure(p, ours(p, "ALiBi", options(true, false, Kind::kFixed)), true, table);
  measure(p, ours(p, "ALiBi, StableMask", options(true, true, Kind::kFixed)), true, table);
  if (shape.length == 2048) {
    measure_eager(p, options(false, true, Kind::kFixed), table);
  }
}

}  // namespace

Report run_attention() {
  Table table;
  at::manual_seed(1);
  for (const Shape& shape : kShapes) {
    check_stop("benchmarking");
    measure_shape(shape, table);
  }
  return table.report();
}

}  // namespace stablemask::bench
