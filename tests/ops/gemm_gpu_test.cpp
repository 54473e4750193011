#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "src/ops/cuda/gemm.h"
#include "src/ops/cuda/gemm_cache.h"
#include "stablemask/ops/algorithms.h"

namespace stablemask::ops::cuda {
namespace {

/// Sets a temporary cache folder before the first GEMM, as a process reads the cache's location
/// only once.
class CacheFolder : public testing::Environment {
 public:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/stablemask-gemm-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
    ::setenv("STABLEMASK_CACHE", path_.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("STABLEMASK_CACHE");
    std::filesystem::remove_all(path_);
  }

 private:
  std::string path_;
};
const auto* const kCacheFolder = testing::AddGlobalTestEnvironment(new CacheFolder);

struct Shape {
  int64_t m, n, k;
};
/// More than 1e9 multiply-adds: the algorithm is tuned.
constexpr Shape kLarge{1031, 1024, 1024};

at::Tensor random(int64_t rows, int64_t columns) {
  return at::randn({rows, columns}, at::TensorOptions(at::kBFloat16).device(at::kCUDA));
}

/// The same numbers with every row starting at an odd multiple of 2 bytes; an even number of
/// columns.
at::Tensor badly_aligned(const at::Tensor& x) {
  at::Tensor wide = at::empty({x.size(0), x.size(1) + 2}, x.options());
  at::Tensor view = wide.narrow(1, 1, x.size(1));
  view.copy_(x);
  return view;
}

double relative_error(const at::Tensor& x, const at::Tensor& exact) {
  return ((x.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

/// Error of beta·out + a·b against fp64: at most twice that of at::addmm in the result's dtype,
/// plus the rounding of the tensor cores' accumulation.
void expect_gemm(const Operand& a, const Operand& b, double beta, at::ScalarType type,
                 const std::string& what) {
  const at::Tensor left = a.transposed ? a.matrix.t() : a.matrix;
  const at::Tensor right = b.transposed ? b.matrix.t() : b.matrix;
  at::Tensor out = random(left.size(0), right.size(1)).to(type);
  const at::Tensor exact =
      at::addmm(out.to(at::kDouble), left.to(at::kDouble), right.to(at::kDouble), beta);
  const at::Tensor stock = at::addmm(out, left.to(type), right.to(type), beta);
  gemm(out, a, b, beta);
  EXPECT_LE(relative_error(out, exact), 2 * relative_error(stock, exact) + 1e-5)
      << what << ", " << type << ", beta " << beta;
}

class GpuTimedGemm : public testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(5);
  }
};

class GpuGemm : public GpuTimedGemm, public testing::WithParamInterface<Shape> {};

TEST_P(GpuGemm, MatchesFp64ForEveryTransposition) {
  const auto [m, n, k] = GetParam();
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    for (const double beta : {0.0, 1.0}) {
      for (int form = 0; form < 4; ++form) {
        const bool at_ = form & 1, bt = form & 2;
        const at::Tensor a = at_ ? random(k, m) : random(m, k);
        const at::Tensor b = bt ? random(n, k) : random(k, n);
        expect_gemm({a, at_}, {b, bt}, beta, type, "form " + std::to_string(form));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuGemm,
                         testing::Values(Shape{1, 8, 16}, Shape{64, 128, 32}, Shape{127, 131, 67},
                                         Shape{512, 1536, 768}, kLarge));

TEST_F(GpuTimedGemm, AcceptsOperandsOfAnyAlignment) {
  const auto [m, n, k] = kLarge;
  const at::Tensor a = random(m, k), b = random(k, n), bt = random(n, k);
  const at::Tensor odd_a = badly_aligned(a), odd_b = badly_aligned(b), odd_bt = badly_aligned(bt);
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    expect_gemm({odd_a}, {b}, 0.0, type, "a");
    expect_gemm({a}, {odd_b}, 1.0, type, "b");
    expect_gemm({odd_a}, {odd_bt, true}, 0.0, type, "both, b transposed");
  }
}

TEST_F(GpuTimedGemm, TuningModifiesNeitherOperandsNorOutput) {
  const Shape s{1037, 1024, 1024};
  const at::Tensor a = random(s.m, s.k), b = random(s.k, s.n);
  const at::Tensor a_before = a.clone(), b_before = b.clone();
  at::Tensor first = at::zeros({s.m, s.n}, a.options()), second = first.clone();
  gemm(first, {a}, {b}, 1.0);
  gemm(second, {a}, {b}, 1.0);
  EXPECT_TRUE(at::equal(a, a_before));
  EXPECT_TRUE(at::equal(b, b_before));
  EXPECT_TRUE(at::equal(first, second)) << "the GEMM that was tuned, and the next";
}

/// Lines of the cache file for this shape.
std::vector<std::string> lines_of(const Shape& s) {
  std::ostringstream start;
  start << s.m << ' ' << s.n << ' ' << s.k << ' ';
  std::ifstream file(gemm_cache_path());
  std::vector<std::string> found;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(start.str(), 0) == 0) found.push_back(line);
  }
  return found;
}

GemmKey key_of(const std::string& line) {
  std::istringstream words(line);
  GemmKey key{};
  for (int64_t& value : key) words >> value;
  return key;
}

TEST_F(GpuTimedGemm, TunedAlgorithmIsStoredForOtherProcesses) {
  EXPECT_NE(gemm_cache_path().find("cublaslt"), std::string::npos);
  const Shape s{1033, 1024, 1024}, small{65, 64, 64};
  at::Tensor out = random(s.m, s.n), small_out = random(small.m, small.n);
  EXPECT_TRUE(lines_of(s).empty());
  gemm(small_out, {random(small.m, small.k)}, {random(small.k, small.n)});
  gemm(out, {random(s.m, s.k)}, {random(s.k, s.n)});
  EXPECT_TRUE(lines_of(small).empty()) << "too small to be tuned";
  const std::vector<std::string> lines = lines_of(s);
  ASSERT_EQ(lines.size(), 1u);
  const GemmCache of_other_process(gemm_cache_path());
  EXPECT_NE(of_other_process.find(key_of(lines.front())), nullptr);
  gemm(out, {random(s.m, s.k)}, {random(s.k, s.n)});
  EXPECT_EQ(lines_of(s), lines) << "tuned once";
}

/// With an exchange that answers for other processes. Every test has shapes of its own, because a
/// process keeps its choices.
class GpuExchangedGemm : public GpuTimedGemm {
 protected:
  void TearDown() override { set_algorithm_exchange({}); }

