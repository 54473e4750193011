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
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "src/ops/algorithms.h"
#include "src/ops/cuda/gemm_cache.h"
#include "src/ops/cuda/trials.h"
#include "src/ops/multiprocessors.h"

namespace stablemask::ops::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int kCandidates = 16;  // requested from cuBLASLt, which names those first that it expects
                                 // to be the fastest
/// GEMMs of fewer multiply-adds are not timed: they occur in many shapes, and timing them would
/// take longer than it saves.
constexpr double kMinTimedWork = 1e9;
/// Part of the cache file's name: the choices of another version are not read.
constexpr int kCacheVersion = 2;

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
using MatrixLayout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using MatmulDescriptor = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t type_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return CUDA_R_32F;
    case at::kFloat8_e4m3fn:
      return CUDA_R_8F_E4M3;
    case at::kFloat8_e5m2:
      return CUDA_R_8F_E5M2;
    default:
      return CUDA_R_16BF;
  }
}

/// A factor of a GEMM in its key: 0 for bf16.
int64_t key_of(const at::Tensor& factor) {
  const cudaDataType_t type = type_of(factor);
  return type == CUDA_R_8F_E4M3 ? 1 : type == CUDA_R_8F_E5M2 ? 2 : 0;
}

/// The largest power of two up to 256 that divides the address.
int64_t alignment(const at::Tensor& x) {
  const auto address = reinterpret_cast<uintptr_t>(x.data_ptr());
  return static_cast<int64_t>(std::min<uintptr_t>(address & (~address + 1), 256));
}

/// cuBLASLt is column-major: a row-major matrix is described as its transpose, `columns` x `rows`.
MatrixLayout layout_of(const at::Tensor& x) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type_of(x), x.size(1), x.size(0), x.stride(0)),
        "matrix layout");
  return MatrixLayout(layout);
}

/// One cuBLASLt matmul with its descriptors: outᵀ = alpha·bᵀ·aᵀ + beta·cᵀ in column-major terms.
/// `left`: multiprocessors that it does not use; `fast`: as of gemm().
struct Matmul {
  Matmul(const at::Tensor& out_in, const Operand& a_in, const Operand& b_in, double beta_in,
         const at::Tensor& c_in, int64_t left, bool fast_in)
      : out(out_in),
        a(a_in.matrix),
        b(b_in.matrix),
        c(c_in),
        beta(static_cast<float>(beta_in)),
        a_inverse(a_in.inverse),
        b_inverse(b_in.inverse),
        fast(fast_in) {
    cublasLtMatmulDesc_t handle = nullptr;
    check(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul descriptor");
    descriptor.reset(handle);
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSA, b_in.transposed);
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSB, a_in.transposed);
    if (left > 0) {
      set(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET,
          static_cast<int32_t>(at::cuda::getCurrentDeviceProperties()->multiProcessorCount - left));
    }
    if (b_inverse != nullptr) set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, b_inverse);
    if (a_inverse != nullptr) set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, a_inverse);
    if (fast) set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
    a_layout = layout_of(a);
    b_layout = layout_of(b);
    out_layout = layout_of(out);
    const int64_t inner = a_in.transposed ? a.size(0) : a.size(1);
    key = {out.size(0),
           out.size(1),
           inner,
           a_in.transposed * 2 + b_in.transposed +
               4 * (key_of(a) + 3 * key_of(b) + 9 * static_cast<int64_t>(fast)),
           (out.scalar_type() == at::kFloat) + 2 * left,
           beta == 0.0f     ? 0
           : c.is_same(out) ? 1
                            : 2,
           a.stride(0),
           b.stride(0),
           out.stride(0),
           std::min({alignment(a), alignment(b), alignment(c), alignment(out)})};
  }

  template <typename Value>
  void set(cublasLtMatmulDescAttributes_t which, const Value& value) {
    check(cublasLtMatmulDescSetAttribute(descriptor.get(), which, &value, sizeof(value)),
          "attribute of the matmul");
  }
  void set_transposed(cublasLtMatmulDescAttributes_t which, bool transposed) {
    set(which, transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  }

  double work() const { return 1.0 * key[0] * key[1] * key[2]; }  ///< multiply-adds

  cublasStatus_t run(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm) const {
    const at::Tensor workspace =
        at::empty({static_cast<int64_t>(kWorkspaceBytes)}, out.options().dtype(at::kByte));
    return cublasLtMatmul(handle, descriptor.get(), &alpha, b.const_data_ptr(), b_layout.get(),
                          a.const_data_ptr(), a_layout.get(), &beta, c.const_data_ptr(),
                          out_layout.get(), out.data_ptr(), out_layout.get(), &algorithm,
                          workspace.data_ptr(), kWorkspaceBytes,
                          at::cuda::getCurrentCUDAStream().stream());
  }

  at::Tensor out, a, b, c;
  float beta, alpha = 1.0f;
  const float *a_inverse, *b_inverse;
  bool fast;
  MatmulDescriptor descriptor;
  MatrixLayout a_layout, b_layout, out_layout;
  GemmKey key;
};

