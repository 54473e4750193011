#include "src/ops/attention_bf16.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "src/ops/cpu_bf16_attention.h"
#include "src/ops/kernels.h"
#include "stablemask/ops/device.h"

namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// A call of attention on a packed projection.
struct Bf16Attention {
  int64_t heads, kv_heads;
  double scale;
  at::Tensor slopes;  ///< fp32 [H] or undefined
  at::Tensor first;   ///< int32 [B,T], the first key that a row sees; undefined: all see key 0
};

void save(AutogradContext* ctx, const Bf16Attention& call) {
  ctx->saved_data["heads"] = call.heads;
  ctx->saved_data["kv_heads"] = call.kv_heads;
  ctx->saved_data["scale"] = call.scale;
  ctx->saved_data["slopes"] = call.slopes;
  ctx->saved_data["first"] = call.first;
}

Bf16Attention load(AutogradContext* ctx) {
  return {ctx->saved_data["heads"].toInt(), ctx->saved_data["kv_heads"].toInt(),
          ctx->saved_data["scale"].toDouble(), ctx->saved_data["slopes"].toTensor(),
          ctx->saved_data["first"].toTensor()};
}

template <typename Number>
const Number* data_or_null(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<Number>() : nullptr;
}

/// The groups of a call: of each sequence, a key head and the query heads that share it.
class Groups {
 public:
  Groups(const Bf16Attention& call, const at::Tensor& packed, const at::Tensor& log_mass)
      : packed_(packed.const_data_ptr<float>()),
        slopes_(data_or_null<float>(call.slopes)),
        log_mass_(data_or_null<float>(log_mass)),
        first_(data_or_null<int32_t>(call.first)),
        mass_of_batch_(log_mass.defined() && log_mass.dim() == 3),
        heads_(call.heads),
        kv_heads_(call.kv_heads),
        scale_(static_cast<float>(call.scale)),
        batch_(packed.size(0)),
        length_(packed.size(1)),
        dim_(packed.size(3)) {}

  int64_t count() const { return batch_ * kv_heads_; }
  int64_t length() const { return length_; }
  int64_t dim() const { return dim_; }

  /// Offsets of group n: of its first query, key and value in a packed tensor, of its first head in
  /// the output and in [B,H,T].
  int64_t query(int64_t n) const { return start(n) + n % kv_heads_ * share() * dim_; }
  int64_t key(int64_t n) const { return start(n) + (heads_ + n % kv_heads_) * dim_; }
  int64_t value(int64_t n) const { return key(n) + kv_heads_ * dim_; }
  int64_t out(int64_t n) const {
    return (n / kv_heads_ * length_ * heads_ + n % kv_heads_ * share()) * dim_;
  }
  int64_t rows(int64_t n) const { return n * share() * length_; }

  cpu::bf16::AttentionGroup group(int64_t n) const {
    cpu::bf16::AttentionGroup g{length_,
                                dim_,
                                share(),
                                stride(),
                                packed_ + query(n),
                                packed_ + key(n),
                                packed_ + value(n),
                                heads_ * dim_,
                                scale_};
    if (slopes_ != nullptr) g.slopes = slopes_ + n % kv_heads_ * share();
    if (first_ != nullptr) g.first = first_ + n / kv_heads_ * length_;
    if (log_mass_ != nullptr) {
      g.log_mass = log_mass_ + rows(mass_of_batch_ ? n : n % kv_heads_);
    }
    return g;
  }

 private:
  int64_t share() const { return heads_ / kv_heads_; }
  int64_t stride() const { return (heads_ + 2 * kv_heads_) * dim_; }
  int64_t start(int64_t n) const { return n / kv_heads_ * length_ * stride(); }

  const float *packed_, *slopes_, *log_mass_;
  const int32_t* first_;
  bool mass_of_batch_;
  int64_t heads_, kv_heads_;
  float scale_;
  int64_t batch_, length_, dim_;
};

/// Parts of [0, length) with about equal areas below the diagonal: of rows, or of keys.
std::vector<int64_t> part_ends(int64_t length, int64_t parts, bool keys) {
  constexpr int64_t kRows = cpu::bf16::kAttentionRows;
  std::vector<int64_t> ends{0};
  for (int64_t n = 1; n < parts; ++n) {
    const double share = static_cast<double>(n) / static_cast<double>(parts);
    const double end = keys ? 1.0 - std::sqrt(1.0 - share) : std::sqrt(share);
    const auto block = std::llround(end * static_cast<double>(length) / kRows);
    ends.push_back(std::clamp<int64_t>(block * kRows, ends.back(), length));
  }
  ends.push_back(length);
  return ends;
}

/// How many parts of each group give every thread work.
int64_t parts_of(const Groups& groups) {
  const int64_t wanted = (at::get_num_threads() + groups.count() - 1) / groups.count();
  return std::min(wanted, (groups.length() - 1) / cpu::bf16::kAttentionRows + 1);
}

/// work(index, workspace) for each index, in parallel.
template <typename Work>
void for_each_part(int64_t count, int64_t words, const Work& work) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor space = at::zeros({words}, at::kInt);
    auto* to = reinterpret_cast<uint32_t*>(space.data_ptr<int32_t>());
    for (int64_t i = begin; i < end; ++i) work(i, to);
  });
}

