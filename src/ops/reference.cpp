#include "stablemask/ops/reference.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/ops/contracts.h"
#include "src/ops/rounding_rules.h"

namespace stablemask::ops::reference {
namespace {

at::ScalarType math_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor minus_infinity(const at::Tensor& like) {
  return at::full({}, -std::numeric_limits<double>::infinity(), like.options());
}

/// [B,S,Hkv,D] → [B,H,S,D] in dtype `math`.
at::Tensor heads_first(const at::Tensor& x, int64_t heads, at::ScalarType math) {
  const at::Tensor y = x.to(math).transpose(1, 2);
  return y.size(1) == heads ? y : y.repeat_interleave(heads / y.size(1), 1);
}

/// Row and column coordinates of the score matrix, int64, broadcastable to [B,1,T,columns].
struct Grid {
  at::Tensor i;      ///< row, counted from the first token, cached ones included
  at::Tensor j;      ///< column
  at::Tensor start;  ///< first column of the row's document

  /// Whether a column is a key that the row attends to.
  at::Tensor real(int64_t window) const {
    at::Tensor seen = at::logical_and(j <= i, j >= start);
    return window > 0 ? at::logical_and(seen, j > i - window) : seen;
  }
};

/// Columns of the score matrix: the keys, and for finite N every pseudo slot of any row.
int64_t literal_columns(const AttentionOptions& options, int64_t keys) {
  if (!options.pseudo) return keys;
  const MaskLength& length = options.pseudo->length;
  if (length.kind != MaskLength::Kind::kFixed) return keys;
  const int64_t last_start =
      options.document_start.defined() ? options.document_start.max().item<int64_t>() : 0;
  return std::max(keys, last_start + length.n - options.key_offset);
}

Grid make_grid(const AttentionOptions& options, const at::Tensor& q, int64_t columns) {
  const auto index = at::TensorOptions().dtype(at::kLong).device(q.device());
  const int64_t rows = q.size(1);
  Grid grid;
  grid.i =
      at::arange(options.query_offset, options.query_offset + rows, index).view({1, 1, rows, 1});
  grid.j =
      at::arange(options.key_offset, options.key_offset + columns, index).view({1, 1, 1, columns});
  grid.start = options.document_start.defined()
                   ? options.document_start.view({q.size(0), 1, rows, 1})
                   : at::zeros({1, 1, 1, 1}, index);
  return grid;
}

/// P where a row has a pseudo slot, −inf elsewhere, [B or 1, H, T, columns].
at::Tensor pseudo_scores(const PseudoScores& pseudo, const Grid& grid, at::ScalarType math) {
  const int64_t n =
      pseudo.length.kind == MaskLength::Kind::kFixed ? pseudo.length.n : grid.j.size(3);
  const at::Tensor slot = at::logical_and(grid.j > grid.i, grid.j - grid.start < n);
  const at::Tensor gamma = pseudo.gamma.to(math).view({1, -1, 1, 1});
  const at::Tensor p_base = pseudo.p_base.to(math).view({1, -1, 1, 1});
  const at::Tensor scores = p_base - gamma * (grid.j - grid.i - 1).to(math);
  return at::where(slot, scores, minus_infinity(scores));
}

/// log S of the rows whose pseudo mass is that of an infinite mask length, −inf in the others:
/// broadcastable to [B, H, T, 1]. Undefined: there are no such rows.
at::Tensor infinite_column(const PseudoScores& pseudo, const Grid& grid, at::ScalarType math) {
  const MaskLength& length = pseudo.length;
  const bool all_rows = length.kind == MaskLength::Kind::kInfinite;
  if (!all_rows && !(length.kind == MaskLength::Kind::kFixed && length.infinite_beyond)) return {};
  PseudoScores endless = pseudo;
  endless.length = {MaskLength::Kind::kInfinite, 0};
  const at::Tensor log_mass = log_pseudo_mass(endless, 1).to(math).view({1, -1, 1, 1});
  if (all_rows) return log_mass;
  return at::where(grid.i - grid.start >= length.n, log_mass, minus_infinity(log_mass));
}

/// A = scale·q·kᵀ + ALiBi, [B,H,T,columns]; columns beyond the keys hold the bias only.
at::Tensor real_scores(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options,
                       const Grid& grid, at::ScalarType math) {
  const int64_t heads = q.size(2);
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(3))));
  at::Tensor scores =
      at::matmul(heads_first(q, heads, math), heads_first(k, heads, math).transpose(2, 3)) * scale;
  scores = at::constant_pad_nd(scores, {0, grid.j.size(3) - k.size(1)});
  if (!options.alibi_slopes.defined()) return scores;
  const at::Tensor slopes = options.alibi_slopes.to(math).view({1, -1, 1, 1});
  return scores - slopes * (grid.i - grid.j).to(math);
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options, std::optional<at::ScalarType> math_override) {
  check_attention("reference::attention", q, k, v, options);
  const at::ScalarType math = math_override.value_or(math_type(q));
  const int64_t heads = q.size(2), keys = k.size(1);
  const bool infinite =
      options.pseudo && options.pseudo->length.kind == MaskLength::Kind::kInfinite;
  const Grid grid = make_grid(options, q, literal_columns(options, keys));
  at::Tensor scores = real_scores(q, k, options, grid, math);
  const at::Tensor real = grid.real(options.window);
  const bool has_slots = options.pseudo && !infinite;
  scores =
      at::where(real, scores,
                has_slots ? pseudo_scores(*options.pseudo, grid, math) : minus_infinity(scores));
  if (options.pseudo) {
    const at::Tensor column = infinite_column(*options.pseudo, grid, math);
    if (column.defined()) {
      scores = at::cat({scores, column.expand({q.size(0), heads, q.size(1), 1})}, 3);
    }
  }
  const at::Tensor weights = at::softmax(scores, 3).narrow(3, 0, keys);
  const at::Tensor kept =
      at::where(real.narrow(3, 0, keys), weights, at::zeros({}, weights.options()));
  return at::matmul(kept, heads_first(v, heads, math)).transpose(1, 2).to(q.scalar_type());
}

