#include "src/ops/contracts.h"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "stablemask/base/error.h"

namespace stablemask::ops {
namespace {

bool is_wide_float(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble;
}

/// The smallest of a vector in host memory; NaNs are passed over.
template <typename Number>
double least_of(const at::Tensor& values) {
  const Number* data = values.const_data_ptr<Number>();
  double least = INFINITY;
  for (int64_t k = 0; k < values.numel(); ++k) {
    const auto value = static_cast<double>(data[k * values.stride(0)]);
    if (value < least) least = value;
  }
  return least;
}

/// The smallest gamma where the host can read it at once; else 1.
double least_gamma(const at::Tensor& gamma) {
  if (!gamma.is_cpu()) return 1;
  return gamma.scalar_type() == at::kFloat ? least_of<float>(gamma) : least_of<double>(gamma);
}

void check_documents(const char* op, const AttentionShape& shape, const AttentionOptions& options) {
  const at::Tensor& start = options.document_start;
  const bool sequence =
      options.pseudo && options.pseudo->length.kind == MaskLength::Kind::kSequence;
  if (sequence && (start.defined() || options.query_offset > 0)) {
    throw ConfigError(
        "stable_mask.mask_length \"sequence\" cannot be used with a KV cache or packed documents: "
        "set a number or \"infinite\"");
  }
  if (!start.defined()) return;
  TORCH_CHECK(options.query_offset == 0, op,
              ": document_start cannot be combined with a KV cache (query_offset ",
              options.query_offset, ")");
  TORCH_CHECK(start.dim() == 2 && start.size(0) == shape.batch && start.size(1) == shape.rows &&
                  start.scalar_type() == at::kLong && start.device() == shape.query.device(),
              op, ": document_start must be int64 [B, T] = [", shape.batch, ", ", shape.rows,
              "] on ", shape.query.device(), ", got ", start.toString(), " ", start.sizes());
}

void check_offsets(const char* op, const AttentionShape& shape, const AttentionOptions& options) {
  TORCH_CHECK(options.window >= 0, op, ": window must be at least 0, got ", options.window);
  TORCH_CHECK(options.query_offset >= 0 && options.key_offset >= 0, op,
              ": query_offset and key_offset must be at least 0, got ", options.query_offset,
              " and ", options.key_offset);
  TORCH_CHECK(shape.keys == options.query_offset - options.key_offset + shape.rows, op,
              ": S must be query_offset + T - key_offset, got S = ", shape.keys,
              ", query_offset = ", options.query_offset, ", T = ", shape.rows,
              ", key_offset = ", options.key_offset);
  TORCH_CHECK(
      options.key_offset == 0 ||
          (options.window > 0 && options.key_offset <= options.query_offset - options.window + 1),
      op, ": key_offset ", options.key_offset, " leaves out keys that row ", options.query_offset,
      " sees");
}

void check_mask(const char* op, const AttentionShape& shape, const AttentionOptions& options) {
  TORCH_CHECK(!options.log_mass.defined() || options.pseudo, op, ": log_mass needs pseudo");
  if (!options.pseudo) return;
  const PseudoScores& pseudo = *options.pseudo;
  check_pseudo(op, pseudo, /*least_length=*/1);
  TORCH_CHECK(pseudo.gamma.numel() == shape.heads, op, ": gamma and p_base must be [H] = [",
              shape.heads, "], got ", pseudo.gamma.sizes());
  check_device(op, "q", shape.query, "gamma", pseudo.gamma);
  TORCH_CHECK(pseudo.length.kind != MaskLength::Kind::kInfinite || least_gamma(pseudo.gamma) != 0,
              op,
              ": gamma 0 gives an infinite mask length infinitely many slots of equal weight, "
              "which leave none to the keys; all of gamma ",
              pseudo.gamma.sizes(), " must be above 0");
  if (!options.log_mass.defined()) return;
  const at::Tensor& mass = options.log_mass;
  check_float(op, "log_mass", mass);
  check_device(op, "q", shape.query, "log_mass", mass);
  const bool each = mass.dim() == 3 && mass.size(0) == shape.batch;
  TORCH_CHECK(
      (mass.dim() == 2 || each) && mass.size(-2) == shape.heads && mass.size(-1) == shape.rows, op,
      ": log_mass must be [H, T] = [", shape.heads, ", ", shape.rows, "] or [B, H, T], got ",
      mass.sizes());
}

void check_decode_shapes(const char* op, const at::Tensor& packed, int64_t heads,
                         const DecodeCache& cache) {
  TORCH_CHECK(packed.defined() &&
                  (packed.scalar_type() == at::kFloat || packed.scalar_type() == at::kBFloat16),
              op, ": packed must be fp32 or bf16, got ", packed.toString());
  check_alike(op, "packed", packed, "keys", cache.keys);
  check_alike(op, "packed", packed, "values", cache.values);
  const at::Tensor &keys = cache.keys, &values = cache.values;
  TORCH_CHECK(keys.dim() == 4 && keys.numel() > 0 && values.sizes() == keys.sizes(), op,
              ": keys and values must both be [R,S,Hkv,D] without a dimension of size 0, got ",
              keys.sizes(), " and ", values.sizes());
  TORCH_CHECK(keys.stride(3) == 1 && values.stride(3) == 1, op,
              ": the last dimension of keys and values must be contiguous, got strides ",
              keys.strides(), " and ", values.strides());
  const int64_t kv_heads = keys.size(2);
  TORCH_CHECK(heads > 0 && heads % kv_heads == 0, op,
              ": heads must be a multiple of Hkv = ", kv_heads, ", got ", heads);
  TORCH_CHECK(
      packed.dim() == 3 && packed.size(1) == heads + 2 * kv_heads && packed.size(2) == keys.size(3),
      op, ": packed must be [B, ", heads + 2 * kv_heads, ", ", keys.size(3), "] for keys ",
      keys.sizes(), " and ", heads, " heads, got ", packed.sizes());
}

void check_decode_index(const char* op, const char* name, const at::Tensor& index,
                        const at::Tensor& packed) {
  check_device(op, "packed", packed, name, index);
  TORCH_CHECK(
      index.scalar_type() == at::kLong && index.dim() == 1 && index.size(0) == packed.size(0), op,
      ": ", name, " must be int64 [B] = [", packed.size(0), "], got ", index.toString(), " ",
      index.sizes());
}

void check_decode_rope(const char* op, const at::Tensor& packed, const DecodeOptions& options) {
  const int64_t dims = options.rope_dims;
  TORCH_CHECK(dims >= 0 && dims % 2 == 0 && dims <= packed.size(2), op,
              ": rope_dims must be even and from 0 to D = ", packed.size(2), ", got ", dims);
  if (dims == 0) return;
  const at::Tensor& table = options.rope_table;
  check_device(op, "packed", packed, "rope_table", table);
  TORCH_CHECK(table.scalar_type() == at::kFloat && table.dim() == 2 && table.size(1) == dims &&
                  table.size(0) > 0 && table.is_contiguous(),
              op, ": rope_table must be contiguous fp32 [P, ", dims, "], got ", table.toString(),
              " ", table.sizes());
}

/// Each position has a slot and a row of the table, and the rows in use differ.
void check_decode_values(const char* op, const DecodeCache& cache, const at::Tensor& rows,
                         const at::Tensor& positions, const DecodeOptions& options) {
  const int64_t slots = cache.keys.size(1);
  const bool ring = options.window > 0 && options.window <= slots;
  std::vector<char> taken(static_cast<size_t>(cache.keys.size(0)));
  const auto position = positions.accessor<int64_t, 1>();
  for (int64_t b = 0; b < positions.size(0); ++b) {
    TORCH_CHECK(position[b] >= -1, op, ": position ", position[b], " of sequence ", b,
                " must be at least -1");
    if (position[b] < 0) continue;
    TORCH_CHECK(ring || position[b] < slots, op, ": position ", position[b], " of sequence ", b,
                " has no slot: the cache has ", slots, " and the window is ", options.window);
    TORCH_CHECK(options.rope_dims == 0 || position[b] < options.rope_table.size(0), op,
                ": position ", position[b], " of sequence ", b, " is outside the rope_table of ",
                options.rope_table.defined() ? options.rope_table.size(0) : 0);
    const int64_t row = rows.defined() ? rows.accessor<int64_t, 1>()[b] : b;
    TORCH_CHECK(row >= 0 && row < cache.keys.size(0), op, ": row ", row, " of sequence ", b,
                " is outside the cache of ", cache.keys.size(0));
    TORCH_CHECK(!taken[static_cast<size_t>(row)], op, ": row ", row,
                " of the cache is that of two sequences");
    taken[static_cast<size_t>(row)] = 1;
  }
}

}  // namespace

void check_projection(const char* op, const at::Tensor& x, const at::Tensor& weight) {
  check_float(op, "x", x);
  check_alike(op, "x", x, "weight", weight);
  TORCH_CHECK(weight.dim() == 2 && x.dim() > 0 && x.size(-1) == weight.size(1), op, ": x ",
              x.sizes(), " does not fit weight ", weight.sizes());
  TORCH_CHECK(weight.numel() > 0, op, ": weight ", weight.sizes(), " has no elements");
}

void check_feed_forward(const char* op, const at::Tensor& x, const at::Tensor& up,
                        const at::Tensor& down, const at::Tensor& residual) {
  check_projection(op, x, up);
  check_alike(op, "x", x, "down's weight", down);
  check_alike(op, "x", x, "residual", residual);
  TORCH_CHECK(down.dim() == 2 && down.numel() > 0 && up.size(0) == 2 * down.size(1) &&
                  down.size(0) == x.size(-1) && residual.sizes() == x.sizes(),
              op, ": need x [..., C], up [2F, C], down [C, F] and residual [..., C], got ",
              x.sizes(), ", ", up.sizes(), ", ", down.sizes(), " and ", residual.sizes());
}

void check_head(const char* op, const at::Tensor& x, const at::Tensor& weight,
                const at::Tensor& targets, double z_loss) {
  check_float(op, "x", x);
  check_alike(op, "x", x, "weight", weight);
  check_device(op, "x", x, "targets", targets);
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) &&
                  targets.dim() == 1 && targets.size(0) == x.size(0),
              op, ": need x [rows, C], weight [V, C] and targets [rows], got ", x.sizes(), ", ",
              weight.sizes(), " and ", targets.sizes());
  TORCH_CHECK(weight.numel() > 0, op, ": weight ", weight.sizes(), " has no elements");
  TORCH_CHECK(targets.scalar_type() == at::kLong, op, ": targets ", targets.sizes(),
              " must be int64, got ", targets.toString());
  TORCH_CHECK(z_loss >= 0 && std::isfinite(z_loss), op, ": z_loss must be at least 0, got ",
              z_loss);
}

