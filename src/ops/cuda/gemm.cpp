#include "src/ops/cuda/gemm.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <cublasLt.h>
#include <ATen/cuda/CUDAGraphsUtils.cuh>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "src/ops/cuda/gemm_cache.h"

namespace stablemask::ops::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int kCandidates = 24;
constexpr int kTimedRuns = 4;
constexpr size_t kFinalists = 5;
constexpr double kCloseToBest = 1.1;
/// Products of fewer multiply-adds than this come and go in odd shapes: timing them would cost more
/// than it saves.
constexpr double kWorthTiming = 1e9;
/// Of this way of choosing: choices made in another way are forgotten.
constexpr int kMethod = 2;

void check(cublasStatus_t status, const char* what) {
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: ", what, ": ",
              cublasLtGetStatusString(status));
}

/// Owns one of cuBLASLt's descriptor handles.
template <typename Handle, cublasStatus_t (*destroy)(Handle)>
struct Destroy {
  void operator()(Handle handle) const { destroy(handle); }
};
template <typename Handle, cublasStatus_t (*destroy)(Handle)>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<Handle, destroy>>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? CUDA_R_32F : CUDA_R_16BF;
}

/// The largest power of two up to 256 that divides the address.
int64_t alignment(const at::Tensor& x) {
  const auto address = reinterpret_cast<uintptr_t>(x.data_ptr());
  return static_cast<int64_t>(std::min<uintptr_t>(address & (~address + 1), 256));
}

/// The library is column-major: it sees a row-major matrix as its transpose of `columns` x `rows`.
Layout layout_of(const at::Tensor& x) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type_of(x), x.size(1), x.size(0), x.stride(0)),
        "matrix layout");
  return Layout(layout);
}

/// One product, ready to run: outᵀ = bᵀ·aᵀ + beta·cᵀ in the library's column-major eyes.
struct Product {
  Product(const at::Tensor& out_in, const Operand& a_in, const Operand& b_in, double beta_in,
          const at::Tensor& c_in)
      : out(out_in), a(a_in.matrix), b(b_in.matrix), c(c_in), beta(static_cast<float>(beta_in)) {
    cublasLtMatmulDesc_t handle = nullptr;
    check(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "description");
    description.reset(handle);
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSA, b_in.transposed);
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSB, a_in.transposed);
    a_layout = layout_of(a);
    b_layout = layout_of(b);
    out_layout = layout_of(out);
    const int64_t inner = a_in.transposed ? a.size(0) : a.size(1);
    key = {out.size(0),
           out.size(1),
           inner,
           a_in.transposed * 2 + b_in.transposed,
           out.scalar_type() == at::kFloat,
           beta == 0.0f     ? 0
           : c.is_same(out) ? 1
                            : 2,
           a.stride(0),
           b.stride(0),
           out.stride(0),
           std::min({alignment(a), alignment(b), alignment(c), alignment(out)})};
  }

  void set_transposed(cublasLtMatmulDescAttributes_t which, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(description.get(), which, &operation, sizeof(operation)),
          "transposition");
  }

  double work() const { return 1.0 * key[0] * key[1] * key[2]; }  ///< multiply-adds

  cublasStatus_t run(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm) const {
    const at::Tensor workspace =
        at::empty({static_cast<int64_t>(kWorkspaceBytes)}, out.options().dtype(at::kByte));
    const float one = 1.0f;
    return cublasLtMatmul(handle, description.get(), &one, b.const_data_ptr(), b_layout.get(),
                          a.const_data_ptr(), a_layout.get(), &beta, c.const_data_ptr(),
                          out_layout.get(), out.data_ptr(), out_layout.get(), &algorithm,
                          workspace.data_ptr(), kWorkspaceBytes,
                          at::cuda::getCurrentCUDAStream().stream());
  }

  at::Tensor out, a, b, c;
  float beta;
  Description description;
  Layout a_layout, b_layout, out_layout;
  GemmKey key;
};

std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, const Product& product,
                                             int count) {
  cublasLtMatmulPreference_t raw = nullptr;
  check(cublasLtMatmulPreferenceCreate(&raw), "preference");
  const Preference preference(raw);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(raw, which, &value, sizeof(value)), "preference");
  };
  const auto bytes = static_cast<uint32_t>(product.key.back());
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes);
  std::vector<cublasLtMatmulHeuristicResult_t> results(count);
  int found = 0;
  check(cublasLtMatmulAlgoGetHeuristic(
            handle, product.description.get(), product.b_layout.get(), product.a_layout.get(),
            product.out_layout.get(), product.out_layout.get(), raw, count, results.data(), &found),
        "no algorithm for this product");
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
  }
  TORCH_CHECK(!algorithms.empty(), "cuBLASLt: no algorithm for this product");
  return algorithms;
}

