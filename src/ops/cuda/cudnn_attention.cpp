// cuDNN's functions are looked up in the library that LibTorch has loaded, so nothing links to it.
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define NV_CUDNN_FRONTEND_DISABLE_LOGGING
#include "src/ops/cuda/cudnn_attention.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cudnn/Handle.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <array>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace cudnn_frontend {
void* cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
}

namespace stablemask::ops::cuda {
namespace {

namespace fe = cudnn_frontend;
using Attributes = fe::graph::Tensor_attributes;
using Operand = std::shared_ptr<Attributes>;

/// cuDNN 9.15 and older need a workaround for lengths that are not multiples of 128.
constexpr size_t kOldestCudnn = 91600;

enum Uid : int64_t { kQ = 1, kK, kV, kOut, kLse, kSink, kDout, kDq, kDk, kDv, kUids };
using Pointers = std::array<void*, kUids>;

void check(fe::error_t status) {
  TORCH_CHECK(status.is_good(), "cuDNN attention: ", status.get_message());
}

/// Everything that an execution plan depends on; `key` is its cache key.
struct Shape {
  int64_t batch, length, heads, kv_heads, dim;
  double scale;
  bool alibi, sink, deterministic;
  int64_t device;

  std::vector<int64_t> key(bool backward) const {
    return {batch,   length, heads,         kv_heads, dim,
            alibi,   sink,   deterministic, device,   std::bit_cast<int64_t>(scale),
            backward};
  }
  int64_t packed_heads() const { return heads + 2 * kv_heads; }
};

Shape shape_of(const CudnnAttention& call, const at::Tensor& packed) {
  return {packed.size(0),
          packed.size(1),
          call.heads,
          call.kv_heads,
          packed.size(3),
          call.scale,
          call.alibi_slopes.defined(),
          call.sink.defined(),
          /*deterministic=*/false,
          packed.get_device()};
}

Shape backward_shape_of(const CudnnAttention& call, const at::Tensor& packed) {
  Shape shape = shape_of(call, packed);
  shape.sink = false;
  shape.deterministic = call.deterministic;
  return shape;
}

/// A cuDNN operation graph and its execution plan. Replaces cudnn_frontend's execute(): that copies
/// ALiBi's slopes from a host temporary into the workspace before each launch, which the replay of
/// a CUDA graph would repeat after the temporary is gone. launch() passes the caller's slopes in
/// device memory instead.
class Plan : public fe::graph::Graph {
 public:
  Plan() {
    const cudaDeviceProp* device = at::cuda::getCurrentDeviceProperties();
    set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT)
        .set_sm_version(10 * device->major + device->minor);
  }

  void compile() {
    const cudnnHandle_t handle = at::native::getCudnnHandle();
    check(validate());
    check(build_operation_graph(handle));
    check(create_execution_plans({fe::HeurMode_t::A}));
    check(check_support());
    check(build_plans(fe::BuildPlanPolicy_t::HEURISTICS_CHOICE));
    check(get_workspace_size(workspace_bytes_));
    TORCH_CHECK(plans.candidate >= 0, "cuDNN attention: no plan was chosen");
    find_slopes();
  }

  int64_t workspace_bytes() const { return workspace_bytes_; }

  void launch(const Pointers& pointers, const at::Tensor& slopes, const at::Tensor& like) const {
    const at::Tensor workspace = at::empty({workspace_bytes_}, like.options().dtype(at::kByte));
    char* const memory = static_cast<char*>(workspace.mutable_data_ptr());
    std::vector<void*> slots = varpack_template.template_ptrs;
    for (const int slot : varpack_template.user_slots) {
      slots[slot] = pointers.at(varpack_template.all_uids[slot]);
    }
    for (const auto& [slot, offset] : varpack_template.workspace_slots) {
      slots[slot] = varpack_template.all_uids[slot] == slopes_uid_ ? slopes.mutable_data_ptr()
                                                                   : memory + offset;
    }
    check(fe::detail::execute(at::native::getCudnnHandle(),
                              plans.execution_plans[plans.candidate].get(), slots,
                              varpack_template.all_uids, memory + get_fe_workspace_size_subtree()));
  }

 private:
  /// Finds the workspace tensor that execute() would copy the slopes to. Throws c10::Error if it
  /// would initialise other parts of the workspace.
  void find_slopes() {
    enum Action : int64_t { kCopy, kClear, kNone };
    std::unordered_map<int64_t, std::tuple<int64_t, int64_t, std::vector<float>>> preparations;
    int64_t offset = 0;
    check(collect_tensors_in_workspace_subtree(preparations, offset));
    for (const auto& [uid, preparation] : preparations) {
      const int64_t action = std::get<0>(preparation);
      TORCH_CHECK(action != kClear, "cuDNN attention: unexpected initialisation of the workspace");
      if (action == kCopy) slopes_uid_ = uid;
    }
  }

