#include "stablemask/infer/inspect.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "src/infer/windows.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/device_batch.h"
#include "stablemask/ops/attention.h"
#include "stablemask/ops/memory.h"
#include "stablemask/ops/stable_mask.h"

namespace stablemask {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// Rows of a head's scores that are computed at a time.
constexpr int64_t kBlockRows = 1024;

constexpr const char* kDoing = "inspecting the model; no result";
constexpr const char* kMemoryHint = "inspect shorter windows (--window)";

/// The attention weights of one layer on one sequence, by the formulas of ops/attention.h from
/// queries and keys.
class LayerAttention {
 public:
  /// packed [1,T,H+2·Hkv,D] and options as nn::ForwardObserver gets them.
  LayerAttention(const ModelConfig& config, const at::Tensor& packed,
                 const ops::AttentionOptions& options)
      : heads_(config.heads),
        group_(config.heads / config.resolved_kv_heads()),
        packed_(packed.scalar_type() == at::kDouble ? packed[0] : packed[0].to(at::kFloat)),
        options_(options) {
    TORCH_CHECK(packed.size(0) == 1 && options.query_offset == 0,
                "inspect: expected one sequence without a KV cache");
    const int64_t length = packed.size(1);
    column_ = at::arange(length, at::TensorOptions(at::kLong).device(packed.device()));
    start_ = options.document_start.defined() ? options.document_start[0] : at::zeros_like(column_);
    log_mass_ = options.pseudo ? ops::row_log_mass(options, length).view({heads_, length})
                               : at::full({heads_, length}, kMinusInfinity, packed_.options());
  }

  struct Rows {
    at::Tensor scores;  ///< a_ij [R,S], S the end of the rows; −inf where a row sees no token
    at::Tensor real;    ///< bool [R,S], whether the row sees the token
    at::Tensor lse;     ///< log Σ_j exp a_ij, [R]
    at::Tensor total;   ///< lse'_i = log(Σ_j exp a_ij + S_i), [R]
  };

  /// Rows [begin, end) of one head.
  Rows rows(int64_t head, int64_t begin, int64_t end) const {
    const at::Tensor q = packed_.slice(0, begin, end).select(1, head);
    const at::Tensor k = packed_.slice(0, 0, end).select(1, heads_ + head / group_);
    const at::Tensor i = column_.slice(0, begin, end).unsqueeze(1);
    const at::Tensor j = column_.slice(0, 0, end).unsqueeze(0);
    const double scale = options_.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(1))));
    at::Tensor scores = at::matmul(q, k.t()) * scale;
    if (options_.alibi_slopes.defined()) scores = scores - options_.alibi_slopes[head] * (i - j);
    Rows rows;
    rows.real = at::logical_and(j <= i, j >= start_.slice(0, begin, end).unsqueeze(1));
    if (options_.window > 0) rows.real = at::logical_and(rows.real, j > i - options_.window);
    rows.scores = scores.masked_fill(at::logical_not(rows.real), kMinusInfinity);
    rows.lse = at::logsumexp(rows.scores, 1);
    rows.total = at::logaddexp(rows.lse, log_mass(head).slice(0, begin, end));
    return rows;
  }

  /// log S [T] of a head; −inf: no pseudo slots.
  at::Tensor log_mass(int64_t head) const { return log_mass_[head]; }

  /// P_ij [T,T] of the pseudo slots of a head at the columns j > i, −inf where there is none.
  /// Rows whose mass goes on beyond N have slots at every later column. Without documents.
  at::Tensor slot_scores(int64_t head) const {
    const at::Tensor i = column_.unsqueeze(1), j = column_.unsqueeze(0);
    if (!options_.pseudo)
      return at::full({i.size(0), j.size(1)}, kMinusInfinity, packed_.options());
    const ops::PseudoScores& pseudo = *options_.pseudo;
    at::Tensor slot = at::logical_and(j > i, log_mass(head).unsqueeze(1) > kMinusInfinity);
    if (pseudo.length.kind == ops::MaskLength::Kind::kFixed) {
      const int64_t n = pseudo.length.n;
      slot = at::logical_and(slot, at::logical_or(j < n, i >= n - 1));
    }
    const at::Tensor scores = pseudo.p_base[head] - pseudo.gamma[head] * (j - i - 1);
    return scores.masked_fill(at::logical_not(slot), kMinusInfinity);
  }

  int64_t length() const { return column_.size(0); }
  int64_t heads() const { return heads_; }
  const at::Tensor& start() const { return start_; }

 private:
  int64_t heads_, group_;
  at::Tensor packed_;
  ops::AttentionOptions options_;
  at::Tensor column_;    ///< 0 … T−1
  at::Tensor start_;     ///< first column of each row's document, [T]
  at::Tensor log_mass_;  ///< [H,T]
};