/// Milliseconds of one run; a huge number for an algorithm that fails.
float time_of(cublasLtHandle_t handle, const Product& product,
              const cublasLtMatmulAlgo_t& algorithm, int runs) {
  if (product.run(handle, algorithm) != CUBLAS_STATUS_SUCCESS) return 1e30f;
  at::cuda::CUDAEvent start(cudaEventDefault), end(cudaEventDefault);
  start.record();
  for (int i = 0; i < runs; ++i) product.run(handle, algorithm);
  end.record();
  end.synchronize();
  return start.elapsed_time(end) / static_cast<float>(runs);
}

/// Random data of the same shape and strides: zeros would run faster than the real thing.
at::Tensor random_like(const at::Tensor& x) {
  return at::empty_strided(x.sizes(), x.strides(), x.options()).normal_(0.0, 0.5);
}

/// A GPU that was idle keeps its highest clock for some 60 ms of products, then its power limit
/// counts, and other algorithms win. The products of a training step lie between: the choice is by
/// both, each relative to its best.
class Finals {
 public:
  Finals(cublasLtHandle_t handle, const Product& product) : handle_(handle), product_(product) {}

  /// The fastest first; `ms`: of one run, roughly.
  void enter(const cublasLtMatmulAlgo_t& algorithm, double ms) {
    if (entries_.empty()) ms_ = std::max(ms, 1e-3);
    entries_.push_back({algorithm});
  }

  cublasLtMatmulAlgo_t winner() {
    constexpr int kCoolRounds = 4, kWarmRounds = 10;
    measure(&Entry::cool, kCoolRounds, /*ms=*/1.0, std::chrono::milliseconds(5));
    run(entries_.front(), /*ms=*/100.0);
    measure(&Entry::warm, kWarmRounds, /*ms=*/2.5, std::chrono::milliseconds(0));
    const double cool = best(&Entry::cool), warm = best(&Entry::warm);
    const auto score = [&](const Entry& entry) { return entry.cool / cool + entry.warm / warm; };
    return std::min_element(entries_.begin(), entries_.end(),
                            [&](const Entry& a, const Entry& b) { return score(a) < score(b); })
        ->algorithm;
  }

 private:
  struct Entry {
    cublasLtMatmulAlgo_t algorithm;
    double cool = 0, warm = 0;  ///< milliseconds of one run, summed over the rounds
  };

  float run(const Entry& entry, double ms) const {
    const int runs = std::clamp(static_cast<int>(ms / ms_), 1, 1000);
    return time_of(handle_, product_, entry.algorithm, runs);
  }

  /// In turns, every second round backwards: the clock goes on changing.
  void measure(double Entry::*sum, int rounds, double ms, std::chrono::milliseconds rest) {
    for (int round = 0; round < rounds; ++round) {
      for (Entry& entry : entries_) {
        if (rest.count() > 0) std::this_thread::sleep_for(rest);
        entry.*sum += run(entry, ms);
      }
      std::reverse(entries_.begin(), entries_.end());
    }
  }

  double best(double Entry::*sum) const {
    double lowest = entries_.front().*sum;
    for (const Entry& entry : entries_) lowest = std::min(lowest, entry.*sum);
    return lowest;
  }

  cublasLtHandle_t handle_;
  const Product& product_;
  std::vector<Entry> entries_;
  double ms_ = 1.0;
};

cublasLtMatmulAlgo_t fastest(cublasLtHandle_t handle, const Product& product,
                             const std::vector<cublasLtMatmulAlgo_t>& algorithms) {
  const at::Tensor out = random_like(product.out), a = random_like(product.a),
                   b = random_like(product.b);
  const at::Tensor c = product.c.is_same(product.out) ? out : random_like(product.c);
  const Product rehearsal(out, {a, (product.key[3] & 2) != 0}, {b, (product.key[3] & 1) != 0},
                          product.beta, c);
  std::vector<std::pair<double, size_t>> times;  // of one run, which algorithm
  for (size_t i = 0; i < algorithms.size(); ++i) {
    times.emplace_back(time_of(handle, rehearsal, algorithms[i], kTimedRuns), i);
  }
  std::sort(times.begin(), times.end());
  Finals finals(handle, rehearsal);
  for (size_t k = 0; k < times.size() && k < kFinalists; ++k) {
    const auto& [ms, i] = times[k];
    if (ms <= kCloseToBest * times.front().first) finals.enter(algorithms[i], ms);
  }
  return finals.winner();
}

cublasLtMatmulAlgo_t to_library(const GemmAlgorithm& stored) {
  cublasLtMatmulAlgo_t algorithm;
  static_assert(sizeof(algorithm) == sizeof(stored));
  std::memcpy(&algorithm, &stored, sizeof(stored));
  return algorithm;
}

