#include <ATen/ATen.h>

#include <cmath>

#include "src/ops/cuda/decode.h"
#include "src/ops/cuda/ema.h"
#include "src/ops/cuda/launchers.h"
#include "src/ops/cuda/run.h"
#include "src/ops/cuda/stable_mask.h"
#include "src/ops/dropout_rules.h"
#include "src/ops/kernels.h"
#include "src/ops/overlap.h"

/// CUDA kernels on tensors: checks the arguments, fills the parameter structs, allocates scratch
/// memory and launches the kernels of cuda/*.cu on the current stream.
namespace stablemask::ops::cuda {
namespace {

DType dtype_of(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
              "CUDA kernel: expected fp32 or bf16, got ", x.toString());
  return x.scalar_type() == at::kFloat ? DType::kFloat32 : DType::kBFloat16;
}

/// Data pointer of a contiguous CUDA tensor; c10::Error naming `name` unless it has `count`
/// elements of `type`.
template <typename T = void>
T* data_of(const at::Tensor& x, at::ScalarType type, int64_t count, const char* name) {
  TORCH_CHECK(x.is_cuda() && x.scalar_type() == type && x.is_contiguous() && x.numel() == count,
              "CUDA kernel: ", name, " must be a contiguous CUDA tensor of ", count,
              " elements of ", type, ", got ", x.toString(), " ", x.sizes());
  return static_cast<T*>(x.data_ptr());
}

template <typename T = void>
T* data_or_null(const at::Tensor& x, at::ScalarType type, int64_t count, const char* name) {
  return x.defined() ? data_of<T>(x, type, count, name) : nullptr;
}

int64_t rows_of(const at::Tensor& x) { return x.numel() / x.size(-1); }

/// Strides in elements; 0 for dimensions of size 1, whose stride is never used and must not prevent
/// 16-byte accesses.
template <int n>
void copy_strides(const at::Tensor& x, int64_t (&strides)[n]) {
  for (int d = 0; d < n; ++d) strides[d] = x.size(d) == 1 ? 0 : x.stride(d);
}

}  // namespace

void rms_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                      double eps, at::Tensor& sum, at::Tensor& y, at::Tensor& rstd) {
  if (x.numel() == 0) return;
  const auto type = x.scalar_type();
  RmsNormForward p{};
  p.rows = rows_of(x);
  p.cols = x.size(-1);
  TORCH_CHECK(p.cols <= 8192, "rms_norm: at most 8192 channels on a GPU, got ", p.cols);
  p.x = data_of(x, type, x.numel(), "x");
  p.residual = data_or_null(residual, type, x.numel(), "residual");
  p.weight = data_of(weight, weight.scalar_type(), p.cols, "weight");
  p.sum = residual.defined() ? data_of(sum, type, x.numel(), "sum") : nullptr;
  p.y = data_of(y, type, x.numel(), "y");
  p.rstd = data_of<float>(rstd, at::kFloat, p.rows, "rstd");
  p.eps = static_cast<float>(eps);
  p.dtype = dtype_of(x);
  p.weight_dtype = dtype_of(weight);
  run("rms_norm", p, x);
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& x,
                       const at::Tensor& weight, const at::Tensor& rstd, at::Tensor& dx,
                       at::Tensor& dw) {
  if (x.numel() == 0) return;
  const auto type = x.scalar_type();
  RmsNormBackward p{};
  p.rows = rows_of(x);
  p.cols = x.size(-1);
  p.dy = data_of(dy, type, x.numel(), "dy");
  p.dsum = data_or_null(dsum, type, x.numel(), "dsum");
  p.x = data_of(x, type, x.numel(), "x");
  p.weight = data_of(weight, weight.scalar_type(), p.cols, "weight");
  p.rstd = data_of<const float>(rstd, at::kFloat, p.rows, "rstd");
  p.dx = data_of(dx, type, x.numel(), "dx");
  p.dw = data_of<float>(dw, at::kFloat, p.cols, "dw");
  const at::Tensor scratch = at::empty({RmsNormBackward::kPartials, p.cols}, dw.options());
  p.partials = scratch.data_ptr<float>();
  p.dtype = dtype_of(x);
  p.weight_dtype = dtype_of(weight);
  run("rms_norm_backward", p, x);
}

void swiglu_forward(const at::Tensor& gate_up, at::Tensor& out) {
  if (out.numel() == 0) return;
  SwigluForward p{};
  p.gate_up = data_of(gate_up, out.scalar_type(), 2 * out.numel(), "gate_up");
  p.out = data_of(out, out.scalar_type(), out.numel(), "out");
  p.rows = rows_of(out);
  p.features = out.size(-1);
  p.dtype = dtype_of(out);
  run("swiglu", p, out);
}

void swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up, at::Tensor& dgate_up) {
  if (dout.numel() == 0) return;
  const auto type = dout.scalar_type();
  SwigluBackward p{};
  p.dout = data_of(dout, type, dout.numel(), "dout");
  p.gate_up = data_of(gate_up, type, 2 * dout.numel(), "gate_up");
  p.dgate_up = data_of(dgate_up, type, 2 * dout.numel(), "dgate_up");
  p.rows = rows_of(dout);
  p.features = dout.size(-1);
  p.dtype = dtype_of(dout);
  run("swiglu_backward", p, dout);
}

void dropout(const at::Tensor& x, const at::Tensor& key, int64_t stream, int64_t first,
             double share, at::Tensor& out) {
  if (x.numel() == 0) return;
  DropoutArgs p{};
  p.x = data_of(x, x.scalar_type(), x.numel(), "x");
  p.out = data_of(out, x.scalar_type(), x.numel(), "out");
  p.key = data_of<const int64_t>(key, at::kLong, 1, "key");
  p.stream = stream;
  p.first = first;
  p.count = x.numel();
  p.threshold = ops::dropout::threshold_of(share);
  p.factor = static_cast<float>(1.0 / (1.0 - share));
  p.dtype = dtype_of(x);
  run("dropout", p, x);
}

void rope_(at::Tensor& packed, int64_t heads, int64_t dims, const at::Tensor& positions,
           const at::Tensor& table, bool inverse) {
  if (packed.numel() == 0) return;
  TORCH_CHECK(packed.dim() == 4 && heads <= packed.size(2) && dims % 2 == 0 &&
                  dims <= packed.size(3) && table.size(-1) == dims,
              "rope: ", heads, " heads of ", dims, " dims do not fit ", packed.sizes());
  Rope p{};
  p.tokens = packed.size(0) * packed.size(1);
  p.position_period = positions.numel();
  TORCH_CHECK(p.position_period == p.tokens || p.position_period == packed.size(1),
              "rope: positions must be [T] or [B,T], got ", positions.sizes());
  p.packed = data_of(packed, packed.scalar_type(), packed.numel(), "packed");
  p.positions = data_of<const int64_t>(positions, at::kLong, positions.numel(), "positions");
  p.table = data_of<const float>(table, at::kFloat, table.numel(), "table");
  p.table_rows = table.size(0);
  p.packed_heads = static_cast<int>(packed.size(2));
  p.head_dim = static_cast<int>(packed.size(3));
  p.heads = static_cast<int>(heads);
  p.dims = static_cast<int>(dims);
  p.inverse = inverse;
  p.dtype = dtype_of(packed);
  if (heads > 0 && dims > 0) run("rope", p, packed);
}

void cross_entropy_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& scale,
                    double z_loss, bool grad, at::Tensor& losses) {
  if (logits.numel() == 0) return;
  CrossEntropy p{};
  TORCH_CHECK(logits.is_cuda() && logits.dim() == 2 && logits.stride(1) == 1,
              "cross_entropy: need CUDA logits [rows, V] with contiguous rows, got ",
              logits.toString(), " ", logits.sizes());
  p.rows = logits.size(0);
  p.vocab = logits.size(1);
  p.stride = logits.stride(0);
  p.logits = logits.data_ptr();
  p.targets = data_of<const int64_t>(targets, at::kLong, p.rows, "targets");
  p.losses = data_of<float>(losses, at::kFloat, p.rows, "losses");
  p.scale = grad ? data_of<const double>(scale, at::kDouble, 1, "scale") : nullptr;
  p.z_loss = static_cast<float>(z_loss);
  p.grad = grad;
  p.dtype = dtype_of(logits);
  run("cross_entropy", p, logits);
}