at::Tensor attention_lse(const at::Tensor& q, const at::Tensor& k,
                         const AttentionOptions& options) {
  check_attention("reference::attention_lse", q, k, k, options);
  const Grid grid = make_grid(options, q, k.size(1));
  const at::Tensor scores = real_scores(q, k, options, grid, math_type(q));
  return at::logsumexp(at::where(grid.real(options.window), scores, minus_infinity(scores)), 3);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_norm("reference::rms_norm", x, eps, {weight});
  const at::Tensor wide = x.to(math_type(x));
  const at::Tensor rstd = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
  return (wide * rstd * weight.to(wide.scalar_type())).to(x.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& delta,
                                                const at::Tensor& weight, double eps) {
  TORCH_CHECK(residual.defined() && delta.defined() && residual.sizes() == delta.sizes(),
              "reference::add_rms_norm: residual and delta must have one shape");
  at::Tensor sum = residual + delta;
  at::Tensor normed = rms_norm(sum, weight, eps);
  return {std::move(sum), std::move(normed)};
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps) {
  check_norm("reference::layer_norm", x, eps, {weight, bias});
  const at::Tensor wide = x.to(math_type(x));
  const at::Tensor centred = wide - wide.mean(-1, /*keepdim=*/true);
  const at::Tensor rstd = at::rsqrt(centred.square().mean(-1, /*keepdim=*/true) + eps);
  const auto type = wide.scalar_type();
  return (centred * rstd * weight.to(type) + bias.to(type)).to(x.scalar_type());
}

at::Tensor swiglu(const at::Tensor& gate_up) {
  check_swiglu(gate_up);
  const at::Tensor wide = gate_up.to(math_type(gate_up));
  const int64_t hidden = wide.size(-1) / 2;
  const at::Tensor gate = wide.narrow(-1, 0, hidden), up = wide.narrow(-1, hidden, hidden);
  return (gate * at::sigmoid(gate) * up).to(gate_up.scalar_type());
}

at::Tensor rope(const at::Tensor& packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& cos_sin) {
  check_rope(packed, packed.sizes(), heads_rotated, dims, positions, cos_sin);
  const auto math = math_type(packed);
  const int64_t half = dims / 2;
  const at::Tensor turned = packed.narrow(2, 0, heads_rotated).narrow(3, 0, dims).to(math);
  at::Tensor rows = cos_sin.index_select(0, positions.reshape({-1})).to(math);
  rows = positions.dim() == 2 ? rows.view({positions.size(0), positions.size(1), 1, dims})
                              : rows.view({1, positions.size(0), 1, dims});
  const at::Tensor cos = rows.narrow(3, 0, half), sin = rows.narrow(3, half, half);
  const at::Tensor a = turned.narrow(3, 0, half), b = turned.narrow(3, half, half);
  const at::Tensor rotated =
      at::cat({a * cos - b * sin, b * cos + a * sin}, 3).to(packed.scalar_type());
  const at::Tensor heads = at::cat(
      {rotated, packed.narrow(2, 0, heads_rotated).narrow(3, dims, packed.size(3) - dims)}, 3);
  return at::cat({heads, packed.narrow(2, heads_rotated, packed.size(2) - heads_rotated)}, 2);
}

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets, double z_loss) {
  check_float("reference::cross_entropy", "logits", logits);
  check_device("reference::cross_entropy", "logits", logits, "targets", targets);
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0 && targets.dim() == 1 &&
                  targets.size(0) == logits.size(0) && targets.scalar_type() == at::kLong,
              "reference::cross_entropy: need logits [rows, V] and int64 targets [rows], got ",
              logits.sizes(), " and ", targets.toString(), " ", targets.sizes());
  const at::Tensor wide = logits.to(math_type(logits));
  const at::Tensor lse = at::logsumexp(wide, -1);
  const at::Tensor valid = targets != -100;
  const at::Tensor picked =
      wide.gather(-1, at::where(valid, targets, at::zeros_like(targets)).unsqueeze(-1)).squeeze(-1);
  const at::Tensor loss = lse - picked + z_loss * lse.square();
  return at::where(valid, loss, at::zeros_like(loss));
}

