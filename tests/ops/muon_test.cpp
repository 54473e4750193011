#include "stablemask/ops/muon.h"

#include <ATen/ATen.h>

#include <cmath>
#include <functional>

#include "stablemask/ops/optimizer.h"
#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using testing::normal;
using testing::relative_error;
using testing::Tensors;

/// scale·p⁵(σ/‖X‖) in place of each singular value σ of X [rows, cols], in fp64.
at::Tensor mapped_singular_values(const at::Tensor& matrix, double scale) {
  const auto [u, s, vh] = at::linalg_svd(matrix.to(at::kCPU, at::kDouble), /*full_matrices=*/false);
  at::Tensor x = s / s.square().sum().sqrt();
  for (int i = 0; i < 5; ++i) x = 3.4445 * x - 4.7750 * x.pow(3) + 2.0315 * x.pow(5);
  return u.matmul((scale * x).diag()).matmul(vh);
}

at::Tensor singular_values(const at::Tensor& matrix) {
  return std::get<1>(at::linalg_svd(matrix.to(at::kCPU, at::kDouble), /*full_matrices=*/false));
}

/// Matrices as an optimizer has them: in one flat buffer, `gap` elements apart; every second tensor
/// holds the transposes of tall ones.
struct Matrices {
  Matrices(int64_t tensors, int64_t n, int64_t rows, int64_t columns, at::TensorOptions options)
      : stride(tensors * rows * columns + 64),
        flat((normal({n * stride}, 7, options.device(at::kCPU)) * 0.01).to(options.device())) {
    for (int64_t i = 0; i < tensors; ++i) {
      const bool tall = i % 2 == 1;
      const at::Tensor all =
          flat.as_strided({n, tall ? columns : rows, tall ? rows : columns},
                          {stride, tall ? rows : columns, 1}, i * rows * columns);
      views.push_back(tall ? all.transpose(1, 2) : all);
    }
  }

  /// The largest relative error of a matrix against map(the matrix before).
  double error(const Matrices& given, const std::function<at::Tensor(at::Tensor)>& map) const {
    double worst = 0;
    for (size_t i = 0; i < views.size(); ++i) {
      for (int64_t k = 0; k < views[i].size(0); ++k) {
        worst = std::max(worst, relative_error(views[i][k], map(given.views[i][k])));
      }
    }
    return worst;
  }

  int64_t stride;
  at::Tensor flat;
  Tensors views;
};

TEST(Muon, OrthogonalizesByThePolynomialOfSingularValues) {
  for (const auto& [rows, columns] : {std::pair{12, 20}, {16, 16}, {1, 5}}) {
    const Matrices given(3, 2, rows, columns, at::kFloat);
    Matrices found(3, 2, rows, columns, at::kFloat);
    orthogonalize_(found.views, 2.5);
    const auto map = [](const at::Tensor& x) { return mapped_singular_values(x, 2.5); };
    EXPECT_LT(found.error(given, map), 3e-5) << rows << " x " << columns;
    const at::Tensor rest = found.flat.narrow(0, found.stride - 64, 64);
    EXPECT_TRUE(rest.equal(given.flat.narrow(0, found.stride - 64, 64))) << "between the matrices";
  }
}

TEST(Muon, SingularValuesOfRandomMatricesBecomeAboutOne) {
  const at::Tensor x = normal({3, 24, 64}, 3, at::kFloat);
  orthogonalize_({x}, 1.0);
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor values = singular_values(x[i]);
    EXPECT_GT(values.min().item<double>(), 0.6);
    EXPECT_LT(values.max().item<double>(), 1.3);
  }
}

TEST(Muon, SizeOfTheMomentumPlaysNoRoleAndZeroStaysZero) {
  const at::Tensor x = normal({1, 8, 16}, 3, at::kFloat), small = x * 1e-8, none = x * 0;
  const Tensors all = {x, small, none};
  orthogonalize_(all, 1.0);
  EXPECT_LT(relative_error(small, x), 1e-5);
  EXPECT_TRUE(none.equal(at::zeros_like(none)));
}

/// One step of momentum and weights in fp64.
struct Literal {
  at::Tensor momentum, sum, weights;
  Literal(const at::Tensor& m, const at::Tensor& w, const at::Tensor& grad,
          const at::Tensor& update) {
    const at::Tensor g = grad.to(at::kDouble) * 0.5;
    momentum = 0.9 * m.to(at::kDouble) + g;
    sum = g + 0.9 * momentum;
    weights = (1 - 0.02 * 0.1) * w.to(at::kDouble) - 0.02 * update.to(at::kDouble);
  }
};

