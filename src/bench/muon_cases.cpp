#include <algorithm>

#include "src/bench/op_cases.h"
#include "src/ops/cuda/fused_gemm.h"
#include "src/ops/cuda/muon.h"
#include "src/ops/cuda/run.h"
#include "stablemask/ops/optimizer.h"

namespace stablemask::bench {
namespace {

using at::Tensor;

Case muon_momentum(const Shape& s) {
  const int64_t size = s.layers * s.matrices();
  Tensor momentum = random({size}, at::kFloat), sum = at::empty({size}, gpu(at::kBFloat16));
  const Tensor grad = random({size}, at::kFloat);
  const Tensor control = ops::update_control(1e-3, 10).to(at::kCUDA);
  const Run run = [=]() mutable { ops::cuda::muon_momentum_(momentum, sum, grad, 0.95, control); };
  const auto error = [=] {
    const Tensor moved = momentum * 0.95 + grad;
    run();
    return std::max(difference(momentum, moved), difference(sum, grad + 0.95 * moved));
  };
  return {"muon momentum", 2.0 * bytes_of({momentum}) + bytes_of({grad, sum}), error, run};
}

Case muon_apply(const Shape& s) {
  const int64_t size = s.layers * s.matrices();
  const ops::SplitWeights start = ops::split_weights(random({size}, at::kFloat));
  Tensor weights = start.rounded, remainder = start.remainder;
  const Tensor update = random({size}), control = ops::update_control(0.1, 10).to(at::kCUDA);
  const Run run = [=]() mutable {
    ops::cuda::muon_apply_(weights, remainder, update, 0.1, control);
  };
  const auto error = [=] {
    const Tensor want = ops::join_weights({weights, remainder}) * 0.99 - 0.1 * fp32(update);
    run();
    return difference(ops::join_weights({weights, remainder}), want);
  };
  return {"muon step", 2.0 * bytes_of({weights, remainder}) + bytes_of({update}), error, run};
}

/// The first product of an iteration for the square matrices of some blocks. Counts the operations
/// of a product that does not know of the symmetry.
Case symmetric_product(const Shape& s) {
  const int64_t count = std::min<int64_t>(4 * s.layers, 48), size = s.channels;
  const Tensor x = random({count, size, size});
  Tensor out = at::empty_like(x);
  const Run run = [=] {
    ops::cuda::SymmetricProduct p{};
    p.x = x.const_data_ptr();
    p.out = out.data_ptr();
    p.matrices = count;
    p.rows = p.inner = size;
    p.factor = 1;
    ops::cuda::run("symmetric_product", p, x);
  };
  const auto error = [=] {
    run();
    return std::max(difference(out, at::bmm(x, x.transpose(1, 2))),
                    difference(out[0], fp32(x[0]).matmul(fp32(x[0]).t())));
  };
  const double rows = static_cast<double>(count * size);
  const double flops = 2.0 * rows * static_cast<double>(size) * static_cast<double>(size);
  return {"muon x*x^T", bytes_of({x, out}), error, run, flops};
}

}  // namespace

std::vector<CaseMaker> muon_cases() { return {muon_momentum, muon_apply, symmetric_product}; }

}  // namespace stablemask::bench