  static void run(const Shape& s) {
    at::Tensor out = random(s.m, s.n);
    gemm(out, {random(s.m, s.k)}, {random(s.k, s.n)});
  }

  static void expect_right(const Shape& s) {
    expect_gemm({random(s.m, s.k)}, {random(s.k, s.n)}, 0.0, at::kBFloat16, "exchanged");
  }
};

TEST_F(GpuExchangedGemm, AskedOnceForEachLargeGemmAndTheChoiceIsStored) {
  std::vector<std::string> keys, choices;
  set_algorithm_exchange({[&](const std::string& key, const std::function<std::string()>& choose) {
                            keys.push_back(key);
                            choices.push_back(choose());
                            return choices.back();
                          },
                          /*writes_cache=*/true});
  const Shape s{1039, 1024, 1024}, other{1049, 1024, 1024};
  run({66, 64, 64});
  EXPECT_TRUE(keys.empty()) << "too small to be timed";
  run(s);
  run(s);
  run(other);
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_NE(keys[0], keys[1]);
  ASSERT_EQ(lines_of(s).size(), 1u);
  EXPECT_NE(lines_of(s).front().find(" : " + choices[0]), std::string::npos);
}

TEST_F(GpuExchangedGemm, TakesTheChoiceOfAnotherProcess) {
  std::string choice;
  set_algorithm_exchange({[&](const std::string&, const std::function<std::string()>& choose) {
                            return choice = choose();
                          },
                          true});
  run({2 * 1051, 1024, 1024});
  set_algorithm_exchange({[&](const std::string&, const std::function<std::string()>&) {
                            return choice;  // an algorithm for almost the same shape
                          },
                          false});
  const Shape s{2 * 1051 + 2, 1024, 1024};
  expect_right(s);
  EXPECT_TRUE(lines_of(s).empty()) << "only one process writes";
}

TEST_F(GpuExchangedGemm, ChoosesAloneWhenTheOthersChoiceIsNone) {
  set_algorithm_exchange(
      {[](const std::string&, const std::function<std::string()>&) { return std::string("1 2 3"); },
       true});
  const Shape s{1061, 1024, 1024};
  expect_right(s);
  EXPECT_EQ(lines_of(s).size(), 1u);
}

TEST_F(GpuExchangedGemm, ExceptionOfTheExchangePassesThrough) {
  set_algorithm_exchange(
      {[](const std::string&, const std::function<std::string()>&) -> std::string {
         throw std::runtime_error("a process is lost");
       },
       true});
  const Shape s{1063, 1024, 1024};
  EXPECT_THROW(run(s), std::runtime_error);
  set_algorithm_exchange({});
  expect_right(s);
}

TEST(GemmAlgorithm, TextRoundTripsAndOtherTextIsRefused) {
  const GemmAlgorithm algorithm = {~uint64_t{0}, 1, 2, 3, 4, 5, 6, 7};
  const std::string text = text_of(algorithm);
  EXPECT_EQ(text, "18446744073709551615 1 2 3 4 5 6 7");
  EXPECT_EQ(algorithm_from_text(text), algorithm);
  for (const std::string other : {"", "1 2 3", "1 2 3 4 5 6 7 x", "1 2 3 4 5 6 7 8 9",
                                  "1 2 3 4 5 6 7 18446744073709551616"}) {
    EXPECT_EQ(algorithm_from_text(other), std::nullopt) << other;
  }
}

TEST(GemmCache, EntriesPersistAndUnknownLinesAreIgnored) {
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

std::vector<std::string> lines_of_file(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

/// The file may be truncated by a full disk or edited.
TEST(GemmCache, DamagedLinesAreIgnoredAndDroppedByTheNextWrite) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "stablemask-gemm-damage";
  const std::string path = folder / "choices.txt";
  const GemmKey whole = {1, 1, 1, 0, 0, 0, 1, 1, 1, 16}, cut = {2, 2, 2, 0, 0, 0, 2, 2, 2, 16},
                later = {3, 3, 3, 0, 0, 0, 3, 3, 3, 16};
  const GemmAlgorithm algorithm = {1, 2, 3, 4, 5, 6, 7, 8}, other = {8, 7, 6, 5, 4, 3, 2, 1};
  {
    GemmCache cache(path);
    cache.insert(whole, algorithm);
    cache.insert(cut, algorithm);
  }
  std::vector<std::string> lines = lines_of_file(path);
  ASSERT_EQ(lines.size(), 2u);
  std::ofstream(path) << lines[0] << "\n\n5 5 5 0 0 0 5 x 5 16 : 1 2 3 4 5 6 7 8\n"
                      << "6 6 6 0 0 0 6 6 6 16 1 2 3 4 5 6 7 8\n"
                      << lines[1].substr(0, lines[1].size() - 2);
  GemmCache damaged(path);
  ASSERT_NE(damaged.find(whole), nullptr);
  EXPECT_EQ(*damaged.find(whole), algorithm);
  EXPECT_EQ(damaged.find(cut), nullptr);
  EXPECT_EQ(damaged.find({5, 5, 5, 0, 0, 0, 5, 0, 0, 0}), nullptr);
  EXPECT_EQ(damaged.find({6, 6, 6, 0, 0, 0, 6, 6, 6, 16}), nullptr);
  damaged.insert(later, other);
  damaged.insert(whole, other);
  EXPECT_EQ(lines_of_file(path).size(), 2u);
  const GemmCache again(path);
  EXPECT_EQ(*again.find(whole), other);
  EXPECT_EQ(*again.find(later), other);
  // No temporary file remains.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::remove_all(folder);
}

TEST(GemmCache, WritesTheFileOnlyWhenAnEntryChanges) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "stablemask-gemm-unchanged";
  const std::string path = folder / "choices.txt";
  GemmCache cache(path);
  cache.insert(GemmKey{1}, GemmAlgorithm{1});
  std::filesystem::remove(path);
  cache.insert(GemmKey{1}, GemmAlgorithm{1});
  EXPECT_FALSE(std::filesystem::exists(path));
  cache.insert(GemmKey{1}, GemmAlgorithm{2});
  EXPECT_EQ(lines_of_file(path).size(), 1u);
  std::filesystem::remove_all(folder);
}

TEST(GemmCache, WorksInMemoryWithoutAWritablePath) {
  GemmCache cache("/proc/no-such-folder/choices.txt");
  cache.insert(GemmKey{}, GemmAlgorithm{});
  EXPECT_NE(cache.find(GemmKey{}), nullptr);
}

}  // namespace
}  // namespace stablemask::ops::cuda