void check_rope(const at::Tensor& x, at::IntArrayRef packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& table) {
  check_float("rope", "packed", x);
  check_float("rope", "table", table);
  check_device("rope", "packed", x, "table", table);
  check_device("rope", "packed", x, "positions", positions);
  TORCH_CHECK(packed.size() == 4, "rope: packed must be [B,T,heads,D], got ", packed);
  TORCH_CHECK(heads_rotated >= 0 && heads_rotated <= packed[2] && dims > 0 && dims % 2 == 0 &&
                  dims <= packed[3],
              "rope: cannot rotate ", dims, " dims of ", heads_rotated, " heads in ", packed);
  TORCH_CHECK(table.dim() == 2 && table.size(1) == dims, "rope: table must be [length, ", dims,
              "], got ", table.sizes());
  TORCH_CHECK(positions.scalar_type() == at::kLong, "rope: positions ", positions.sizes(),
              " must be int64, got ", positions.toString());
  TORCH_CHECK((positions.dim() == 1 || (positions.dim() == 2 && positions.size(0) == packed[0])) &&
                  positions.size(-1) == packed[1],
              "rope: positions must be [T] or [B,T] of packed ", packed, ", got ",
              positions.sizes());
}

std::vector<int64_t> check_rope_projection(const char* op, const at::Tensor& x,
                                           const at::Tensor& weight, int64_t packed_heads,
                                           int64_t heads_rotated, int64_t dims,
                                           const at::Tensor& positions, const at::Tensor& table) {
  TORCH_CHECK(x.dim() == 3 && packed_heads > 0 && weight.size(0) % packed_heads == 0, op, ": x ",
              x.sizes(), " does not fit weight ", weight.sizes(), " of ", packed_heads, " heads");
  std::vector<int64_t> shape = {x.size(0), x.size(1), packed_heads, weight.size(0) / packed_heads};
  check_rope(x, shape, heads_rotated, dims, positions, table);
  return shape;
}

