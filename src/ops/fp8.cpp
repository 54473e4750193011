#include "stablemask/ops/fp8.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "src/ops/fp8_plain.h"
#include "stablemask/ops/device.h"

#ifdef STABLEMASK_HAS_CUDA
#include <cuda_runtime_api.h>

#include "src/ops/cuda/fp8.h"
/// Returns with the kernels' `call` where `fits` and where they run: on a GPU, unless the reference
/// is asked for.
#define STABLEMASK_FP8(tensor, kernels, fits, call) \
  if ((tensor).is_cuda() && (kernels) != Kernels::kReference && (fits)) return cuda::call
#else
#define STABLEMASK_FP8(tensor, kernels, fits, call) static_cast<void>(kernels)
#endif

namespace stablemask::ops::fp8 {
namespace {

void check_slot(const char* op, const Slot& slot) {
  for (const at::Tensor& number : {slot.scale, slot.inverse, slot.maximum, slot.limit}) {
    TORCH_CHECK(number.defined() && number.dim() == 0 && number.scalar_type() == at::kFloat &&
                    number.device() == slot.scale.device(),
                op, ": a slot's numbers must be fp32, 0-dim and on one device, got ",
                number.defined() ? c10::str(number.toString(), " ", number.sizes()) : "none");
  }
  TORCH_CHECK(slot.margin >= 1 && std::isfinite(slot.margin), op,
              ": margin must be a number of at least 1, got ", slot.margin);
}

/// x: what is read; `matrix` [rows, columns]: what becomes FP8.
void check_source(const char* op, const at::Tensor& x, const char* name, const Slot& slot) {
  check_slot(op, slot);
  TORCH_CHECK(x.defined() && x.dim() > 0 && x.is_contiguous() &&
                  x.device() == slot.scale.device() &&
                  (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16 ||
                   (x.is_cpu() && x.scalar_type() == at::kDouble)),
              op, ": ", name, " must be bf16 or fp32, contiguous and on the slot's device, got ",
              x.defined() ? c10::str(x.toString(), " ", x.sizes()) : "none");
}

void check_part(const char* op, const char* name, const at::Tensor& part, int64_t rows,
                int64_t columns, const Slot& slot) {
  if (!part.defined()) return;
  TORCH_CHECK(part.dim() == 2 && part.size(0) == rows && part.size(1) == columns &&
                  part.is_contiguous() && part.scalar_type() == type_of(slot.format) &&
                  part.device() == slot.scale.device(),
              op, ": out.", name, " must be ", type_of(slot.format), " [", rows, ", ", columns,
              "], contiguous and on the slot's device, got ", part.toString(), " ", part.sizes());
}

void check_out(const char* op, const Matrix& out, int64_t rows, int64_t columns, const Slot& slot) {
  TORCH_CHECK(rows % kMultiple == 0 && columns % kMultiple == 0 && columns > 0, op, ": a matrix [",
              rows, ", ", columns, "] cannot be quantised: rows and columns must be multiples of ",
              kMultiple);
  TORCH_CHECK(out.values.defined() || out.twin.defined(), op,
              ": out has neither values nor a twin");
  check_part(op, "values", out.values, rows, columns, slot);
  check_part(op, "twin", out.twin, columns, rows, slot);
}

void check_operand(const char* name, const Operand& x, const at::Tensor& out) {
  const auto& [values, inverse] = x;
  TORCH_CHECK(
      values.defined() && values.dim() == 2 && values.is_contiguous() &&
          values.device() == out.device() &&
          (values.scalar_type() == at::kFloat8_e4m3fn || values.scalar_type() == at::kFloat8_e5m2),
      "fp8 product: ", name, " must be a contiguous FP8 matrix on out's device, got ",
      values.defined() ? c10::str(values.toString(), " ", values.sizes()) : "none");
  TORCH_CHECK(
      values.size(0) % kMultiple == 0 && values.size(1) % kMultiple == 0 && values.size(1) > 0,
      "fp8 product: ", name, " ", values.sizes(), " must have multiples of ", kMultiple,
      " as rows and columns");
  TORCH_CHECK(inverse.defined() && inverse.dim() == 0 && inverse.scalar_type() == at::kFloat &&
                  inverse.device() == out.device(),
              "fp8 product: the inverse scale of ", name,
              " must be fp32, 0-dim and on out's device");
}

void check_product(const at::Tensor& out, const Operand& a, const Operand& b) {
  TORCH_CHECK(out.defined() && out.dim() == 2 && (out.size(1) <= 1 || out.stride(1) == 1) &&
                  (out.scalar_type() == at::kFloat || out.scalar_type() == at::kBFloat16),
              "fp8 product: out must be a bf16 or fp32 matrix with contiguous rows");
  check_operand("a", a, out);
  check_operand("b", b, out);
  TORCH_CHECK(a.values.size(1) == b.values.size(1) && out.size(0) == a.values.size(0) &&
                  out.size(1) == b.values.size(0),
              "fp8 product: cannot write ", a.values.sizes(), " · ", b.values.sizes(), "ᵀ to ",
              out.sizes());
  TORCH_CHECK(
      a.values.scalar_type() != at::kFloat8_e5m2 || b.values.scalar_type() != at::kFloat8_e5m2,
      "fp8 product: a and b are both e5m2, which the tensor cores do not multiply");
}

void check_addend(const at::Tensor& out, double beta, const at::Tensor& addend) {
  TORCH_CHECK(beta == 0.0 || beta == 1.0, "fp8 product: beta must be 0 or 1, got ", beta);
  TORCH_CHECK(!addend.defined() ||
                  (addend.sizes() == out.sizes() && addend.strides() == out.strides() &&
                   addend.scalar_type() == out.scalar_type() && addend.device() == out.device()),
              "fp8 product: addend ", addend.defined() ? addend.sizes() : at::IntArrayRef(),
              " must have the shape, strides, dtype and device of out ", out.sizes());
}

}  // namespace

at::ScalarType type_of(Format format) {
  return format == Format::kE4M3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2;
}

double largest(Format format) { return format == Format::kE4M3 ? 448.0 : 57344.0; }

std::string problem([[maybe_unused]] c10::Device device) {
#ifdef STABLEMASK_HAS_CUDA
  if (device.is_cuda()) {
    const std::string none = cuda_problem();
    if (!none.empty()) return none;
    const int index = device.has_index() ? device.index() : 0;
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    if (10 * major + minor < 89) {
      return c10::str("FP8 needs a GPU of compute capability 8.9 or higher, this one has ", major,
                      ".", minor);
    }
  }
#endif
  return "";
}

Slot Scaling::slot(int64_t index) const {
  TORCH_CHECK(index >= 0 && index < static_cast<int64_t>(formats.size()), "fp8 scaling: no tensor ",
              index, " of ", formats.size());
  return {formats[index], scales[index], inverses[index], maxima[index], limits[index], margin};
}

Scaling make_scaling(std::vector<Format> formats, int64_t length, double margin,
                     c10::Device device) {
  TORCH_CHECK(length >= 1, "fp8 scaling: the history must have a length of at least 1, got ",
              length);
  TORCH_CHECK(margin >= 1 && std::isfinite(margin),
              "fp8 scaling: margin must be a number of at least 1, got ", margin);
  const auto count = static_cast<int64_t>(formats.size());
  std::vector<double> limits;
  for (const Format format : formats) limits.push_back(largest(format));
  const auto options = at::TensorOptions(at::kFloat).device(device);
  Scaling scaling;
  scaling.formats = std::move(formats);
  scaling.margin = margin;
  scaling.limits = at::tensor(limits, at::kDouble).to(options);
  scaling.maxima = at::zeros({count}, options);
  scaling.history = at::zeros({count, length}, options);
  scaling.scales = at::ones({count}, options);
  constexpr int64_t kFloatsOf16Bytes = 4;
  scaling.inverses = at::ones({count, kFloatsOf16Bytes}, options).select(1, 0);
  scaling.saturations = at::zeros({count}, options.dtype(at::kLong));
  return scaling;
}

void update_scales_(Scaling& scaling, Kernels kernels) {
  STABLEMASK_FP8(scaling.maxima, kernels, true, update_scales_(scaling));
  plain::update_scales_(scaling);
}

void fit_scale_(const Slot& slot) {
  check_slot("fp8 fit_scale", slot);
  plain::fit_scale_(slot);
}

Matrix make_matrix(int64_t rows, int64_t columns, const Slot& slot, Parts parts) {
  check_slot("fp8 matrix", slot);
  const auto options = at::TensorOptions(type_of(slot.format)).device(slot.scale.device());
  Matrix matrix;
  if (parts != Parts::kTwin) matrix.values = at::empty({rows, columns}, options);
  if (parts != Parts::kValues) matrix.twin = at::empty({columns, rows}, options);
  matrix.inverse = slot.inverse;
  check_out("fp8 matrix", matrix, rows, columns, slot);
  return matrix;
}

void quantize(const at::Tensor& x, const Slot& slot, Matrix& out, Kernels kernels) {
  check_source("fp8 quantize", x, "x", slot);
  check_out("fp8 quantize", out, x.numel() / x.size(-1), x.size(-1), slot);
  STABLEMASK_FP8(x, kernels, true, quantize(x, slot, out));
  plain::quantize(x, slot, out);
}

void quantize_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                       double eps, const Slot& slot, at::Tensor& sum, at::Tensor& rstd, Matrix& out,
                       Kernels kernels) {
  constexpr const char* kOp = "fp8 quantize_rms_norm";
  check_source(kOp, x, "x", slot);
  const int64_t columns = x.size(-1), rows = x.numel() / columns;
  TORCH_CHECK(weight.defined() && weight.dim() == 1 && weight.size(0) == columns &&
                  weight.is_contiguous() && weight.device() == x.device(),
              kOp, ": weight must be [", columns, "], contiguous and on x's device");
  TORCH_CHECK(rstd.defined() && rstd.numel() == rows && rstd.scalar_type() == at::kFloat &&
                  rstd.is_contiguous() && rstd.device() == x.device(),
              kOp, ": rstd must be fp32 [", rows, "], contiguous and on x's device");
  if (residual.defined()) {
    for (const at::Tensor& other : {residual, sum}) {
      TORCH_CHECK(other.defined() && other.sizes() == x.sizes() && other.is_contiguous() &&
                      other.scalar_type() == x.scalar_type() && other.device() == x.device(),
                  kOp, ": residual and sum must have shape, dtype and device of x ", x.sizes());
    }
  }
  check_out(kOp, out, rows, columns, slot);
  STABLEMASK_FP8(x, kernels, has_fused_norm(x, weight, kernels),
                 quantize_rms_norm(x, residual, weight, eps, slot, sum, rstd, out));
  plain::quantize_rms_norm(x, residual, weight, eps, slot, sum, rstd, out, kernels);
}