  int64_t workspace_bytes_ = 0;
  int64_t slopes_uid_ = -1;
};

/// `count` heads of a tensor with `all` heads per token, as [B,H,T,D].
Attributes heads_of(const Shape& s, Uid uid, int64_t count, int64_t all) {
  return Attributes()
      .set_uid(uid)
      .set_dim({s.batch, count, s.length, s.dim})
      .set_stride({s.length * all * s.dim, s.dim, all * s.dim, 1})
      .set_data_type(fe::DataType_t::BFLOAT16);
}

Attributes rows_of(const Shape& s) {
  return Attributes()
      .set_uid(kLse)
      .set_dim({s.batch, s.heads, s.length, 1})
      .set_stride({s.heads * s.length, s.length, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
}

struct Projection {
  Operand q, k, v;
};

Projection projection(Plan& plan, const Shape& s) {
  const int64_t all = s.packed_heads();
  return {plan.tensor(heads_of(s, kQ, s.heads, all)), plan.tensor(heads_of(s, kK, s.kv_heads, all)),
          plan.tensor(heads_of(s, kV, s.kv_heads, all))};
}

void write(const Operand& result, const Attributes& as) {
  result->set_output(true)
      .set_uid(as.get_uid())
      .set_dim(as.get_dim())
      .set_stride(as.get_stride())
      .set_data_type(as.get_data_type());
}

void describe_forward(Plan& plan, const Shape& s) {
  const auto [q, k, v] = projection(plan, s);
  auto options = fe::graph::SDPA_attributes()
                     .set_generate_stats(true)
                     .set_causal_mask(true)
                     .set_alibi_mask(s.alibi)
                     .set_attn_scale(static_cast<float>(s.scale))
                     .set_implementation(fe::AttentionImplementation_t::COMPOSITE);
  if (s.sink) {
    options.set_sink_token(plan.tensor(Attributes()
                                           .set_uid(kSink)
                                           .set_dim({1, s.heads, 1, 1})
                                           .set_stride({s.heads, 1, 1, 1})
                                           .set_data_type(fe::DataType_t::FLOAT)));
  }
  const auto [out, lse] = plan.sdpa(q, k, v, options);
  write(out, heads_of(s, kOut, s.heads, s.heads));
  write(lse, rows_of(s));
}

void describe_backward(Plan& plan, const Shape& s) {
  const auto [q, k, v] = projection(plan, s);
  const Operand out = plan.tensor(heads_of(s, kOut, s.heads, s.heads));
  const Operand dout = plan.tensor(heads_of(s, kDout, s.heads, s.heads));
  const auto options = fe::graph::SDPA_backward_attributes()
                           .set_causal_mask(true)
                           .set_alibi_mask(s.alibi)
                           .set_attn_scale(static_cast<float>(s.scale))
                           .set_deterministic_algorithm(s.deterministic);
  const auto [dq, dk, dv] =
      plan.sdpa_backward(q, k, v, out, dout, plan.tensor(rows_of(s)), options);
  const int64_t all = s.packed_heads();
  write(dq, heads_of(s, kDq, s.heads, all));
  write(dk, heads_of(s, kDk, s.kv_heads, all));
  write(dv, heads_of(s, kDv, s.kv_heads, all));
}

/// An execution plan, or the reason why there is none.
struct CachedPlan {
  std::shared_ptr<const Plan> plan;
  std::string obstacle;
};

CachedPlan build(const Shape& shape, bool backward) {
  try {
    auto plan = std::make_shared<Plan>();
    backward ? describe_backward(*plan, shape) : describe_forward(*plan, shape);
    plan->compile();
    TORCH_CHECK(!shape.deterministic || plan->workspace_bytes() <= kDeterministicWorkspace,
                "the deterministic backward takes a workspace of ", plan->workspace_bytes(),
                " bytes");
    return {plan, ""};
  } catch (const c10::Error& error) {
    return {nullptr, error.what_without_backtrace()};
  } catch (const std::exception& error) {
    return {nullptr, error.what()};
  }
}

/// Builds the plan on first use; the reference is valid until the program ends.
const CachedPlan& cached_plan(const Shape& shape, bool backward) {
  static std::mutex mutex;
  static std::map<std::vector<int64_t>, CachedPlan> entries;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [place, is_new] = entries.try_emplace(shape.key(backward));
  if (is_new) place->second = build(shape, backward);
  return place->second;
}

const Plan& plan_for(const Shape& shape, bool backward) {
  const CachedPlan& found = cached_plan(shape, backward);
  TORCH_CHECK(found.plan, found.obstacle);
  return *found.plan;
}

void check_operand(const at::Tensor& x, const at::Tensor& packed, at::ScalarType type,
                   at::IntArrayRef sizes, const char* name) {
  TORCH_CHECK(x.device() == packed.device() && x.scalar_type() == type && x.is_contiguous() &&
                  x.sizes() == sizes,
              "cuDNN attention: ", name, " must be ", type, " ", sizes, ", contiguous, on ",
              packed.device(), "; got ", x.toString(), " ", x.sizes());
}

/// Pointers to the tensors of forward and backward alike.
Pointers common_pointers(const CudnnAttention& call, const at::Tensor& packed,
                         const at::Tensor& out, const at::Tensor& lse) {
  const Shape s = shape_of(call, packed);
  check_operand(packed, packed, at::kBFloat16, {s.batch, s.length, s.packed_heads(), s.dim},
                "packed");
  check_operand(out, packed, at::kBFloat16, {s.batch, s.length, s.heads, s.dim}, "out");
  check_operand(lse, packed, at::kFloat, {s.batch, s.heads, s.length}, "lse");
  if (s.alibi) check_operand(call.alibi_slopes, packed, at::kFloat, {s.heads}, "alibi_slopes");
  if (s.sink) check_operand(call.sink, packed, at::kFloat, {s.heads}, "sink");
  Pointers pointers{};
  auto* const first = static_cast<c10::BFloat16*>(packed.mutable_data_ptr());
  pointers[kQ] = first;
  pointers[kK] = first + s.heads * s.dim;
  pointers[kV] = first + (s.heads + s.kv_heads) * s.dim;
  pointers[kOut] = out.mutable_data_ptr();
  pointers[kLse] = lse.mutable_data_ptr();
  return pointers;
}

}  // namespace

std::string cudnn_attention_obstacle(const CudnnAttention& call, const at::Tensor& packed,
                                     bool gradients) {
  if (!packed.is_cuda() || packed.scalar_type() != at::kBFloat16 || !packed.is_contiguous()) {
    return "the projection must be contiguous bf16 on a GPU";
  }
  const int64_t dim = packed.size(3);
  if (dim % 8 != 0 || dim > 256) return "head_dim must be a multiple of 8, at most 256";
  if (packed.size(0) == 0 || packed.size(1) < 2) return "the length must be at least 2";
  if (fe::cudnn_dlhandle == nullptr || fe::detail::get_backend_version() < kOldestCudnn) {
    return "LibTorch has not loaded cuDNN 9.16 or newer";
  }
  const c10::cuda::CUDAGuard guard(packed.device());
  const auto shape = shape_of(call, packed);
  const CachedPlan& forward = cached_plan(shape, /*backward=*/false);
  if (!forward.plan || !gradients) return forward.obstacle;
  return cached_plan(backward_shape_of(call, packed), /*backward=*/true).obstacle;
}

void cudnn_attention_forward(const CudnnAttention& call, const at::Tensor& packed, at::Tensor& out,
                             at::Tensor& lse) {
  const c10::cuda::CUDAGuard guard(packed.device());
  Pointers pointers = common_pointers(call, packed, out, lse);
  if (call.sink.defined()) pointers[kSink] = call.sink.mutable_data_ptr();
  plan_for(shape_of(call, packed), /*backward=*/false).launch(pointers, call.alibi_slopes, packed);
}

void cudnn_attention_backward(const CudnnAttention& call, const at::Tensor& dout,
                              const at::Tensor& packed, const at::Tensor& out,
                              const at::Tensor& lse, at::Tensor& dpacked) {
  const c10::cuda::CUDAGuard guard(packed.device());
  Pointers pointers = common_pointers(call, packed, out, lse);
  check_operand(dout, packed, at::kBFloat16, out.sizes(), "dout");
  check_operand(dpacked, packed, at::kBFloat16, packed.sizes(), "dpacked");
  const Shape shape = backward_shape_of(call, packed);
  auto* const first = static_cast<c10::BFloat16*>(dpacked.mutable_data_ptr());
  pointers[kDout] = dout.mutable_data_ptr();
  pointers[kDq] = first;
  pointers[kDk] = first + shape.heads * shape.dim;
  pointers[kDv] = first + (shape.heads + shape.kv_heads) * shape.dim;
  plan_for(shape, /*backward=*/true).launch(pointers, call.alibi_slopes, packed);
}

}  // namespace stablemask::ops::cuda