std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, const Matmul& matmul,
                                             int count) {
  cublasLtMatmulPreference_t raw = nullptr;
  check(cublasLtMatmulPreferenceCreate(&raw), "preference");
  const Preference preference(raw);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(raw, which, &value, sizeof(value)), "preference");
  };
  const auto bytes = static_cast<uint32_t>(matmul.key.back());
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes);
  std::vector<cublasLtMatmulHeuristicResult_t> results(count);
  int found = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, matmul.descriptor.get(), matmul.b_layout.get(),
                                       matmul.a_layout.get(), matmul.out_layout.get(),
                                       matmul.out_layout.get(), raw, count, results.data(), &found),
        "no algorithm for this GEMM");
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
  }
  TORCH_CHECK(!algorithms.empty(), "cuBLASLt: no algorithm for this GEMM");
  return algorithms;
}

/// Times bursts by the GPU's clock. The host waits once, at the end.
std::vector<double> times_of(cublasLtHandle_t handle, const Matmul& matmul,
                             const std::vector<cublasLtMatmulAlgo_t>& algorithms,
                             const std::vector<Burst>& bursts) {
  std::vector<at::cuda::CUDAEvent> borders;
  const auto border = [&] { borders.emplace_back(cudaEventDefault).record(); };
  std::vector<bool> launched;
  border();
  for (const Burst& burst : bursts) {
    bool all = true;
    for (int i = 0; i < burst.launches && all; ++i) {
      all = matmul.run(handle, algorithms[burst.candidate]) == CUBLAS_STATUS_SUCCESS;
    }
    launched.push_back(all);
    border();
  }
  borders.back().synchronize();
  std::vector<double> times;
  for (size_t i = 0; i < bursts.size(); ++i) {
    times.push_back(launched[i] ? borders[i].elapsed_time(borders[i + 1]) / bursts[i].launches
                                : std::numeric_limits<double>::infinity());
  }
  return times;
}

/// Random data of the same shape and strides; with zeros the GPU draws less power and runs faster.
at::Tensor random_like(const at::Tensor& x) {
  const bool wide = key_of(x) == 0;
  return at::empty_strided(x.sizes(), x.strides(),
                           wide ? x.options() : x.options().dtype(at::kHalf))
      .normal_(0.0, 0.5)
      .to(x.scalar_type());
}