void quantize_swiglu(const at::Tensor& gate_up, const Slot& slot, Matrix& out, Kernels kernels) {
  constexpr const char* kOp = "fp8 quantize_swiglu";
  check_source(kOp, gate_up, "gate_up", slot);
  TORCH_CHECK(gate_up.size(-1) % 2 == 0, kOp, ": gate_up must be [..., 2F], got ", gate_up.sizes());
  check_out(kOp, out, gate_up.numel() / gate_up.size(-1), gate_up.size(-1) / 2, slot);
  STABLEMASK_FP8(gate_up, kernels, true, quantize_swiglu(gate_up, slot, out));
  plain::quantize_swiglu(gate_up, slot, out, kernels);
}

void quantize_swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up, const Slot& slot,
                              Matrix& out, Kernels kernels) {
  constexpr const char* kOp = "fp8 quantize_swiglu_backward";
  check_source(kOp, gate_up, "gate_up", slot);
  check_source(kOp, dout, "dout", slot);
  const int64_t columns = gate_up.size(-1), rows = gate_up.numel() / columns;
  TORCH_CHECK(2 * dout.size(-1) == columns && dout.numel() / dout.size(-1) == rows &&
                  dout.scalar_type() == gate_up.scalar_type(),
              kOp, ": need dout [..., F] and gate_up [..., 2F] of one dtype, got ", dout.sizes(),
              " and ", gate_up.sizes());
  TORCH_CHECK(dout.size(-1) % kMultiple == 0, kOp, ": F must be a multiple of ", kMultiple,
              ", got ", dout.size(-1));
  check_out(kOp, out, rows, columns, slot);
  STABLEMASK_FP8(gate_up, kernels, true, quantize_swiglu_backward(dout, gate_up, slot, out));
  plain::quantize_swiglu_backward(dout, gate_up, slot, out, kernels);
}