/// [4,R]: mask ratio, entropy, first token, heaviest token.
at::Tensor row_statistics(const LayerAttention& layer, int64_t head, int64_t begin, int64_t end) {
  const LayerAttention::Rows rows = layer.rows(head, begin, end);
  const at::Tensor ratio = ops::mask_ratio(rows.lse, layer.log_mass(head).slice(0, begin, end));
  const at::Tensor log_p = rows.scores - rows.lse.unsqueeze(1);
  const at::Tensor entropy =
      -at::where(rows.real, log_p.exp() * log_p, at::zeros({}, log_p.options())).sum(1);
  const at::Tensor first =
      rows.scores.gather(1, layer.start().slice(0, begin, end).unsqueeze(1)).squeeze(1);
  const at::Tensor heaviest = rows.scores.amax(1);
  return at::stack({ratio, entropy, at::exp(first - rows.total), at::exp(heaviest - rows.total)});
}

std::vector<double> to_vector(const at::Tensor& values) {
  const at::Tensor host = values.to(at::kCPU, at::kDouble).contiguous();
  const double* data = host.const_data_ptr<double>();
  return {data, data + host.numel()};
}

void require_finite(const at::Tensor& values, const std::string& what) {
  if (at::isfinite(values).all().item<bool>()) return;
  throw NonFiniteError(what + ": not finite; the activations overflow, use an earlier checkpoint");
}

/// Sums over tokens and windows for HiddenStatistics.
struct HiddenSums {
  at::Tensor norm;    ///< [T]
  at::Tensor square;  ///< [C]
  at::Tensor share;   ///< 0-dim
  HiddenStatistics result;

  /// x [T,C]
  void add(const at::Tensor& x) {
    const at::Tensor squares = x.to(at::kDouble).square();
    const at::Tensor energy = squares.sum(1), norms = energy.sqrt();
    const at::Tensor shares =
        squares.amax(1) / energy.clamp_min(std::numeric_limits<double>::min());
    const auto [largest, position] = norms.max(0);
    norm = norm.defined() ? norm + norms : norms;
    square = square.defined() ? square + squares.sum(0) : squares.sum(0);
    share = share.defined() ? share + shares.sum() : shares.sum();
    if (largest.item<double>() > result.norm_max) {
      result.norm_max = largest.item<double>();
      result.norm_max_position = position.item<int64_t>();
    }
    result.channel_share_max = std::max(result.channel_share_max, shares.max().item<double>());
  }

  HiddenStatistics mean(int64_t windows) const {
    HiddenStatistics mean = result;
    mean.norm = to_vector(norm / windows);
    mean.channel_share = (share / (windows * norm.size(0))).item<double>();
    mean.top_channel = square.argmax().item<int64_t>();
    const double all = square.sum().item<double>();
    if (all > 0) mean.top_channel_share = square.max().item<double>() / all;
    return mean;
  }
};

/// Adds up the statistics of every window that the model reads.
class Collector final : public nn::ForwardObserver {
 public:
  Collector(const ModelConfig& config, std::function<void()> layer_done)
      : config_(config),
        layer_done_(std::move(layer_done)),
        layers_(config.layers),
        hidden_(config.layers + 2) {}

  void attention(int64_t layer, const at::Tensor& packed,
                 const ops::AttentionOptions& options) override {
    const LayerAttention attention(config_, packed, options);
    const int64_t length = attention.length(), heads = attention.heads();
    Layer& sums = layers_[layer];
    if (!sums.sum.defined()) {
      sums.sum = at::zeros({heads, 4, length}, packed.options().dtype(at::kDouble));
      if (options.pseudo) describe(attention, *options.pseudo, sums);
    }
    for (int64_t head = 0; head < heads; ++head) {
      check_stop(kDoing);
      for (int64_t begin = 0; begin < length; begin += kBlockRows) {
        const int64_t end = std::min(begin + kBlockRows, length);
        sums.sum[head].slice(1, begin, end).add_(row_statistics(attention, head, begin, end));
      }
    }
    layer_done_();
  }

  void hidden(int64_t point, const at::Tensor& x) override { hidden_[point].add(x[0]); }

  Inspection means(int64_t windows) const {
    Inspection result;
    result.windows = windows;
    for (size_t point = 0; point < hidden_.size(); ++point) {
      require_finite(hidden_[point].norm, format("hidden states after %zu of %zu blocks",
                                                 std::min(point, layers_.size()), layers_.size()));
      result.hidden.push_back(hidden_[point].mean(windows));
    }
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      require_finite(layers_[layer].sum, format("attention of layer %zu", layer));
      result.heads.push_back(head_means(layers_[layer], windows));
    }
    return result;
  }

 private:
  struct Layer {
    at::Tensor sum;                    ///< fp64 [H,4,T], row_statistics over the windows
    at::Tensor gamma, p_base;          ///< [H], undefined without StableMask
    std::vector<at::Tensor> log_mass;  ///< [H] of [T]
  };

  static void describe(const LayerAttention& attention, const ops::PseudoScores& pseudo,
                       Layer& layer) {
    layer.gamma = pseudo.gamma;
    layer.p_base = pseudo.p_base;
    for (int64_t head = 0; head < attention.heads(); ++head) {
      layer.log_mass.push_back(attention.log_mass(head));
    }
  }

  static std::vector<HeadStatistics> head_means(const Layer& layer, int64_t windows) {
    std::vector<HeadStatistics> all(layer.sum.size(0));
    for (size_t h = 0; h < all.size(); ++h) {
      const auto head = static_cast<int64_t>(h);
      const at::Tensor mean = layer.sum[head] / windows;
      all[h].mask_ratio = to_vector(mean[0]);
      all[h].entropy = to_vector(mean[1]);
      all[h].first_token = to_vector(mean[2]);
      all[h].heaviest_token = to_vector(mean[3]);
      if (!layer.gamma.defined()) continue;
      all[h].gamma = layer.gamma[head].item<double>();
      all[h].p_base = layer.p_base[head].item<double>();
      all[h].log_mass = to_vector(layer.log_mass[h]);
    }
    return all;
  }

  ModelConfig config_;
  std::function<void()> layer_done_;
  std::vector<Layer> layers_;
  std::vector<HiddenSums> hidden_;
};

