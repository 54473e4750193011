#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "src/ops/cuda/gemm.h"
#include "src/ops/cuda/gemm_cache.h"

namespace stablemask::ops::cuda {
namespace {

struct Shape {
  int64_t m, n, k;
};

class GpuGemm : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(5);
    folder_ = std::filesystem::path(testing::TempDir()) / "stablemask-gemm";
    ::setenv("STABLEMASK_CACHE", folder_.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("STABLEMASK_CACHE");
    std::filesystem::remove_all(folder_);
  }

  static at::Tensor random(int64_t rows, int64_t columns, bool transposed) {
    const auto options = at::TensorOptions(at::kBFloat16).device(at::kCUDA);
    return transposed ? at::randn({columns, rows}, options) : at::randn({rows, columns}, options);
  }

  std::filesystem::path folder_;
};

TEST_P(GpuGemm, EqualsTheProductInEveryFormOfItsOperands) {
  const auto [m, n, k] = GetParam();
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    for (const double beta : {0.0, 1.0}) {
      for (int form = 0; form < 4; ++form) {
        const bool at_ = form & 1, bt = form & 2;
        const at::Tensor a = random(m, k, at_), b = random(k, n, bt);
        at::Tensor out = at::randn({m, n}, a.options().dtype(type));
        const at::Tensor before = out.to(at::kDouble);
        const at::Tensor exact =
            at::matmul((at_ ? a.t() : a).to(at::kDouble), (bt ? b.t() : b).to(at::kDouble)) +
            beta * before;
        gemm(out, {a, at_}, {b, bt}, beta);
        const double error = ((out.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
        // bf16 results round once more: half a unit in the last of 8 bits.
        EXPECT_LT(error, type == at::kFloat ? 1e-5 : 4e-3)
            << type << " beta " << beta << " form " << form;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuGemm,
                         testing::Values(Shape{1, 8, 16}, Shape{64, 128, 32}, Shape{127, 131, 67},
                                         Shape{512, 1536, 768}));

TEST(GpuGemmCacheFile, SecondProgramFindsTheChoiceOfTheFirst) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  EXPECT_NE(gemm_cache_path().find("cublaslt"), std::string::npos);
}

TEST(GemmCache, KeepsItsEntriesBetweenRunsAndIgnoresOtherLines) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "stablemask-gemm-cache";
  const std::string path = folder / "a" / "choices.txt";
  const GemmKey key = {1, -2, 3, 0, 0, 0, 0, 0, 0, 256};
  const GemmAlgorithm algorithm = {~uint64_t{0}, 1, 2, 3, 4, 5, 6, 7};
  {
    GemmCache cache(path);
    EXPECT_EQ(cache.find(key), nullptr);
    cache.insert(key, algorithm);
  }
  std::ofstream(path, std::ios::app) << "not an entry\n1 2 3 : 4\n";
  const GemmCache again(path);
  ASSERT_NE(again.find(key), nullptr);
  EXPECT_EQ(*again.find(key), algorithm);
  std::filesystem::remove_all(folder);
}

TEST(GemmCache, WithoutAPlaceToWriteStillServes) {
  GemmCache cache("/proc/no-such-folder/choices.txt");
  cache.insert(GemmKey{}, GemmAlgorithm{});
  EXPECT_NE(cache.find(GemmKey{}), nullptr);
}

}  // namespace
}  // namespace stablemask::ops::cuda