namespace {

constexpr int64_t kLow32 = 0xffffffff;

/// x ^ (x >> shift) for numbers below 2^32.
at::Tensor folded(const at::Tensor& x, int64_t shift) {
  return at::bitwise_xor(x, at::bitwise_right_shift(x, shift));
}

}  // namespace

at::Tensor rounded_moment(const at::Tensor& x, const AdamWArgs& args, int64_t step,
                          int64_t moment) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && (moment == 0 || moment == 1),
              "rounded_moment: need fp32 and moment 0 or 1, got ", x.toString(), " and ", moment);
  // src/ops/rounding_rules.h in 64-bit integers.
  const rounding::Key key = rounding::key_of(args.seed, step);
  const at::Tensor index = at::arange(args.first, args.first + x.numel(),
                                      at::TensorOptions(at::kLong).device(x.device()));
  const at::Tensor page = at::bitwise_right_shift(index, 32);
  at::Tensor random = (index + int64_t{key.first} + page * int64_t{0x9E3779B9}).bitwise_and(kLow32);
  random = (folded(random, 17) * int64_t{0xed5ad4bb}).bitwise_and(kLow32);
  random = (folded(random, 11) + int64_t{key.second}).bitwise_and(kLow32);
  random = (random * int64_t{0xac4c1b51}).bitwise_and(kLow32);
  random = folded((folded(random, 15) * int64_t{0x31848bab}).bitwise_and(kLow32), 14);
  random = moment == 0 ? random.bitwise_and(0xffff) : at::bitwise_right_shift(random, 16);
  const at::Tensor bits = x.contiguous().view({-1}).view(at::kInt).to(at::kLong);
  const at::Tensor size = bits.bitwise_and(0x7fffffff);
  const at::Tensor finite = at::bitwise_right_shift((size + random).clamp_max(0x7f7fffff), 16);
  const at::Tensor special = at::where(size > 0x7f800000, 0x7fc0, 0x7f80);
  const at::Tensor rounded = at::where(size < 0x7f800000, finite, special.to(at::kLong));
  return at::where(bits < 0, rounded - 0x8000, rounded)
      .to(at::kShort)
      .view(at::kBFloat16)
      .view(x.sizes());
}

void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control) {
  check_adamw(weights, remainder, m, v, grad, args, control, /*fp64=*/true);
  const double lr = control[0].item<double>(), step = control[1].item<double>();
  const double grad_scale = control[2].item<double>();
  if (grad_scale < 0) return;
  const double correction1 = 1.0 - std::pow(args.beta1, step);
  const double correction2 = 1.0 - std::pow(args.beta2, step);
  const at::Tensor g = grad * grad_scale;
  const bool rounds = m.scalar_type() == at::kBFloat16;
  at::Tensor mean = rounds ? m.to(at::kFloat) : m, square = rounds ? v.to(at::kFloat) : v;
  mean.mul_(args.beta1).add_(g, 1.0 - args.beta1);
  square.mul_(args.beta2).addcmul_(g, g, 1.0 - args.beta2);
  const at::Tensor update = (mean / correction1) / ((square / correction2).sqrt() + args.eps);
  if (rounds) {
    m.copy_(rounded_moment(mean, args, static_cast<int64_t>(step), 0));
    v.copy_(rounded_moment(square, args, static_cast<int64_t>(step), 1));
  }
  at::Tensor w = remainder.defined() ? join_weights({weights, remainder}) : weights;
  w.mul_(1.0 - lr * args.weight_decay).sub_(update, lr);
  if (!remainder.defined()) return;
  const SplitWeights split = split_weights(w);
  weights.copy_(split.rounded);
  remainder.copy_(split.remainder);
}

}  // namespace stablemask::ops::reference