void quantize_rope_backward(const at::Tensor& dpacked, int64_t heads_rotated,
                            const RopeInputs& rope, const Slot& slot, Matrix& out,
                            Kernels kernels) {
  constexpr const char* kOp = "fp8 quantize_rope_backward";
  check_source(kOp, dpacked, "dpacked", slot);
  TORCH_CHECK(dpacked.dim() == 4, kOp, ": dpacked must be [B,T,Hp,D], got ", dpacked.sizes());
  check_rope(dpacked, dpacked.sizes(), heads_rotated, rope.dims, rope.positions, rope.table);
  check_out(kOp, out, dpacked.size(0) * dpacked.size(1), dpacked.size(2) * dpacked.size(3), slot);
  STABLEMASK_FP8(dpacked, kernels,
                 rope.dims % (2 * kMultiple) == 0 && dpacked.size(3) % kMultiple == 0,
                 quantize_rope_backward(dpacked, heads_rotated, rope, slot, out));
  plain::quantize_rope_backward(dpacked, heads_rotated, rope, slot, out, kernels);
}

void product(at::Tensor& out, const Operand& a, const Operand& b, double beta,
             const at::Tensor& addend, [[maybe_unused]] Sums sums, Kernels kernels) {
  check_product(out, a, b);
  check_addend(out, beta, addend);
  STABLEMASK_FP8(out, kernels, true, product(out, a, b, beta, addend, sums));
  plain::product(out, a, b, beta, addend);
}

