#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "src/ops/cpu_few_rows.h"
#include "src/ops/cpu_rows.h"
#include "src/ops/dropout_rules.h"
#include "src/ops/kernels.h"
#include "src/ops/pseudo_mass.h"
#include "stablemask/ops/reference.h"

/// CPU kernels: checks the tensors and distributes ranges of rows over the threads. Results do not
/// depend on the number of threads: sums over rows are computed in blocks of fixed size and the
/// blocks added in order.
namespace stablemask::ops::cpu {
namespace {

constexpr int64_t kGrain = 32768;  ///< minimum elements per thread
constexpr int64_t kBlockRows = 64;
constexpr int64_t kBlockElements = 16384;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float* floats(const at::Tensor& x) {
  TORCH_CHECK(x.is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous(),
              "cpu kernel: expected a contiguous fp32 CPU tensor, got ", x.toString(), " ",
              x.sizes());
  return x.data_ptr<float>();
}

float* floats_or_null(const at::Tensor& x) { return x.defined() ? floats(x) : nullptr; }

const int64_t* indices(const at::Tensor& x) {
  TORCH_CHECK(x.is_cpu() && x.scalar_type() == at::kLong && x.is_contiguous(),
              "cpu kernel: expected a contiguous int64 CPU tensor, got ", x.toString());
  return x.const_data_ptr<int64_t>();
}

int64_t rows_of(const at::Tensor& x) { return x.numel() / std::max<int64_t>(x.size(-1), 1); }

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(elements_per_item, 1));
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void rms_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                      double eps, at::Tensor& sum, at::Tensor& y, at::Tensor& rstd) {
  const int64_t cols = x.size(-1);
  const rows::RmsNormForward p{floats(x),      floats_or_null(residual),
                               floats(weight), residual.defined() ? floats(sum) : nullptr,
                               floats(y),      floats(rstd),
                               cols,           static_cast<float>(eps)};
  at::parallel_for(0, rows_of(x), grain(cols),
                   [&](int64_t begin, int64_t end) { rows::rms_norm(p, begin, end); });
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& x,
                       const at::Tensor& weight, const at::Tensor& rstd, at::Tensor& dx,
                       at::Tensor& dw) {
  const int64_t cols = x.size(-1), count = rows_of(x);
  const rows::RmsNormBackward p{floats(dy),   floats_or_null(dsum), floats(x), floats(weight),
                                floats(rstd), floats(dx),           cols};
  const int64_t blocks = ceil_divide(count, kBlockRows);
  std::vector<float> partial(static_cast<size_t>(blocks * cols), 0.0f);
  at::parallel_for(0, blocks, grain(cols * kBlockRows), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      rows::rms_norm_backward(p, partial.data() + block * cols, block * kBlockRows,
                              std::min(count, (block + 1) * kBlockRows));
    }
  });
  float* total = floats(dw);
  for (int64_t block = 0; block < blocks; ++block) {
    rows::add(partial.data() + block * cols, total, cols);
  }
}

void swiglu_forward(const at::Tensor& gate_up, at::Tensor& out) {
  const int64_t features = out.size(-1);
  const float* in = floats(gate_up);
  float* y = floats(out);
  at::parallel_for(0, rows_of(out), grain(features),
                   [&](int64_t begin, int64_t end) { rows::swiglu(in, y, features, begin, end); });
}

void swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up, at::Tensor& dgate_up) {
  const int64_t features = dout.size(-1);
  const float *dy = floats(dout), *in = floats(gate_up);
  float* dx = floats(dgate_up);
  at::parallel_for(0, rows_of(dout), grain(features), [&](int64_t begin, int64_t end) {
    rows::swiglu_backward(dy, in, dx, features, begin, end);
  });
}