/// Kernels of a device against Literal, for every dtype and sizes that fill packs or do not.
void expect_literal_updates(at::Device device, Kernels kernels) {
  for (const int64_t size : {4096, 1009}) {
    const at::Tensor m = normal({size}, 1, at::kFloat), w = normal({size}, 2, at::kFloat);
    const at::Tensor grad = normal({size}, 3, at::kFloat).to(device);
    const at::Tensor control = update_control(0.02, 3, 0.5).to(device);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const at::Tensor update = normal({size}, 4, type).to(device);
      const Literal want(m, w, grad.cpu(), update.cpu());
      const double tolerance = type == at::kFloat ? 1e-6 : 4e-3;

      at::Tensor momentum = m.to(device).clone(), sum = at::full({size}, NAN, update.options());
      muon_momentum_(momentum, sum, grad, 0.9, control, kernels);
      EXPECT_LT(relative_error(momentum, want.momentum), 1e-6);
      EXPECT_LT(relative_error(sum, want.sum), tolerance);

      at::Tensor weights = w.to(device).clone(), none;
      muon_apply_(weights, none, update, 0.1, control, kernels);
      EXPECT_LT(relative_error(weights, want.weights), 1e-6);
      SplitWeights split = split_weights(w.to(device));
      muon_apply_(split.rounded, split.remainder, update, 0.1, control, kernels);
      EXPECT_TRUE(join_weights(split).equal(weights)) << "split weights are fp32 weights";
    }
  }
}

void expect_skipped_updates_change_nothing(at::Device device) {
  const at::Tensor control = update_control(0.02, 3, -1.0).to(device);
  const at::Tensor start = normal({256}, 1, at::kFloat).to(device), grad = start * NAN;
  at::Tensor momentum = start.clone(), sum = start.clone(), weights = start.clone(), none;
  muon_momentum_(momentum, sum, grad, 0.9, control);
  muon_apply_(weights, none, grad, 0.1, control);
  EXPECT_TRUE(momentum.equal(start) && sum.equal(start) && weights.equal(start));
}

TEST(Muon, MomentumAndStepFollowTheFormulas) { expect_literal_updates(at::kCPU, Kernels::kFused); }

TEST(Muon, NegativeGradientScaleSkipsTheUpdate) { expect_skipped_updates_change_nothing(at::kCPU); }

TEST(Muon, RefusesWhatDoesNotFit) {
  const at::Tensor x = normal({2, 8, 16}, 3, at::kFloat);
  EXPECT_THROW(orthogonalize_({}, 1.0), c10::Error);
  EXPECT_THROW(orthogonalize_({x.transpose(1, 2)}, 1.0), c10::Error) << "more rows than columns";
  EXPECT_THROW(orthogonalize_({x, x.narrow(2, 0, 12)}, 1.0), c10::Error) << "two shapes";
  EXPECT_THROW(orthogonalize_({x.narrow(2, 0, 12)}, 1.0), c10::Error) << "gaps between the rows";
  EXPECT_THROW(orthogonalize_({x, x.to(at::kDouble)}, 1.0), c10::Error) << "two dtypes";
  const at::Tensor control = update_control(0.02, 3);
  at::Tensor a = at::zeros({8}), b = at::zeros({8}), none, bf16 = b.to(at::kBFloat16);
  EXPECT_THROW(muon_momentum_(a, b, at::zeros({9}), 0.9, control), c10::Error);
  EXPECT_THROW(muon_momentum_(a, b, bf16, 0.9, control), c10::Error);
  EXPECT_THROW(muon_momentum_(a, b, at::zeros({8}), 1.0, control), c10::Error);
  EXPECT_THROW(muon_momentum_(a, b, at::zeros({8}), 0.9, at::zeros({3})), c10::Error);
  EXPECT_THROW(muon_apply_(bf16, none, b, 0.1, control), c10::Error) << "no remainder";
  EXPECT_THROW(muon_apply_(a, none, b, -0.1, control), c10::Error);
}

class GpuMuon : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(GpuMuon, MomentumAndStepFollowTheFormulas) {
  for (const Kernels kernels : {Kernels::kFused, Kernels::kReference}) {
    expect_literal_updates(at::kCUDA, kernels);
  }
  expect_skipped_updates_change_nothing(at::kCUDA);
}

/// Shapes that the kernel of symmetric products takes (rows of 256) and that it does not.
TEST_F(GpuMuon, OrthogonalizesByThePolynomial) {
  const at::TensorOptions bf16 = at::TensorOptions(at::kBFloat16).device(at::kCUDA);
  for (const auto& [rows, columns] :
       {std::pair{256, 256}, {256, 640}, {512, 520}, {768, 1000}, {96, 200}, {33, 77}, {1, 4}}) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns));
    const Matrices given(2, 2, rows, columns, bf16);
    Matrices found(2, 2, rows, columns, bf16), again(2, 2, rows, columns, bf16);
    // In fp64 on the GPU, where singular values of large matrices would take a minute.
    const auto map = [](const at::Tensor& x) {
      at::Tensor exact = x.to(at::kDouble).unsqueeze(0).contiguous();
      orthogonalize_({exact}, 2.5);
      return exact[0];
    };
    orthogonalize_(found.views, 2.5);
    EXPECT_LT(found.error(given, map), 0.03) << "products round to bf16";
    orthogonalize_(again.views, 2.5);
    EXPECT_TRUE(found.flat.equal(again.flat)) << "not reproducible";
    Matrices plain(2, 2, rows, columns, bf16);
    orthogonalize_(plain.views, 2.5, Kernels::kReference);
    EXPECT_LT(plain.error(given, map), 0.01);
  }
}

TEST_F(GpuMuon, ZeroStaysZero) {
  const at::Tensor x = at::zeros({2, 256, 512}, at::TensorOptions(at::kBFloat16).device(at::kCUDA));
  orthogonalize_({x, x.clone()}, 2.5);
  EXPECT_EQ(x.abs().max().item<double>(), 0.0);
}

}  // namespace
}  // namespace stablemask::ops