void stable_mask_correct_(at::Tensor& out, at::Tensor& lse, const at::Tensor& log_mass) {
  if (out.numel() == 0) return;
  TORCH_CHECK(out.dim() == 4 && out.stride(3) == 1,
              "stable_mask_correct: out must be [B,T,H,D] with contiguous D");
  const at::Tensor mass = log_mass.expand({out.size(0), out.size(2), out.size(1)});
  TORCH_CHECK(lse.is_cuda() && lse.scalar_type() == at::kFloat && lse.sizes() == mass.sizes() &&
                  mass.is_cuda() && mass.scalar_type() == at::kFloat,
              "stable_mask_correct: lse and log_mass must be fp32 [B,H,T] on the GPU");
  StableMaskCorrection p{};
  p.out = out.data_ptr();
  p.lse = lse.data_ptr<float>();
  p.log_mass = mass.const_data_ptr<float>();
  copy_strides(out, p.out_strides);
  copy_strides(lse, p.lse_strides);
  copy_strides(mass, p.mass_strides);
  p.batch = out.size(0);
  p.length = out.size(1);
  p.heads = static_cast<int>(out.size(2));
  p.dim = static_cast<int>(out.size(3));
  p.dtype = dtype_of(out);
  run("stable_mask_correct", p, out);
}

at::Tensor stable_mask_mass_gradient(const at::Tensor& dout, const at::Tensor& out,
                                     const at::Tensor& lse, const at::Tensor& log_mass) {
  const at::Tensor grad = dout.stride(3) == 1 ? dout : dout.contiguous();
  TORCH_CHECK(out.dim() == 4 && out.stride(3) == 1 && grad.sizes() == out.sizes() &&
                  grad.scalar_type() == out.scalar_type() && grad.is_cuda() && out.is_cuda(),
              "stable_mask_mass_gradient: dout and out must be [B,T,H,D] of one dtype on the GPU");
  const at::Tensor mass = log_mass.expand({out.size(0), out.size(2), out.size(1)});
  TORCH_CHECK(lse.is_cuda() && lse.scalar_type() == at::kFloat && lse.sizes() == mass.sizes() &&
                  mass.is_cuda() && mass.scalar_type() == at::kFloat &&
                  (log_mass.dim() == 2 || log_mass.size(0) == out.size(0)),
              "stable_mask_mass_gradient: lse must be fp32 [B,H,T] and log_mass fp32 [H,T] or "
              "[B,H,T] on the GPU");
  if (out.numel() == 0) return at::zeros(log_mass.sizes(), lse.options());
  const at::Tensor result = at::empty(log_mass.sizes(), lse.options());
  StableMaskMassGradient p{};
  p.dout = grad.const_data_ptr();
  p.out = out.const_data_ptr();
  p.lse = lse.const_data_ptr<float>();
  p.log_mass = mass.const_data_ptr<float>();
  p.dlog_mass = result.data_ptr<float>();
  copy_strides(grad, p.dout_strides);
  copy_strides(out, p.out_strides);
  copy_strides(lse, p.lse_strides);
  copy_strides(mass, p.mass_strides);
  p.batch = out.size(0);
  p.summed = log_mass.dim() == 2 ? p.batch : 1;
  p.length = out.size(1);
  p.heads = static_cast<int>(out.size(2));
  p.dim = static_cast<int>(out.size(3));
  p.dtype = dtype_of(out);
  run("stable_mask_mass_gradient", p, out);
  return result;
}

void embedding_backward(const at::Tensor& dy, const at::Tensor& ids, at::Tensor& dw) {
  if (ids.numel() == 0) return;
  EmbeddingBackward p{};
  p.tokens = ids.numel();
  p.vocab = dw.size(0);
  p.cols = dw.size(1);
  p.dy = data_of(dy, dy.scalar_type(), p.tokens * p.cols, "dy");
  p.ids = data_of<const int64_t>(ids, at::kLong, p.tokens, "ids");
  p.dw = data_of<float>(dw, at::kFloat, dw.numel(), "dw");
  p.dtype = dtype_of(dy);
  const c10::cuda::CUDAGuard guard(dw.device());
  size_t bytes = 0;
  const cudaError_t error = scratch_bytes(p, &bytes);
  TORCH_CHECK(error == cudaSuccess, "embedding_backward: ", cudaGetErrorString(error));
  const at::Tensor scratch =
      at::empty({static_cast<int64_t>(bytes)}, dw.options().dtype(at::kByte));
  p.scratch = scratch.data_ptr();
  run("embedding_backward", p, dy);
}

void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control) {
  if (weights.numel() == 0) return;
  AdamW p{};
  p.size = weights.numel();
  const bool split = remainder.defined();
  p.weights = data_of(weights, split ? at::kBFloat16 : at::kFloat, p.size, "weights");
  p.remainder = split ? data_of<int16_t>(remainder, at::kShort, p.size, "remainder") : nullptr;
  p.bf16_moments = m.scalar_type() == at::kBFloat16;
  const at::ScalarType moment = p.bf16_moments ? at::kBFloat16 : at::kFloat;
  p.m = data_of(m, moment, p.size, "m");
  p.v = data_of(v, moment, p.size, "v");
  p.seed = args.seed;
  p.first = args.first;
  p.grad = data_of<const float>(grad, at::kFloat, p.size, "grad");
  p.beta1 = args.beta1;
  p.beta2 = args.beta2;
  p.eps = args.eps;
  p.weight_decay = args.weight_decay;
  p.control = data_of<const double>(control, at::kDouble, kUpdateControls, "control");
  run("adamw", p, weights);
}

