// Times causal attention, forward and backward, plain and with StableMask and ALiBi, after checking
// the results against the reference in fp32. What fails the check is not timed, and the program
// ends with 1.
//
//   attention_bench [--json]
//
// ms: median of 30 runs by device events. "x cuDNN": total against LibTorch's cuDNN operator, plain
// causal, on the same numbers; "x causal": against our own causal. TFLOP/s counts a causal score
// once: 14·B·H·T²/2·D for both passes.
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/ops/attention_flash.h"
#include "src/ops/cuda/cudnn_attention.h"
#include "src/ops/kernels.h"
#include "stablemask/ops/attention.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops {
namespace {

using at::Tensor;
using Run = std::function<void()>;

constexpr int kRepetitions = 30;
constexpr double kTolerance = 1e-2;  // plain bf16 programs land at 4e-3 to 5e-3

at::TensorOptions gpu(at::ScalarType type) {
  return at::TensorOptions().device(at::kCUDA).dtype(type);
}

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

/// One shape's tensors, shared by all programs.
struct Problem {
  Shape shape;
  Tensor packed, dout, out, lse, dpacked;
  explicit Problem(const Shape& s)
      : shape(s),
        packed(at::randn({s.batch, s.length, 3 * s.heads, s.dim}, gpu(at::kBFloat16))),
        dout(at::randn({s.batch, s.length, s.heads, s.dim}, gpu(at::kBFloat16))),
        out(at::empty_like(dout)),
        lse(at::empty({s.batch, s.heads, s.length}, gpu(at::kFloat))),
        dpacked(at::empty_like(packed)) {}
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(shape.dim)); }
};

struct Program {
  std::string name;
  AttentionOptions options;
  Run forward, backward;
};

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

Program ours(Problem& p, const std::string& name, const AttentionOptions& options) {
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
  const Run backward = [&p, call] {
    cuda::cudnn_attention_backward(call, p.dout, p.packed, p.out, p.lse, p.dpacked);
  };
  return {name, options, forward, backward};
}

/// LibTorch's operator on contiguous queries, keys and values.
Program stock(Problem& p) {
  struct State {
    Tensor q, k, v;
    flash::Call call;
    flash::Result result;
  };
  const auto state = std::make_shared<State>();
  const int64_t heads = p.shape.heads;
  state->q = p.packed.narrow(2, 0, heads).contiguous();
  state->k = p.packed.narrow(2, heads, heads).contiguous();
  state->v = p.packed.narrow(2, 2 * heads, heads).contiguous();
  state->call.kernel = flash::Kernel::kCudnn;
  state->call.scale = p.scale();
  const Run forward = [&p, state] {
    state->result = flash::forward(state->call, state->q, state->k, state->v);
    p.out = state->result.out;
  };
  const Run backward = [&p, state] {
    flash::backward(state->call, p.dout, state->q, state->k, state->v, state->result);
  };
  return {"cuDNN causal (LibTorch)", {}, forward, backward};
}

double difference(const Tensor& x, const Tensor& truth) {
  return ((x.to(at::kFloat) - truth).norm() / truth.norm()).item<double>();
}

/// The larger error of the first sequence's outputs and gradients.
double error_of(Problem& p, const Program& program, bool gradients) {
  const int64_t heads = p.shape.heads;
  const Tensor packed = p.packed.narrow(0, 0, 1).to(at::kFloat).requires_grad_(true);
  const auto [q, k, v] = split_heads(packed, heads, heads);
  const Tensor truth = reference::attention(q, k, v, program.options, at::kFloat);
  program.forward();
  const double error = difference(p.out.narrow(0, 0, 1), truth.detach());
  if (!gradients) return error;
  program.backward();
  truth.backward(p.dout.narrow(0, 0, 1).to(at::kFloat));
  return std::max(error, difference(p.dpacked.narrow(0, 0, 1), packed.grad()));
}

double median_ms(const Run& run) {
  std::vector<float> times;
  for (int i = -5; i < kRepetitions; ++i) {
    at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
    begin.record();
    run();
    end.record();
    end.synchronize();
    if (i >= 0) times.push_back(begin.elapsed_time(end));
  }
  std::nth_element(times.begin(), times.begin() + kRepetitions / 2, times.end());
  return times[kRepetitions / 2];
}

