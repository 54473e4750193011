#include "tests/ops/functional_cases.h"

#include <cmath>
#include <tuple>

#include "stablemask/ops/functional.h"

namespace stablemask::ops::testing {
namespace {

at::Tensor turned(const at::Tensor& x, const at::Tensor& positions, int64_t heads, int64_t dims,
                  double theta) {
  at::Tensor out = x.clone();
  for (int64_t m = 0; m < dims / 2; ++m) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(m) / static_cast<double>(dims));
    const at::Tensor angle = (positions.to(at::kDouble) * frequency).to(x.scalar_type());
    const at::Tensor c = angle.cos(), s = angle.sin();
    const at::Tensor a = x.select(3, m).narrow(2, 0, heads);
    const at::Tensor b = x.select(3, m + dims / 2).narrow(2, 0, heads);
    out.select(3, m).narrow(2, 0, heads).copy_(a * c - b * s);
    out.select(3, m + dims / 2).narrow(2, 0, heads).copy_(a * s + b * c);
  }
  return out;
}

Case norm_case(const std::vector<int64_t>& shape) {
  return {"rms_norm",
          [](const Tensors& x) { return ops::rms_norm(x[0], x[1], 1e-5); },
          [](const Tensors& x) { return x[0] / (x[0].pow(2).mean(-1, true) + 1e-5).sqrt() * x[1]; },
          {normal(shape, 1), normal({shape.back()}, 2)}};
}

Case add_norm_case(const std::vector<int64_t>& shape) {
  return {"add_rms_norm",
          [](const Tensors& x) {
            const auto [sum, normed] = ops::add_rms_norm(x[0], x[1], x[2], 1e-5);
            return at::cat({sum, normed}, -1);
          },
          [](const Tensors& x) {
            const at::Tensor sum = x[0] + x[1];
            return at::cat({sum, sum / (sum.pow(2).mean(-1, true) + 1e-5).sqrt() * x[2]}, -1);
          },
          {normal(shape, 1), normal(shape, 2), normal({shape.back()}, 3)}};
}

Case norm_branch_case(const std::vector<int64_t>& shape) {
  return {"rms_norm_branch",
          [](const Tensors& x) {
            const auto [through, normed] = ops::rms_norm_branch(x[0], x[1], 1e-5);
            return at::cat({through, normed}, -1);
          },
          [](const Tensors& x) {
            return at::cat({x[0], x[0] / (x[0].pow(2).mean(-1, true) + 1e-5).sqrt() * x[1]}, -1);
          },
          {normal(shape, 1), normal({shape.back()}, 2)}};
}

Case layer_norm_case(const std::vector<int64_t>& shape) {
  return {"layer_norm",
          [](const Tensors& x) { return ops::layer_norm(x[0], x[1], x[2], 1e-5); },
          [](const Tensors& x) {
            const at::Tensor centred = x[0] - x[0].mean(-1, true);
            return centred / (centred.pow(2).mean(-1, true) + 1e-5).sqrt() * x[1] + x[2];
          },
          {normal(shape, 1), normal({shape.back()}, 2), normal({shape.back()}, 3)}};
}

Case swiglu_case(const std::vector<int64_t>& shape) {
  return {"swiglu",
          [](const Tensors& x) { return ops::swiglu(x[0]); },
          [](const Tensors& x) {
            const std::vector<at::Tensor> halves = x[0].chunk(2, -1);
            return halves[0] / (1 + (-halves[0]).exp()) * halves[1];
          },
          {normal(shape, 1) * 3}};
}

Case gelu_case(const std::vector<int64_t>& shape) {
  return {"gelu",
          [](const Tensors& x) { return ops::gelu(x[0]); },
          [](const Tensors& x) { return 0.5 * x[0] * (1 + at::erf(x[0] / std::sqrt(2.0))); },
          {normal(shape, 1)}};
}

Case gelu_tanh_case(const std::vector<int64_t>& shape) {
  return {"gelu_tanh",
          [](const Tensors& x) { return ops::gelu(x[0], ops::Gelu::kTanh); },
          [](const Tensors& x) {
            const double factor = std::sqrt(2 / std::acos(-1.0));
            return 0.5 * x[0] * (1 + at::tanh(factor * (x[0] + 0.044715 * x[0].pow(3))));
          },
          {normal(shape, 1)}};
}

Case bias_rows_case(const std::vector<int64_t>& shape) {
  return {"bias_rows",
          [shape](const Tensors& x) { return ops::bias_rows(x[0], shape); },
          [shape](const Tensors& x) { return x[0] + at::zeros(shape, x[0].options()); },
          {normal({shape.back()}, 1)}};
}

at::Tensor times(const at::Tensor& x, const at::Tensor& weight) {
  return (x.unsqueeze(-2) * weight).sum(-1);
}