/// The fastest of the algorithms on random data of the operands' shapes.
cublasLtMatmulAlgo_t tune(cublasLtHandle_t handle, const Matmul& matmul,
                          const std::vector<cublasLtMatmulAlgo_t>& algorithms) {
  const auto start = std::chrono::steady_clock::now();
  const at::Tensor out = random_like(matmul.out), a = random_like(matmul.a),
                   b = random_like(matmul.b);
  const at::Tensor c = matmul.c.is_same(matmul.out) ? out : random_like(matmul.c);
  const Matmul dry_run(out, {a, (matmul.key[3] & 2) != 0, matmul.a_inverse},
                       {b, (matmul.key[3] & 1) != 0, matmul.b_inverse}, matmul.beta, c,
                       matmul.key[4] / 2, matmul.fast);
  const size_t fastest =
      fastest_candidate(algorithms.size(), [&](const std::vector<Burst>& bursts) {
        return times_of(handle, dry_run, algorithms, bursts);
      });
  count_trial(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return algorithms[fastest];
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

bool still_valid(cublasLtHandle_t handle, const Matmul& matmul,
                 const cublasLtMatmulAlgo_t& algorithm) {
  cublasLtMatmulHeuristicResult_t result;
  return cublasLtMatmulAlgoCheck(handle, matmul.descriptor.get(), matmul.b_layout.get(),
                                 matmul.a_layout.get(), matmul.out_layout.get(),
                                 matmul.out_layout.get(), &algorithm,
                                 &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= kWorkspaceBytes;
}

/// The algorithm of every GEMM seen so far. Thread-safe: forward and backward run on different
/// threads.
class AlgorithmChooser {
 public:
  cublasLtMatmulAlgo_t choose(cublasLtHandle_t handle, const Matmul& matmul) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool untimed =
        at::globalContext().deterministicAlgorithms() || matmul.work() < kMinTimedWork;
    auto& known = untimed ? untimed_ : timed_;
    if (const auto found = known.find(matmul.key); found != known.end()) return found->second;
    if (untimed) {
      return known.emplace(matmul.key, candidates(handle, matmul, 1).front()).first->second;
    }
    if (at::cuda::currentStreamCaptureStatus() != at::cuda::CaptureStatus::None) {
      return candidates(handle, matmul, 1).front();
    }
    return known.emplace(matmul.key, shared_choice(handle, matmul)).first->second;
  }

 private:
  /// The choice of this process or of another one. While it waits, the other process times its
  /// candidates and needs no collective that this one has not enqueued yet: both run the same
  /// program, and it asked for the same GEMM.
  cublasLtMatmulAlgo_t shared_choice(cublasLtHandle_t handle, const Matmul& matmul) {
    const std::string path = gemm_cache_path();
    if (!cache_) cache_ = std::make_unique<GemmCache>(path);
    const AlgorithmExchange exchange = algorithm_exchange();
    std::optional<GemmAlgorithm> chosen;
    if (exchange.once) {
      // The file's name states GPU and library: only processes that have the same ones share.
      const std::string file = path.substr(path.rfind('/') + 1);
      chosen = algorithm_from_text(exchange.once("gemm " + file + " " + text_of(matmul.key), [&] {
        return text_of(to_stored(stored_or_timed(handle, matmul)));
      }));
      if (chosen && !still_valid(handle, matmul, to_library(*chosen))) chosen.reset();
    }
    if (!chosen) chosen = to_stored(stored_or_timed(handle, matmul));
    if (exchange.writes_cache) cache_->insert(matmul.key, *chosen);
    return to_library(*chosen);
  }

  cublasLtMatmulAlgo_t stored_or_timed(cublasLtHandle_t handle, const Matmul& matmul) const {
    if (const GemmAlgorithm* stored = cache_->find(matmul.key)) {
      const cublasLtMatmulAlgo_t algorithm = to_library(*stored);
      if (still_valid(handle, matmul, algorithm)) return algorithm;
    }
    return tune(handle, matmul, candidates(handle, matmul, kCandidates));
  }

  std::mutex mutex_;
  std::map<GemmKey, cublasLtMatmulAlgo_t> timed_, untimed_;
  std::unique_ptr<GemmCache> cache_;
};

void check_matrix(const at::Tensor& x, bool output) {
  const bool type =
      x.scalar_type() == at::kBFloat16 || (output ? x.scalar_type() == at::kFloat : key_of(x) > 0);
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
         std::to_string(kCacheVersion) + ".txt";
}

void gemm(at::Tensor& out, const Operand& a, const Operand& b, double beta,
          const at::Tensor& addend, double alpha, bool fast) {
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
  static AlgorithmChooser chooser;
  const c10::cuda::CUDAGuard guard(out.device());
  const cublasLtHandle_t handle = at::cuda::getCurrentCUDABlasLtHandle();
  Matmul matmul(out, a, b, beta, addend.defined() ? addend : out, multiprocessors_left(), fast);
  matmul.alpha = static_cast<float>(alpha);
  check(matmul.run(handle, chooser.choose(handle, matmul)), "GEMM");
}

}  // namespace stablemask::ops::cuda