void product_swiglu(at::Tensor& gate_up, const Operand& x, const Operand& weight, const Slot& slot,
                    Matrix& out, Sums sums, Kernels kernels) {
  check_product(gate_up, x, weight);
  check_source("fp8 product_swiglu", gate_up, "gate_up", slot);
  TORCH_CHECK(gate_up.size(1) % 2 == 0, "fp8 product_swiglu: gate_up must be [M, 2F], got ",
              gate_up.sizes());
  check_out("fp8 product_swiglu", out, gate_up.size(0), gate_up.size(1) / 2, slot);
  STABLEMASK_FP8(gate_up, kernels, cuda::product_swiglu_serves(gate_up, x, weight, out, sums),
                 product_swiglu(gate_up, x, weight, slot, out));
  product(gate_up, x, weight, 0.0, {}, sums, kernels);
  quantize_swiglu(gate_up, slot, out, kernels);
}

void product_rope(at::Tensor& packed, const Operand& x, const Operand& weight,
                  int64_t heads_rotated, const RopeInputs& rope, Sums sums, Kernels kernels) {
  TORCH_CHECK(packed.defined() && packed.dim() == 4 && packed.is_contiguous(),
              "fp8 product_rope: packed must be [B,T,Hp,D] and contiguous");
  at::Tensor flat = packed.view({-1, packed.size(2) * packed.size(3)});
  check_product(flat, x, weight);
  check_rope(packed, packed.sizes(), heads_rotated, rope.dims, rope.positions, rope.table);
  STABLEMASK_FP8(packed, kernels, cuda::product_rope_serves(packed, x, weight, rope, sums),
                 product_rope(packed, x, weight, heads_rotated, rope));
  product(flat, x, weight, 0.0, {}, sums, kernels);
  plain::rotate_(packed, heads_rotated, rope, kernels);
}

}  // namespace stablemask::ops::fp8