void ema_(at::Tensor& average, const at::Tensor& weights, const at::Tensor& remainder, double decay,
          const at::Tensor& control) {
  if (weights.numel() == 0) return;
  Ema p{};
  p.size = weights.numel();
  p.average = data_of<float>(average, at::kFloat, p.size, "average");
  const auto type = remainder.defined() ? at::kBFloat16 : at::kFloat;
  p.weights = data_of<const void>(weights, type, p.size, "weights");
  p.remainder = data_or_null<const int16_t>(remainder, at::kShort, p.size, "remainder");
  p.decay = decay;
  p.control = data_of<const double>(control, at::kDouble, kUpdateControls, "control");
  run("ema", p, weights);
}

at::Tensor sum_of_squares(const at::Tensor& flat) {
  const at::Tensor result = at::empty({}, flat.options().dtype(at::kDouble));
  const at::Tensor scratch = at::empty({SumOfSquares::kPartials}, result.options());
  SumOfSquares p{};
  p.x = data_of<const float>(flat, at::kFloat, flat.numel(), "flat");
  p.size = flat.numel();
  p.partials = scratch.data_ptr<double>();
  p.result = result.data_ptr<double>();
  run("sum_of_squares", p, flat);
  return result;
}

void decode_attention(const at::Tensor& packed, int64_t heads, const DecodeCache& cache,
                      const at::Tensor& rows, const at::Tensor& positions,
                      const DecodeOptions& options, at::Tensor& out) {
  const int64_t batch = packed.size(0);
  if (batch == 0) return;
  const auto vector = [](const at::Tensor& x) {
    return x.defined() ? x.to(at::kFloat).contiguous() : x;
  };
  const at::Tensor gamma = vector(options.pseudo ? options.pseudo->gamma : at::Tensor());
  const at::Tensor p_base = vector(options.pseudo ? options.pseudo->p_base : at::Tensor());
  const at::Tensor slopes = vector(options.alibi_slopes);
  const at::Tensor where = positions.contiguous();
  const at::Tensor row_of = rows.defined() ? rows.contiguous() : rows;
  Decode p{};
  p.dtype = dtype_of(packed);
  p.packed = data_of(packed, packed.scalar_type(), packed.numel(), "packed");
  p.out = data_of(out, packed.scalar_type(), batch * heads * packed.size(2), "out");
  p.keys = cache.keys.data_ptr();
  p.values = cache.values.data_ptr();
  copy_strides(cache.keys, p.key_strides);
  copy_strides(cache.values, p.value_strides);
  p.positions = data_of<const int64_t>(where, at::kLong, batch, "positions");
  p.rows = data_or_null<const int64_t>(row_of, at::kLong, batch, "rows");
  p.slopes = data_or_null<const float>(slopes, at::kFloat, heads, "alibi_slopes");
  p.gamma = data_or_null<const float>(gamma, at::kFloat, heads, "pseudo scores");
  p.p_base = data_or_null<const float>(p_base, at::kFloat, heads, "pseudo scores");
  p.rope_dims = static_cast<int>(options.rope_dims);
  if (p.rope_dims > 0) {
    p.table = options.rope_table.const_data_ptr<float>();
    p.table_rows = options.rope_table.size(0);
  }
  if (options.pseudo) {
    const MaskLength& length = options.pseudo->length;
    const bool infinite = length.kind == MaskLength::Kind::kInfinite;
    p.mask_length = infinite ? 0 : length.n;
    p.infinite_beyond = infinite || length.infinite_beyond;
  }
  p.window = options.window;
  p.batch = static_cast<int>(batch);
  p.slots = static_cast<int>(cache.keys.size(1));
  p.heads = static_cast<int>(heads);
  p.kv_heads = static_cast<int>(cache.keys.size(2));
  p.dim = static_cast<int>(packed.size(2));
  p.scale = static_cast<float>(options.scale.value_or(1.0 / std::sqrt(static_cast<double>(p.dim))));
  p.overlapped = overlaps_previous();
  run("decode_attention", p, packed);
}

}  // namespace stablemask::ops::cuda