void check_pseudo(const char* op, const PseudoScores& pseudo, int64_t least_length) {
  const at::Tensor &gamma = pseudo.gamma, &p_base = pseudo.p_base;
  TORCH_CHECK(gamma.defined() && p_base.defined(), op,
              ": the pseudo scores have no gamma or no p_base; both must be [H]");
  TORCH_CHECK(gamma.dim() == 1 && p_base.sizes() == gamma.sizes() && gamma.numel() > 0, op,
              ": gamma and p_base must both be [H] with H at least 1, got ", gamma.sizes(), " and ",
              p_base.sizes());
  TORCH_CHECK(is_wide_float(gamma) && is_wide_float(p_base), op,
              ": gamma and p_base must be fp32 or fp64, got ", gamma.toString(), " and ",
              p_base.toString(), " ", gamma.sizes());
  check_device(op, "gamma", gamma, "the p_base", p_base);
  TORCH_CHECK(pseudo.length.kind != MaskLength::Kind::kFixed || pseudo.length.n >= least_length, op,
              ": a fixed mask length must be at least ", least_length, ", got ", pseudo.length.n);
  const double least = least_gamma(gamma);
  TORCH_CHECK(!(least < 0), op, ": gamma ", gamma.sizes(), " must not be negative, got ", least);
}