class Report {
 public:
  explicit Report(bool json) : json_(json) {
    if (json_) return;
    std::printf("%-18s %-26s %8s %8s %8s %8s %8s %8s %8s\n", "(B,H,T,D)", "program", "error",
                "fwd ms", "bwd ms", "total", "x cuDNN", "x causal", "TFLOP/s");
  }

  void add(const Shape& shape, const std::string& program, double error, double forward,
           double backward) {
    const double total = forward + backward;
    const bool right = error <= kTolerance;
    all_right_ = all_right_ && right;
    if (program.rfind("cuDNN", 0) == 0) stock_ = total;
    if (program.rfind("cuDNN", 0) == 0 || program == "causal") causal_ = total;
    rows_.push_back({{"shape", shape.name()},
                     {"program", program},
                     {"error", error},
                     {"right", right},
                     {"forward_ms", forward},
                     {"backward_ms", backward},
                     {"against_cudnn", total / stock_},
                     {"against_causal", total / causal_},
                     {"tflops", shape.tera_flops() / total * 1e3}});
    if (json_) return;
    std::printf("%-18s %-26s %8.1e %8.3f %8.3f %8.3f %8.3f %8.3f %8.0f%s\n", shape.name().c_str(),
                program.c_str(), error, forward, backward, total, total / stock_, total / causal_,
                shape.tera_flops() / total * 1e3, right ? "" : "  WRONG, not timed");
  }

  int finish() const {
    if (json_) std::printf("%s\n", rows_.dump(2).c_str());
    return all_right_ ? 0 : 1;
  }

 private:
  bool json_;
  bool all_right_ = true;
  double stock_ = 1.0, causal_ = 1.0;
  nlohmann::json rows_ = nlohmann::json::array();
};

void measure(Problem& p, const Program& program, bool check_gradients, Report& report) {
  const double error = error_of(p, program, check_gradients);
  const bool right = error <= kTolerance;
  const double forward = right ? median_ms(program.forward) : 0.0;
  const double backward = right ? median_ms(program.backward) : 0.0;
  report.add(p.shape, program.name, error, forward, backward);
}

/// The published way: scores and pseudo scores in memory, by eager operators and autograd.
void measure_literal(Problem& p, const AttentionOptions& options, Report& report) {
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
  report.add(p.shape, "StableMask, eager bf16", 0.0, forward_ms, median_ms(both) - forward_ms);
}

void measure_shape(const Shape& shape, Report& report) {
  Problem p(shape);
  const auto options = [&](bool alibi, bool mask, MaskLength::Kind kind) {
    return options_of(p, alibi, mask, kind);
  };
  using Kind = MaskLength::Kind;
  measure(p, stock(p), /*check_gradients=*/false, report);
  p.out = at::empty_like(p.dout);
  measure(p, ours(p, "causal", options(false, false, Kind::kFixed)), true, report);
  measure(p, ours(p, "StableMask", options(false, true, Kind::kFixed)), true, report);
  measure(p, ours(p, "StableMask, N infinite", options(false, true, Kind::kInfinite)), true,
          report);
  measure(p, ours(p, "ALiBi", options(true, false, Kind::kFixed)), true, report);
  measure(p, ours(p, "ALiBi, StableMask", options(true, true, Kind::kFixed)), true, report);
  if (shape.length == 2048) {
    measure_literal(p, options(false, true, Kind::kFixed), report);
  }
}

int run_all(bool json) {
  if (c10::cuda::device_count() == 0) {
    std::fprintf(stderr, "attention_bench: no CUDA device\n");
    return 1;
  }
  at::manual_seed(1);
  Report report(json);
  for (const Shape& shape : kShapes) measure_shape(shape, report);
  return report.finish();
}

}  // namespace
}  // namespace stablemask::ops

int main(int argc, char** argv) {
  const bool json = argc == 2 && std::string(argv[1]) == "--json";
  if (argc > 1 && !json) {
    std::fprintf(stderr, "usage: attention_bench [--json]\n");
    return 2;
  }
  return stablemask::ops::run_all(json);
}