void dropout(const at::Tensor& x, const at::Tensor& key, int64_t stream, int64_t first,
             double share, at::Tensor& out) {
  const uint64_t seed = ops::dropout::seed_of(*indices(key), stream);
  const uint32_t threshold = ops::dropout::threshold_of(share);
  const double factor = 1.0 / (1.0 - share);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "dropout", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const bool keeps = ops::dropout::keeps(seed, first + i, threshold);
        to[i] = keeps ? static_cast<scalar_t>(static_cast<double>(from[i]) * factor) : scalar_t(0);
      }
    });
  });
}

void rope_(at::Tensor& packed, int64_t heads, int64_t dims, const at::Tensor& positions,
           const at::Tensor& table, bool inverse) {
  const int64_t packed_heads = packed.size(2), head_dim = packed.size(3), half = dims / 2;
  const int64_t tokens = packed.size(0) * packed.size(1), period = positions.numel();
  float* x = floats(packed);
  const float* angles = floats(table);
  const int64_t* position = indices(positions);
  const int64_t length = table.size(0);
  at::parallel_for(0, tokens, grain(heads * dims), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t at = position[token % period];
      TORCH_CHECK(at >= 0 && at < length, "rope: position ", at, " outside the table of ", length);
      const float* cos = angles + at * dims;
      rows::rope(x + token * packed_heads * head_dim, heads, head_dim, cos, cos + half, half,
                 inverse ? -1.0f : 1.0f);
    }
  });
}

bool few_rows_serves(const at::Tensor& x, const at::Tensor& weight) {
  constexpr int64_t kMostRows = 8;
  return x.is_cpu() && x.scalar_type() == at::kFloat && x.size(0) <= kMostRows &&
         weight.scalar_type() == at::kFloat && weight.is_contiguous();
}

void few_rows_product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual,
                      at::Tensor& out) {
  const rows::Product p{floats(x),     floats(weight), floats_or_null(residual),
                        floats(out),   x.size(0),      weight.size(1),
                        weight.size(0)};
  at::parallel_for(0, p.outs, grain(p.cols),
                   [&](int64_t begin, int64_t end) { rows::product(p, begin, end); });
}

void cross_entropy_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& scale,
                    double z_loss, bool grad, at::Tensor& losses) {
  const float factor = grad ? static_cast<float>(*scale.const_data_ptr<double>()) : 0.0f;
  const int64_t vocab = logits.size(1);
  float *x = floats(logits), *loss = floats(losses);
  const int64_t* target = indices(targets);
  at::parallel_for(0, logits.size(0), grain(vocab), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* r = x + row * vocab;
      if (target[row] == -100) {
        loss[row] = 0.0f;
        if (grad) std::fill_n(r, vocab, 0.0f);
        continue;
      }
      TORCH_CHECK(target[row] >= 0 && target[row] < vocab, "cross_entropy: target ", target[row],
                  " outside the vocabulary of ", vocab);
      loss[row] =
          rows::cross_entropy(r, vocab, target[row], factor, static_cast<float>(z_loss), grad);
    }
  });
}

namespace {

/// For any dtype and strides, in plain ATen.
void stable_mask_correct_any(at::Tensor& out, at::Tensor& lse, const at::Tensor& log_mass) {
  const at::Tensor after = at::logaddexp(lse, log_mass);
  const at::Tensor factor = at::exp(lse - after).masked_fill_(at::isneginf(lse), 0.0);
  const at::Tensor wide = factor.transpose(1, 2).unsqueeze(3);
  out.copy_(at::where(wide > 0, out.to(lse.scalar_type()) * wide, at::zeros({}, lse.options())));
  lse.copy_(after);
}

/// Returns logaddexp(lse, mass) and scales `out` to match.
float correct_row(float* out, int64_t dims, float lse, float mass) {
  if (lse == -kInfinity) {
    std::fill_n(out, dims, 0.0f);
    return mass;
  }
  if (mass == -kInfinity) return lse;
  const float after = std::max(lse, mass) + std::log1p(std::exp(-std::abs(lse - mass)));
  rows::scale(out, std::exp(lse - after), dims);
  return after;
}

}  // namespace