GemmAlgorithm to_stored(const cublasLtMatmulAlgo_t& algorithm) {
  GemmAlgorithm stored;
  std::memcpy(stored.data(), &algorithm, sizeof(algorithm));
  return stored;
}

bool still_valid(cublasLtHandle_t handle, const Product& product,
                 const cublasLtMatmulAlgo_t& algorithm) {
  cublasLtMatmulHeuristicResult_t result;
  return cublasLtMatmulAlgoCheck(handle, product.description.get(), product.b_layout.get(),
                                 product.a_layout.get(), product.out_layout.get(),
                                 product.out_layout.get(), &algorithm,
                                 &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= kWorkspaceBytes;
}

/// The algorithm of each product met so far. Forward and backward run on different threads.
class Chooser {
 public:
  cublasLtMatmulAlgo_t choose(cublasLtHandle_t handle, const Product& product) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool untimed =
        at::globalContext().deterministicAlgorithms() || product.work() < kWorthTiming;
    auto& known = untimed ? untimed_ : timed_;
    if (const auto found = known.find(product.key); found != known.end()) return found->second;
    if (untimed) {
      return known.emplace(product.key, candidates(handle, product, 1).front()).first->second;
    }
    if (at::cuda::currentStreamCaptureStatus() != at::cuda::CaptureStatus::None) {
      return candidates(handle, product, 1).front();
    }
    return known.emplace(product.key, stored_or_timed(handle, product)).first->second;
  }

 private:
  cublasLtMatmulAlgo_t stored_or_timed(cublasLtHandle_t handle, const Product& product) {
    if (!cache_) cache_ = std::make_unique<GemmCache>(gemm_cache_path());
    if (const GemmAlgorithm* stored = cache_->find(product.key)) {
      const cublasLtMatmulAlgo_t algorithm = to_library(*stored);
      if (still_valid(handle, product, algorithm)) return algorithm;
    }
    const cublasLtMatmulAlgo_t algorithm =
        fastest(handle, product, candidates(handle, product, kCandidates));
    cache_->insert(product.key, to_stored(algorithm));
    return algorithm;
  }

  std::mutex mutex_;
  std::map<GemmKey, cublasLtMatmulAlgo_t> timed_, untimed_;
  std::unique_ptr<GemmCache> cache_;
};

void check_matrix(const at::Tensor& x, bool output) {
  const bool type = x.scalar_type() == at::kBFloat16 || (output && x.scalar_type() == at::kFloat);
  TORCH_CHECK(x.is_cuda() && x.dim() == 2 && type && x.stride(1) == 1 && x.numel() > 0,
              "gemm: expected a bf16 CUDA matrix with contiguous rows, got ", x.toString(), " ",
              x.sizes(), " with strides ", x.strides());
}

}  // namespace

std::string gemm_cache_path() {
  const char* cache = std::getenv("STABLEMASK_CACHE");
  const char* home = std::getenv("HOME");
  if (cache == nullptr && home == nullptr) return "";
  const std::string root = cache != nullptr ? cache : std::string(home) + "/.cache/stablemask";
  std::string gpu = at::cuda::getCurrentDeviceProperties()->name;
  std::replace_if(
      gpu.begin(), gpu.end(), [](unsigned char c) { return !std::isalnum(c); }, '-');
  return root + "/gemm/" + gpu + "-cublaslt-" + std::to_string(cublasLtGetVersion()) + "-" +
         std::to_string(kMethod) + ".txt";
}

void gemm(at::Tensor& out, const Operand& a, const Operand& b, double beta,
          const at::Tensor& addend) {
  check_matrix(out, true);
  check_matrix(a.matrix, false);
  check_matrix(b.matrix, false);
  const auto rows = [](const Operand& x) { return x.matrix.size(x.transposed ? 1 : 0); };
  const auto columns = [](const Operand& x) { return x.matrix.size(x.transposed ? 0 : 1); };
  TORCH_CHECK(out.size(0) == rows(a) && out.size(1) == columns(b) && columns(a) == rows(b),
              "gemm: cannot write [", rows(a), ",", columns(a), "]·[", rows(b), ",", columns(b),
              "] to ", out.sizes());
  TORCH_CHECK(
      !addend.defined() || (addend.sizes() == out.sizes() && addend.strides() == out.strides() &&
                            addend.scalar_type() == out.scalar_type() && addend.is_cuda()),
      "gemm: cannot add ", addend.sizes(), " to ", out.sizes());
  static Chooser chooser;
  const c10::cuda::CUDAGuard guard(out.device());
  const cublasLtHandle_t handle = at::cuda::getCurrentCUDABlasLtHandle();
  const Product product(out, a, b, beta, addend.defined() ? addend : out);
  check(product.run(handle, chooser.choose(handle, product)), "matrix product");
}

}  // namespace stablemask::ops::cuda