/// Sends the weights of every head of one sequence to a function.
class MapSender final : public nn::ForwardObserver {
 public:
  MapSender(const ModelConfig& config, const std::function<void(const AttentionMap&)>& receive)
      : config_(config), receive_(receive) {}

  void attention(int64_t layer, const at::Tensor& packed,
                 const ops::AttentionOptions& options) override {
    const LayerAttention attention(config_, packed, options);
    for (int64_t head = 0; head < attention.heads(); ++head) {
      check_stop(kDoing);
      const LayerAttention::Rows rows = attention.rows(head, 0, attention.length());
      const at::Tensor total = rows.total.unsqueeze(1);
      const at::Tensor slots = at::exp(attention.slot_scores(head) - total);
      const at::Tensor ratio = ops::mask_ratio(rows.lse, attention.log_mass(head));
      const at::Tensor weights = at::exp(rows.scores - total) + slots;
      require_finite(weights, format("attention of layer %lld", static_cast<long long>(layer)));
      receive_({layer, head, weights.to(at::kCPU, at::kFloat),
                (ratio - slots.sum(1)).clamp_min(0).to(at::kCPU, at::kFloat)});
    }
  }

  void hidden(int64_t, const at::Tensor&) override {}

 private:
  ModelConfig config_;
  const std::function<void(const AttentionMap&)>& receive_;
};

void observe(nn::Transformer& model, const Batch& batch, nn::ForwardObserver& observer) {
  at::NoGradGuard no_grad;
  model->eval();
  const DeviceBatch inputs(batch, model->head_weight().device());
  nn::ForwardArgs args;
  args.document_start = inputs.document_start;
  args.observer = &observer;
  ops::with_memory_hint(kMemoryHint, [&] { return model->hidden(inputs.tokens, args); });
}

}  // namespace

Inspection inspect(nn::Transformer& model, const Shard& shard, const InspectOptions& options) {
  EvalOptions text;
  text.window = options.window;
  text.eos_id = options.eos_id;
  text.document_mask = options.document_mask;
  const ModelConfig& config = model->config();
  const WindowPlan plan = window_plan(shard, text, config.vocab_size);
  if (options.windows < 1) throw ConfigError("windows to inspect: must be at least 1");
  if (plan.full() == 0) {
    throw DataError(
        format("%s: %lld tokens, fewer than one window of %lld; use a longer text or a "
               "smaller window (--window)",
               shard.path().c_str(), static_cast<long long>(plan.tokens),
               static_cast<long long>(plan.length)));
  }
  const int64_t windows = std::min(options.windows, plan.full());
  int64_t layers_done = 0;
  const auto layer_done = [&] {
    ++layers_done;
    if (!options.progress) return;
    options.progress(layers_done * plan.length / config.layers, windows * plan.length);
  };
  Collector collector(config, layer_done);
  for (int64_t n = 0; n < windows; ++n) {
    const int64_t k = n * plan.full() / windows;
    observe(model, gather_windows(shard, plan, text, k, 1, config.vocab_size), collector);
  }
  Inspection result = collector.means(windows);
  result.window = plan.length;
  return result;
}

std::vector<int64_t> first_inputs(const Shard& shard, int32_t eos_id, int64_t count) {
  std::vector<int64_t> inputs = {eos_id};
  if (count > 1) {
    inputs.resize(std::min(count, shard.size() + 1));
    shard.read(0, static_cast<int64_t>(inputs.size()) - 1, inputs.data() + 1);
  }
  return inputs;
}

void attention_maps(nn::Transformer& model, const std::vector<int64_t>& tokens,
                    const std::function<void(const AttentionMap&)>& receive) {
  const int64_t vocabulary = model->config().vocab_size;
  if (tokens.empty()) throw ConfigError("attention maps: the text needs at least one token");
  for (const int64_t id : tokens) {
    if (id >= 0 && id < vocabulary) continue;
    throw ConfigError(format("attention maps: id %lld is outside the vocabulary of %lld",
                             static_cast<long long>(id), static_cast<long long>(vocabulary)));
  }
  Batch batch;
  batch.rows = 1;
  batch.columns = static_cast<int64_t>(tokens.size());
  batch.tokens = tokens;
  batch.targets = tokens;
  MapSender sender(model->config(), receive);
  observe(model, batch, sender);
}

}  // namespace stablemask