void stable_mask_correct_(at::Tensor& out, at::Tensor& lse, const at::Tensor& log_mass) {
  if (out.scalar_type() != at::kFloat || out.stride(3) != 1) {
    return stable_mask_correct_any(out, lse, log_mass);
  }
  const int64_t length = out.size(1), heads = out.size(2), dims = out.size(3);
  const at::Tensor mass = log_mass.expand({out.size(0), heads, length});
  const at::TensorAccessor<float, 3> masses = mass.accessor<float, 3>();
  at::TensorAccessor<float, 3> sums = lse.accessor<float, 3>();
  at::TensorAccessor<float, 4> outs = out.accessor<float, 4>();
  at::parallel_for(0, out.size(0) * length, grain(heads * dims), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t b = token / length, t = token % length;
      for (int64_t h = 0; h < heads; ++h) {
        sums[b][h][t] = correct_row(outs[b][t][h].data(), dims, sums[b][h][t], masses[b][h][t]);
      }
    }
  });
}

at::Tensor stable_mask_mass_gradient(const at::Tensor& dout, const at::Tensor& out,
                                     const at::Tensor& lse, const at::Tensor& log_mass) {
  const auto math = lse.scalar_type();
  const at::Tensor ratio = at::exp(log_mass - lse).masked_fill_(at::isinf(log_mass), 0.0);
  const at::Tensor products = (dout.to(math) * out.to(math)).sum(3).transpose(1, 2);
  const at::Tensor gradient = (ratio * products).neg();
  return log_mass.dim() == 2 ? gradient.sum(0) : gradient;
}

void embedding_backward(const at::Tensor& dy, const at::Tensor& ids, at::Tensor& dw) {
  const int64_t cols = dw.size(1), vocab = dw.size(0), count = ids.numel();
  if (dy.scalar_type() != at::kFloat || dw.scalar_type() != at::kFloat) {
    dw.index_add_(0, ids.reshape({-1}), dy.reshape({-1, cols}).to(dw.scalar_type()));
    return;
  }
  const float* grad = floats(dy);
  const int64_t* id = indices(ids);
  float* total = floats(dw);
  // Share s adds to the rows with id ≡ s (mod shares) and visits the tokens in order: no locks, and
  // a fixed order of summation per row.
  const int64_t shares = at::get_num_threads();
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < count; ++n) {
      const int64_t share = id[n] % shares;
      if (share < begin || share >= end) continue;
      TORCH_CHECK(id[n] < vocab, "embedding: id ", id[n], " outside the vocabulary of ", vocab);
      rows::add(grad + n * cols, total + id[n] * cols, cols);
    }
  });
}

namespace {

/// The moments of an update block by block: as they are, or a copy in fp32 of bf16 ones.
class MomentBlocks {
 public:
  MomentBlocks(const at::Tensor& m, const at::Tensor& v, const AdamWArgs& args, int64_t step)
      : bf16_(m.scalar_type() == at::kBFloat16),
        m_(m.mutable_data_ptr()),
        v_(v.mutable_data_ptr()),
        key_(rounding::key_of(args.seed, step)),
        first_(args.first) {}

  /// Sets p's moments to those of the elements from `begin` on; `scratch` is a thread's own.
  void open(rows::AdamW& p, std::vector<float>& scratch, int64_t begin, int64_t count) const {
    p.m = static_cast<float*>(m_) + begin;
    p.v = static_cast<float*>(v_) + begin;
    if (!bf16_) return;
    scratch.resize(2 * kBlockElements);
    p.m = scratch.data();
    p.v = p.m + kBlockElements;
    rows::widen(static_cast<uint16_t*>(m_) + begin, p.m, count);
    rows::widen(static_cast<uint16_t*>(v_) + begin, p.v, count);
  }
  void close(const rows::AdamW& p, int64_t begin, int64_t count) const {
    if (!bf16_) return;
    rows::round({p.m, p.v, static_cast<uint16_t*>(m_) + begin, static_cast<uint16_t*>(v_) + begin},
                key_, first_ + begin, count);
  }

 private:
  bool bf16_;
  void *m_, *v_;
  rounding::Key key_;
  int64_t first_;
};

}  // namespace