Case linear_case(const std::vector<int64_t>& shape, int64_t out) {
  return {"linear",
          [](const Tensors& x) { return ops::linear(x[0], x[1]); },
          [](const Tensors& x) { return times(x[0], x[1]); },
          {normal(shape, 1), normal({out, shape.back()}, 2)}};
}

Case linear_add_case(const std::vector<int64_t>& shape, int64_t out) {
  std::vector<int64_t> sum = shape;
  sum.back() = out;
  return {"linear_add",
          [](const Tensors& x) { return ops::linear_add(x[0], x[1], x[2]); },
          [](const Tensors& x) { return x[2] + times(x[0], x[1]); },
          {normal(shape, 1), normal({out, shape.back()}, 2), normal(sum, 3)}};
}

Case feed_forward_case(const std::vector<int64_t>& shape, int64_t hidden) {
  const int64_t channels = shape.back();
  return {"swiglu_feed_forward",
          [](const Tensors& x) { return ops::swiglu_feed_forward(x[0], x[1], x[2], x[3]); },
          [](const Tensors& x) {
            const std::vector<at::Tensor> halves = times(x[0], x[1]).chunk(2, -1);
            return x[3] + times(halves[0] / (1 + (-halves[0]).exp()) * halves[1], x[2]);
          },
          {normal(shape, 1), normal({2 * hidden, channels}, 2) * 0.3,
           normal({channels, hidden}, 3) * 0.3, normal(shape, 4)}};
}

at::Tensor normed(const at::Tensor& x, const at::Tensor& weight) {
  return x / (x.pow(2).mean(-1, true) + 1e-5).sqrt() * weight;
}

Case norm_linear_case(const std::vector<int64_t>& shape, int64_t out) {
  const int64_t channels = shape.back();
  return {"norm_linear",
          [](const Tensors& x) { return ops::norm_linear(x[0], x[1], 1e-5, x[2]); },
          [](const Tensors& x) { return times(normed(x[0], x[1]), x[2]); },
          {normal(shape, 1), normal({channels}, 2), normal({out, channels}, 3)}};
}

Case norm_feed_forward_case(const std::vector<int64_t>& shape, int64_t hidden) {
  const int64_t channels = shape.back();
  return {
      "norm_swiglu_feed_forward",
      [](const Tensors& x) { return ops::norm_swiglu_feed_forward(x[0], x[1], 1e-5, x[2], x[3]); },
      [](const Tensors& x) {
        const std::vector<at::Tensor> halves = times(normed(x[0], x[1]), x[2]).chunk(2, -1);
        return x[0] + times(halves[0] / (1 + (-halves[0]).exp()) * halves[1], x[3]);
      },
      {normal(shape, 1), normal({channels}, 2), normal({2 * hidden, channels}, 3) * 0.3,
       normal({channels, hidden}, 4) * 0.3}};
}

Case embedding_case(int64_t tokens, int64_t vocab, int64_t cols) {
  return {"embedding",
          [](const Tensors& x) { return ops::embedding(x[1], x[0]); },
          [vocab](const Tensors& x) {
            return at::matmul(at::one_hot(x[1], vocab).to(x[0].scalar_type()), x[0]);
          },
          {normal({vocab, cols}, 1), integers(vocab, {2, tokens}, 2)}};
}

Case rope_case(int64_t batch, int64_t length, int64_t heads, int64_t dims, bool per_row) {
  const at::Tensor positions =
      per_row ? integers(50, {batch, length}, 3) : at::arange(5, 5 + length, at::kLong);
  return {"rope",
          [=](const Tensors& x) {
            return ops::rope(x[0], heads, dims, positions.to(x[0].device()),
                             rope_table(64, dims, 100.0).to(x[0].device()));
          },
          [=](const Tensors& x) {
            const at::Tensor p = per_row ? positions.unsqueeze(-1) : positions.view({1, -1, 1});
            return turned(x[0], p.to(x[0].device()), heads, dims, 100.0);
          },
          {normal({batch, length, heads + 2, dims + 2}, 1)}};
}

Case rope_linear_case(int64_t length, int64_t channels, int64_t heads, int64_t dims) {
  const at::Tensor positions = at::arange(3, 3 + length, at::kLong);
  const int64_t packed_heads = heads + 2, head_dim = dims + 2;
  return {"rope_linear",
          [=](const Tensors& x) {
            const RopeInputs rope{dims, positions.to(x[0].device()),
                                  rope_table(64, dims, 100.0).to(x[0].device())};
            return ops::rope_linear(x[0], x[1], packed_heads, heads, rope);
          },
          [=](const Tensors& x) {
            const at::Tensor packed = times(x[0], x[1]).view({2, length, packed_heads, head_dim});
            return turned(packed, positions.view({1, -1, 1}).to(x[0].device()), heads, dims, 100.0);
          },
          {normal({2, length, channels}, 1), normal({packed_heads * head_dim, channels}, 2)}};
}