void forward_groups(const Groups& groups, at::Tensor& out, at::Tensor& lse) {
  const int64_t parts = parts_of(groups);
  const std::vector<int64_t> ends = part_ends(groups.length(), parts, /*keys=*/false);
  auto* to = out.data_ptr<float>();
  auto* lse_to = lse.data_ptr<float>();
  for_each_part(groups.count() * parts,
                cpu::bf16::attention_forward_words(groups.length(), groups.dim()),
                [&](int64_t index, uint32_t* work) {
                  const int64_t n = index / parts, part = index % parts;
                  cpu::bf16::attend(groups.group(n), ends[part], ends[part + 1], to + groups.out(n),
                                    lse_to + groups.rows(n), work);
                });
}

/// One part computes all gradients of a group, or half of the parts those of q and half those of k
/// and v.
void backward_groups(const Groups& groups, const at::Tensor& dout, const at::Tensor& out,
                     const at::Tensor& lse, at::Tensor& dpacked) {
  const int64_t length = groups.length(), halves = (parts_of(groups) + 1) / 2;
  std::vector<cpu::bf16::AttentionPart> parts;
  if (parts_of(groups) == 1) {
    parts.push_back({0, length, 0, length});
  } else {
    const auto rows = part_ends(length, halves, /*keys=*/false);
    const auto keys = part_ends(length, halves, /*keys=*/true);
    for (int64_t i = 0; i < halves; ++i) {
      parts.push_back({rows[i], rows[i + 1], 0, 0});
      parts.push_back({0, 0, keys[i], keys[i + 1]});
    }
  }
  const auto *of_dout = dout.const_data_ptr<float>(), *of_out = out.const_data_ptr<float>(),
             *of_lse = lse.const_data_ptr<float>();
  auto* to = dpacked.data_ptr<float>();
  const auto count = static_cast<int64_t>(parts.size());
  for_each_part(groups.count() * count, cpu::bf16::attention_backward_words(length, groups.dim()),
                [&](int64_t index, uint32_t* work) {
                  const int64_t n = index / count;
                  cpu::bf16::attend_backward(
                      groups.group(n),
                      {of_dout + groups.out(n), of_out + groups.out(n), of_lse + groups.rows(n),
                       to + groups.query(n), to + groups.key(n), to + groups.value(n)},
                      parts[index % count], work);
                });
}

/// packed fp32 [B,T,Hp,D], log_mass fp32 [H,T] or [B,H,T], both contiguous.
struct RoundedAttention : torch::autograd::Function<RoundedAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& packed,
                            const std::optional<at::Tensor>& log_mass, const Bf16Attention& call) {
    const int64_t batch = packed.size(0), length = packed.size(1);
    at::Tensor out = at::empty({batch, length, call.heads, packed.size(3)}, packed.options());
    at::Tensor lse = at::empty({batch, call.heads, length}, packed.options());
    forward_groups({call, packed, log_mass.value_or(at::Tensor())}, out, lse);
    save(ctx, call);
    ctx->save_for_backward({packed, out, lse, log_mass.value_or(at::Tensor())});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &packed = saved[0], &out = saved[1], &lse = saved[2], &log_mass = saved[3];
    const at::Tensor dout = grads[0].contiguous();
    at::Tensor dpacked, dlog_mass;
    if (log_mass.defined() && ctx->needs_input_grad(1)) {
      dlog_mass = cpu::stable_mask_mass_gradient(dout, out, lse, log_mass);
    }
    if (ctx->needs_input_grad(0)) {
      dpacked = at::empty_like(packed);
      backward_groups({load(ctx), packed, log_mass}, dout, out, lse, dpacked);
    }
    return {dpacked, dlog_mass, at::Tensor()};
  }
};

/// The first key that each row sees, [B,T] and not decreasing, for a window and documents.
at::Tensor first_keys(const at::Tensor& packed, const AttentionOptions& options) {
  const int64_t batch = packed.size(0), length = packed.size(1);
  const bool windowed = options.window > 0 && options.window < length;
  if (!windowed && !options.document_start.defined()) return {};
  const at::Tensor rows = at::arange(length, at::kLong);
  at::Tensor first = at::zeros({batch, length}, at::kLong);
  if (options.document_start.defined()) first = at::maximum(first, options.document_start);
  if (windowed) first = at::maximum(first, rows - (options.window - 1));
  return at::minimum(first, rows).to(at::kInt).contiguous();
}

}  // namespace

bool has_bf16_attention(const at::Tensor& packed, const AttentionOptions& options) {
  return options.kernels == Kernels::kFusedBf16 && packed.is_cpu() &&
         packed.scalar_type() == at::kFloat && options.backend != AttentionBackend::kReference &&
         cpu_has_bf16();
}

at::Tensor bf16_attention(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                          const AttentionOptions& options) {
  Bf16Attention call{heads,
                     kv_heads,
                     options.scale.value_or(1.0 / std::sqrt(static_cast<double>(packed.size(3)))),
                     {},
                     first_keys(packed, options)};
  if (options.alibi_slopes.defined()) {
    call.slopes = options.alibi_slopes.to(at::kFloat).contiguous();
  }
  std::optional<at::Tensor> log_mass;
  if (options.pseudo) {
    const at::Tensor mass =
        options.log_mass.defined() ? options.log_mass : row_log_mass(options, packed.size(1));
    log_mass = mass.to(at::kFloat).contiguous();
  }
  return RoundedAttention::apply(packed.contiguous(), log_mass, call);
}

}  // namespace stablemask::ops