void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control) {
  const double* values = control.const_data_ptr<double>();
  const double lr = values[0], step = values[1], grad_scale = values[2];
  if (grad_scale < 0) return;
  const double correction1 = 1.0 - std::pow(args.beta1, step);
  const double correction2 = 1.0 - std::pow(args.beta2, step);
  const bool split = remainder.defined();
  const MomentBlocks moments(m, v, args, static_cast<int64_t>(step));
  const rows::AdamW p{split ? nullptr : floats(weights),
                      nullptr,
                      nullptr,
                      floats(grad),
                      static_cast<float>(grad_scale),
                      static_cast<float>(args.beta1),
                      static_cast<float>(args.beta2),
                      static_cast<float>(args.eps),
                      static_cast<float>(1.0 - lr * args.weight_decay),
                      static_cast<float>(lr / correction1),
                      static_cast<float>(1.0 / std::sqrt(correction2))};
  const int64_t size = weights.numel();
  auto* const rounded = split ? static_cast<uint16_t*>(weights.mutable_data_ptr()) : nullptr;
  int16_t* const rest = split ? remainder.mutable_data_ptr<int16_t>() : nullptr;
  at::parallel_for(0, ceil_divide(size, kBlockElements), 2, [&](int64_t begin, int64_t end) {
    std::vector<float> joined(split ? static_cast<size_t>(kBlockElements) : 0), scratch;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlockElements, count = std::min(kBlockElements, size - first);
      rows::AdamW part = p;
      part.weights = split ? joined.data() : p.weights + first;
      part.grad += first;
      moments.open(part, scratch, first, count);
      if (split) rows::join(rounded + first, rest + first, joined.data(), count);
      rows::adamw(part, count);
      moments.close(part, first, count);
      if (split) rows::split(joined.data(), rounded + first, rest + first, count);
    }
  });
}

at::Tensor sum_of_squares(const at::Tensor& flat) {
  const float* x = floats(flat);
  const int64_t size = flat.numel(), blocks = ceil_divide(size, kBlockElements);
  std::vector<double> partial(static_cast<size_t>(blocks));
  at::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlockElements;
      partial[static_cast<size_t>(block)] =
          rows::sum_of_squares(x + first, std::min(kBlockElements, size - first));
    }
  });
  double total = 0.0;
  for (const double value : partial) total += value;
  return at::scalar_tensor(total, flat.options().dtype(at::kDouble));
}

namespace {

struct Decode {
  const float* packed;  ///< [B, H+2·Hkv, D]
  const DecodeCache& cache;
  const DecodeOptions& options;
  const float *gamma, *p_base, *slopes;  ///< [H] or null
  int64_t heads, kv_heads, dim, window;
  float scale;