void check_attention_options(const char* op, const AttentionShape& shape,
                             const AttentionOptions& options) {
  TORCH_CHECK(!options.scale || std::isfinite(*options.scale), op, ": scale must be finite, got ",
              options.scale.value_or(0));
  check_offsets(op, shape, options);
  if (options.alibi_slopes.defined()) {
    const at::Tensor& slopes = options.alibi_slopes;
    check_float(op, "alibi_slopes", slopes);
    check_device(op, "q", shape.query, "alibi_slopes", slopes);
    TORCH_CHECK(slopes.dim() == 1 && slopes.size(0) == shape.heads, op,
                ": alibi_slopes must be [H] = [", shape.heads, "], got ", slopes.sizes());
  }
  check_mask(op, shape, options);
  check_documents(op, shape, options);
}

void check_attention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options) {
  check_float(op, "q", q);
  check_alike(op, "q", q, "k", k);
  check_alike(op, "q", q, "v", v);
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.sizes() == k.sizes(), op,
              ": q, k, v must be [B,T,H,D], [B,S,Hkv,D] and k's shape, got ", q.sizes(), ", ",
              k.sizes(), ", ", v.sizes());
  TORCH_CHECK(q.numel() > 0 && k.numel() > 0, op, ": q ", q.sizes(), " and k ", k.sizes(),
              " must not have a dimension of size 0");
  TORCH_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3) && q.size(2) % k.size(2) == 0, op,
              ": q ", q.sizes(), " and k ", k.sizes(),
              " must agree in B and D, and H must be a multiple of Hkv");
  TORCH_CHECK(q.stride(3) == 1 && k.stride(3) == 1 && v.stride(3) == 1, op,
              ": the last dimension must be contiguous, got strides ", q.strides(), ", ",
              k.strides(), ", ", v.strides());
  check_attention_options(op, {q.size(0), q.size(1), k.size(1), q.size(2), q}, options);
}

