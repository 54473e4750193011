#include "src/ops/cuda/log_mass.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "src/ops/cuda/run.h"
#include "src/ops/cuda/stable_mask.h"

namespace stablemask::ops::cuda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The rows' positions and the mask length, without gamma and p_base.
LogMassRows rows_of(const MaskLength& length, const at::Tensor& positions, int64_t offset,
                    int64_t count, int64_t sequence_length) {
  LogMassRows rows{};
  if (positions.defined()) rows.positions = positions.const_data_ptr<int64_t>();
  rows.offset = offset;
  rows.rows = count;
  switch (length.kind) {
    case MaskLength::Kind::kFixed:
      rows.n = length.n;
      rows.infinite_beyond = length.infinite_beyond;
      break;
    case MaskLength::Kind::kSequence:
      rows.n = sequence_length;
      break;
    case MaskLength::Kind::kInfinite:
      rows.infinite_beyond = true;
      break;
  }
  return rows;
}

struct LogMass : torch::autograd::Function<LogMass> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gamma, const at::Tensor& p_base,
                            const std::optional<at::Tensor>& positions, const LogMassRows& rows) {
    LogMassForward p{rows, nullptr};
    set_heads(p.in, gamma, p_base);
    const at::Tensor result = at::empty({gamma.numel(), rows.rows}, gamma.options());
    p.log_mass = result.data_ptr<float>();
    if (result.numel() > 0) run("log_mass", p, gamma);
    ctx->save_for_backward({gamma, p_base, positions.value_or(at::Tensor())});
    ctx->saved_data["offset"] = rows.offset;
    ctx->saved_data["rows"] = rows.rows;
    ctx->saved_data["n"] = rows.n;
    ctx->saved_data["infinite_beyond"] = rows.infinite_beyond;
    return result;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &gamma = saved[0], &p_base = saved[1], &positions = saved[2];
    LogMassBackward p{};
    if (positions.defined()) p.in.positions = positions.const_data_ptr<int64_t>();
    p.in.offset = ctx->saved_data["offset"].toInt();
    p.in.rows = ctx->saved_data["rows"].toInt();
    p.in.n = ctx->saved_data["n"].toInt();
    p.in.infinite_beyond = ctx->saved_data["infinite_beyond"].toBool();
    set_heads(p.in, gamma, p_base);
    const at::Tensor dlog_mass = grads[0].contiguous();
    const at::Tensor dgamma = at::empty_like(gamma), dp_base = at::empty_like(p_base);
    p.dlog_mass = dlog_mass.const_data_ptr<float>();
    p.dgamma = dgamma.data_ptr<float>();
    p.dp_base = dp_base.data_ptr<float>();
    run("log_mass_backward", p, gamma);
    return {dgamma, dp_base, at::Tensor(), at::Tensor()};
  }

  static void set_heads(LogMassRows& rows, const at::Tensor& gamma, const at::Tensor& p_base) {
    rows.gamma = gamma.const_data_ptr<float>();
    rows.p_base = p_base.const_data_ptr<float>();
    rows.heads = static_cast<int>(gamma.numel());
  }
};

}  // namespace

bool has_log_mass(const PseudoScores& pseudo) {
  return pseudo.gamma.is_cuda() && pseudo.gamma.scalar_type() == at::kFloat &&
         pseudo.p_base.is_cuda() && pseudo.p_base.scalar_type() == at::kFloat;
}

at::Tensor log_mass(const PseudoScores& pseudo, const at::Tensor& positions, int64_t offset,
                    int64_t count, int64_t sequence_length) {
  TORCH_CHECK(!positions.defined() ||
                  (positions.device() == pseudo.gamma.device() && positions.is_contiguous() &&
                   positions.scalar_type() == at::kLong && positions.numel() == count),
              "log_pseudo_mass: positions must be int64 on ", pseudo.gamma.device());
  TORCH_CHECK(pseudo.p_base.device() == pseudo.gamma.device(),
              "log_pseudo_mass: gamma and p_base must be on one GPU");
  return LogMass::apply(pseudo.gamma.contiguous(), pseudo.p_base.contiguous(),
                        positions.defined() ? std::optional(positions) : std::nullopt,
                        rows_of(pseudo.length, positions, offset, count, sequence_length));
}

}  // namespace stablemask::ops::cuda