  int64_t group() const { return heads / kv_heads; }
};

/// Copies a head of the new token, rotated by the angles of its position.
void copy_rotated(const Decode& p, const float* from, int64_t position, float* to) {
  std::copy_n(from, p.dim, to);
  const int64_t dims = p.options.rope_dims;
  if (dims == 0) return;
  const float* cos = p.options.rope_table.const_data_ptr<float>() + position * dims;
  rows::rope(to, 1, p.dim, cos, cos + dims / 2, dims / 2, 1.0f);
}

float pseudo_mass_of(const Decode& p, int64_t head, int64_t position) {
  if (p.gamma == nullptr) return -kInfinity;
  const MaskLength& length = p.options.pseudo->length;
  const bool infinite = length.kind == MaskLength::Kind::kInfinite;
  return static_cast<float>(log_mass_at<double>(p.gamma[head], p.p_base[head], position,
                                                infinite ? 0 : length.n,
                                                infinite || length.infinite_beyond));
}

/// One sequence and one key/value head with its group of queries: out [group, D]. `scratch` holds
/// group·(D + 2) floats.
void decode_group(const Decode& p, int64_t b, int64_t kv, int64_t row, int64_t position,
                  float* scratch, float* out) {
  const at::Tensor &keys = p.cache.keys, &values = p.cache.values;
  const int64_t group = p.group(), slots = keys.size(1), newest = position % slots;
  const float* token = p.packed + b * (p.heads + 2 * p.kv_heads) * p.dim;
  float* const key = keys.data_ptr<float>() + row * keys.stride(0) + kv * keys.stride(2);
  float* const value = values.data_ptr<float>() + row * values.stride(0) + kv * values.stride(2);
  copy_rotated(p, token + (p.heads + kv) * p.dim, position, key + newest * keys.stride(1));
  std::copy_n(token + (p.heads + p.kv_heads + kv) * p.dim, p.dim,
              value + newest * values.stride(1));

  float *const largest = scratch + group * p.dim, *const sum = largest + group;
  for (int64_t g = 0; g < group; ++g) {
    float* query = scratch + g * p.dim;
    copy_rotated(p, token + (kv * group + g) * p.dim, position, query);
    rows::scale(query, p.scale, p.dim);
  }
  std::fill_n(largest, group, -kInfinity);
  std::fill_n(sum, group, 0.0f);
  std::fill_n(out, group * p.dim, 0.0f);
  const rows::Attend state{
      scratch, p.slopes == nullptr ? nullptr : p.slopes + kv * group, group, p.dim, largest, sum,
      out};
  // The visible positions are at most two runs of neighbouring slots.
  int64_t first = p.window > 0 ? std::max<int64_t>(0, position - p.window + 1) : 0;
  while (first <= position) {
    const int64_t slot = first % slots, count = std::min(position - first + 1, slots - slot);
    rows::attend(state, key + slot * keys.stride(1), keys.stride(1),
                 value + slot * values.stride(1), values.stride(1), count, position - first);
    first += count;
  }
  for (int64_t g = 0; g < group; ++g) {
    const float mass = pseudo_mass_of(p, kv * group + g, position);
    rows::scale(out + g * p.dim, 1.0f / (sum[g] + std::exp(mass - largest[g])), p.dim);
  }
}

}  // namespace

void decode_attention(const at::Tensor& packed, int64_t heads, const DecodeCache& cache,
                      const at::Tensor& rows, const at::Tensor& positions,
                      const DecodeOptions& options, at::Tensor& out) {
  const int64_t kv_heads = cache.keys.size(2), dim = packed.size(2);
  const auto vector = [](const at::Tensor& x) {
    return x.defined() ? x.to(at::kFloat).contiguous() : x;
  };
  const at::Tensor gamma = vector(options.pseudo ? options.pseudo->gamma : at::Tensor());
  const at::Tensor p_base = vector(options.pseudo ? options.pseudo->p_base : at::Tensor());
  const at::Tensor slopes = vector(options.alibi_slopes);
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(dim)));
  const Decode p{floats(packed),
                 cache,
                 options,
                 floats_or_null(gamma),
                 floats_or_null(p_base),
                 floats_or_null(slopes),
                 heads,
                 kv_heads,
                 dim,
                 options.window,
                 static_cast<float>(scale)};
  float* const result = floats(out);
  const auto position = positions.accessor<int64_t, 1>();
  const int64_t longest = positions.numel() == 0 ? 0 : positions.max().item<int64_t>() + 1;
  const int64_t visible = options.window > 0 ? std::min(longest, options.window) : longest;
  const int64_t items = packed.size(0) * kv_heads;
  at::parallel_for(0, items, grain(2 * visible * dim * p.group()), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(p.group() * (dim + 2)));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / kv_heads, kv = item % kv_heads;
      float* heads_out = result + (b * heads + kv * p.group()) * dim;
      if (position[b] < 0) {
        std::fill_n(heads_out, p.group() * dim, 0.0f);
        continue;
      }
      const int64_t row = rows.defined() ? rows.accessor<int64_t, 1>()[b] : b;
      decode_group(p, b, kv, row, position[b], scratch.data(), heads_out);
    }
  });
}

}  // namespace stablemask::ops::cpu
