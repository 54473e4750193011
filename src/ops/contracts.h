#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "stablemask/ops/attention.h"
#include "stablemask/ops/decode.h"
#include "stablemask/ops/optimizer.h"
#include "stablemask/ops/stable_mask.h"

/// Checks of arguments at the public edge of the ops: shapes, dtypes, devices and ranges that the
/// host knows without waiting for a device. Each throws c10::Error naming the op, the argument and
/// its shape. `op` and the other names are for the message.
namespace stablemask::ops {

/// `x` is fp32, fp64 or bf16.
inline void check_float(const char* op, const char* name, const at::Tensor& x) {
  TORCH_CHECK(x.defined(), op, ": ", name, " is undefined");
  const at::ScalarType type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kBFloat16, op, ": ", name,
              " must be fp32, fp64 or bf16, got ", x.toString(), " ", x.sizes());
}

/// `y` is on the device of `x`.
inline void check_device(const char* op, const char* x_name, const at::Tensor& x,
                         const char* y_name, const at::Tensor& y) {
  TORCH_CHECK(y.defined(), op, ": ", y_name, " is undefined");
  TORCH_CHECK(x.device() == y.device(), op, ": ", y_name, " ", y.sizes(), " is on ", y.device(),
              ", but ", x_name, " ", x.sizes(), " on ", x.device());
}

/// `y` has the dtype and device of `x`, which check_float has passed.
inline void check_alike(const char* op, const char* x_name, const at::Tensor& x, const char* y_name,
                        const at::Tensor& y) {
  check_device(op, x_name, x, y_name, y);
  TORCH_CHECK(x.scalar_type() == y.scalar_type(), op, ": ", y_name, " must be ", x.toString(),
              " as ", x_name, " ", x.sizes(), ", got ", y.toString(), " ", y.sizes());
}

/// `x` [..., C], C ≥ 1, and each of `vectors` [C], of any floating-point dtype on x's device.
inline void check_norm(const char* op, const at::Tensor& x, double eps,
                       std::initializer_list<at::Tensor> vectors) {
  check_float(op, "x", x);
  TORCH_CHECK(x.dim() > 0 && x.size(-1) > 0, op, ": x must be [..., C] with C at least 1, got ",
              x.sizes());
  TORCH_CHECK(eps >= 0, op, ": eps must be at least 0, got ", eps);
  for (const at::Tensor& vector : vectors) {
    check_float(op, "a weight", vector);
    check_device(op, "x", x, "a weight", vector);
    TORCH_CHECK(vector.dim() == 1 && vector.size(0) == x.size(-1), op, ": weight ", vector.sizes(),
                " does not fit x ", x.sizes());
  }
}

/// `gate_up` [..., 2F], F ≥ 1.
inline void check_swiglu(const at::Tensor& gate_up) {
  check_float("swiglu", "gate_up", gate_up);
  TORCH_CHECK(gate_up.dim() > 0 && gate_up.size(-1) > 0 && gate_up.size(-1) % 2 == 0,
              "swiglu: the last dimension must be even and at least 2, got ", gate_up.sizes());
}

/// x [..., C] and weight [out, C], C and out ≥ 1, of one dtype and device.
void check_projection(const char* op, const at::Tensor& x, const at::Tensor& weight);

/// Arguments of a SwiGLU feed-forward layer: x [..., C], up [2F, C], down [C, F], residual [...,
/// C].
void check_feed_forward(const char* op, const at::Tensor& x, const at::Tensor& up,
                        const at::Tensor& down, const at::Tensor& residual);

/// Arguments of the language-model head: x [rows, C], weight [V, C], int64 targets [rows].
void check_head(const char* op, const at::Tensor& x, const at::Tensor& weight,
                const at::Tensor& targets, double z_loss);

/// Arguments of `rope`; `packed` is the shape [B,T,Hp,D] and `x` the tensor whose device counts.
void check_rope(const at::Tensor& x, at::IntArrayRef packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& table);

/// Arguments of rope_linear that check_projection has passed; returns the shape of its result,
/// [B,T,packed_heads,D].
std::vector<int64_t> check_rope_projection(const char* op, const at::Tensor& x,
                                           const at::Tensor& weight, int64_t packed_heads,
                                           int64_t heads_rotated, int64_t dims,
                                           const at::Tensor& positions, const at::Tensor& table);

/// gamma and p_base [H], fp32 or fp64; a fixed length of at least `least`. On the CPU also that no
/// gamma is negative.
void check_pseudo(const char* op, const PseudoScores& pseudo, int64_t least_length = 0);

/// The sizes of a call of attention.
struct AttentionShape {
  int64_t batch, rows, keys, heads;
  at::Tensor query;  ///< whose device and sizes count
};
/// Everything in `options` but the backend. Throws ConfigError for a mask length "sequence" with a
/// KV cache or documents.
void check_attention_options(const char* op, const AttentionShape& shape,
                             const AttentionOptions& options);
/// All arguments of `attention`.
void check_attention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options);

/// All arguments of `decode_attention`. Values of rows and positions are read on the CPU only.
void check_decode(const char* op, const at::Tensor& packed, int64_t heads, const DecodeCache& cache,
                  const at::Tensor& rows, const at::Tensor& positions,
                  const DecodeOptions& options);

/// `fp64`: fp64 weights with fp64 m, v and grad are allowed, too.
void check_adamw(const at::Tensor& weights, const at::Tensor& remainder, const at::Tensor& m,
                 const at::Tensor& v, const at::Tensor& grad, const AdamWArgs& args,
                 const at::Tensor& control, bool fp64 = false);

}  // namespace stablemask::ops