Case split_case() {
  return {"split_heads",
          [](const Tensors& x) {
            const auto [q, k, v] = ops::split_heads(x[0] * 1, 4, 2);
            return at::cat({q, k * 2, v * 3}, 2);
          },
          [](const Tensors& x) {
            return at::cat(
                {x[0].narrow(2, 0, 4), x[0].narrow(2, 4, 2) * 2, x[0].narrow(2, 6, 2) * 3}, 2);
          },
          {normal({2, 3, 8, 5}, 1)}};
}

Case head_case(int64_t count, int64_t vocab, int64_t cols, double z_loss) {
  at::Tensor targets = integers(vocab, {count}, 4);
  if (count > 2) targets[1] = -100;
  return {
      "linear_cross_entropy",
      [=](const Tensors& x) { return ops::linear_cross_entropy(x[0], x[1], x[2], 0.3, z_loss); },
      [=](const Tensors& x) {
        const at::Tensor lse = at::log(at::exp(at::matmul(x[0], x[1].t())).sum(1));
        const at::Tensor picked = (x[0] * x[1].index_select(0, x[2].clamp_min(0))).sum(1);
        const at::Tensor loss = lse - picked + z_loss * lse * lse;
        return 0.3 * (loss * (x[2] >= 0).to(loss.scalar_type())).sum();
      },
      {normal({count, cols}, 1), normal({vocab, cols}, 2), targets}};
}

}  // namespace

std::vector<Case> small_cases() {
  return {norm_case({1, 1}),
          norm_case({3, 7}),
          add_norm_case({2, 3, 5}),
          layer_norm_case({3, 7}),
          swiglu_case({3, 10}),
          gelu_case({3, 5}),
          gelu_tanh_case({3, 5}),
          bias_rows_case({2, 3, 5}),
          linear_case({2, 3, 5}, 7),
          linear_case({1}, 1),
          linear_add_case({2, 3, 5}, 7),
          norm_branch_case({2, 3, 5}),
          feed_forward_case({2, 3, 5}, 4),
          norm_linear_case({2, 3, 5}, 7),
          norm_feed_forward_case({2, 3, 5}, 4),
          rope_linear_case(3, 5, 3, 4),
          embedding_case(5, 7, 3),
          rope_case(2, 3, 3, 4, true),
          rope_case(1, 1, 1, 2, false),
          split_case(),
          head_case(5, 7, 3, 0.0),
          head_case(5, 7, 3, 0.1),
          head_case(1, 1, 1, 0.0)};
}

std::vector<Case> large_cases() {
  return {norm_case({131, 97}),
          norm_case({2, 67, 64}),
          norm_case({300, 2}),
          add_norm_case({131, 97}),
          layer_norm_case({61, 97}),
          swiglu_case({131, 2 * 89}),
          swiglu_case({64, 2}),
          gelu_case({131, 89}),
          gelu_tanh_case({131, 89}),
          bias_rows_case({131, 89}),
          linear_case({3, 67, 61}, 53),
          linear_add_case({3, 67, 61}, 53),
          norm_branch_case({131, 97}),
          feed_forward_case({3, 37, 61}, 89),
          norm_linear_case({3, 37, 61}, 53),
          norm_feed_forward_case({3, 37, 61}, 89),
          rope_linear_case(29, 61, 5, 16),
          embedding_case(211, 31, 67),
          rope_case(3, 37, 5, 16, true),
          rope_case(3, 37, 5, 14, false),
          head_case(337, 1009, 37, 0.0),
          head_case(337, 1009, 37, 1e-3)};
}

void compare(const Case& c, at::ScalarType type, double eps, at::Device device) {
  SCOPED_TRACE(c.name);
  const at::Tensor direction = normal(c.formula(c.inputs).sizes(), 7);
  const Evaluation truth = evaluate(c.formula, c.inputs, direction, at::kDouble);
  const Evaluation plain = evaluate(c.formula, c.inputs, direction, type, device);
  const Evaluation kernel = evaluate(c.op, c.inputs, direction, type, device);
  EXPECT_EQ(kernel.grads[0].scalar_type(), type);
  expect_as_accurate(kernel.value, plain.value, truth.value, eps, c.name + " value");
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    if (!truth.grads[i].defined()) continue;
    expect_as_accurate(kernel.grads[i], plain.grads[i], truth.grads[i], eps,
                       c.name + " gradient " + std::to_string(i));
  }
}

}  // namespace stablemask::ops::testing