void check_decode(const char* op, const at::Tensor& packed, int64_t heads, const DecodeCache& cache,
                  const at::Tensor& rows, const at::Tensor& positions,
                  const DecodeOptions& options) {
  check_decode_shapes(op, packed, heads, cache);
  check_decode_index(op, "positions", positions, packed);
  if (rows.defined()) check_decode_index(op, "rows", rows, packed);
  TORCH_CHECK(packed.size(0) <= cache.keys.size(0), op, ": ", packed.size(0),
              " sequences need as many rows of the cache, got keys ", cache.keys.sizes());
  TORCH_CHECK(!options.pseudo || options.pseudo->length.kind != MaskLength::Kind::kSequence, op,
              ": the mask length \"sequence\" cannot be used with a cache; set a number or "
              "\"infinite\"");
  AttentionOptions shared;
  shared.scale = options.scale;
  shared.pseudo = options.pseudo;
  shared.alibi_slopes = options.alibi_slopes;
  shared.window = options.window;
  check_attention_options(op, {packed.size(0), 1, 1, heads, packed}, shared);
  check_decode_rope(op, packed, options);
  if (packed.is_cpu()) check_decode_values(op, cache, rows, positions, options);
}

void check_adamw(const at::Tensor& weights, const at::Tensor& remainder, const at::Tensor& m,
                 const at::Tensor& v, const at::Tensor& grad, const AdamWArgs& args,
                 const at::Tensor& control, bool fp64) {
  const bool split = remainder.defined();
  TORCH_CHECK(
      weights.defined() && m.defined() && v.defined() && grad.defined() && control.defined(),
      "adamw_: weights, m, v, grad and control must be defined");
  const bool is_fp64 = fp64 && !split && weights.scalar_type() == at::kDouble;
  TORCH_CHECK(split
                  ? weights.scalar_type() == at::kBFloat16 && remainder.scalar_type() == at::kShort
                  : is_fp64 || weights.scalar_type() == at::kFloat,
              "adamw_: weights must be fp32, or bf16 with an int16 remainder, got ",
              weights.toString(), " and ", remainder.toString());
  const auto fits = [&](const at::Tensor& x) {
    return x.numel() == weights.numel() && x.device() == weights.device() && x.is_contiguous();
  };
  TORCH_CHECK(
      weights.is_contiguous() && fits(m) && fits(v) && fits(grad) && (!split || fits(remainder)),
      "adamw_: every buffer must be contiguous with the size and device of the weights ",
      weights.sizes(), ", got ", m.sizes(), ", ", v.sizes(), " and ", grad.sizes());
  const bool bf16_moments = !is_fp64 && m.scalar_type() == at::kBFloat16;
  const at::ScalarType exact = is_fp64 ? at::kDouble : at::kFloat;
  const at::ScalarType moment = bf16_moments ? at::kBFloat16 : exact;
  TORCH_CHECK(m.scalar_type() == moment && v.scalar_type() == moment && grad.scalar_type() == exact,
              "adamw_: m, v and grad must be ", is_fp64 ? "fp64" : "fp32, or m and v both bf16",
              ", got ", m.toString(), ", ", v.toString(), " and ", grad.toString());
  TORCH_CHECK(args.first >= 0, "adamw_: the first element's index must be at least 0, got ",
              args.first);
  TORCH_CHECK(control.numel() == kUpdateControls && control.scalar_type() == at::kDouble &&
                  control.is_contiguous() && control.device() == weights.device(),
              "adamw_: control must be fp64 [", kUpdateControls, "] on the buffers' device, got ",
              control.toString(), " ", control.sizes());
  const auto is_decay = [](double beta) { return beta >= 0 && static_cast<float>(beta) < 1; };
  TORCH_CHECK(is_decay(args.beta1) && is_decay(args.beta2) && static_cast<float>(args.eps) > 0 &&
                  args.weight_decay >= 0,
              "adamw_: need beta1 and beta2 from 0 to below 1, eps above 0 and weight_decay of at "
              "least 0, all in fp32, got ",
              args.beta1, ", ", args.beta2, ", ", args.eps, " and ", args.weight_decay);
}

}  // namespace stablemask::ops
