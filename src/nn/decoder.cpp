#include "stablemask/nn/decoder.h"

#include <ATen/ATen.h>

#include <bit>
#include <utility>

#include "stablemask/ops/overlap.h"

namespace stablemask::nn {
namespace {

int64_t padded_length(int64_t tokens) {
  int64_t step = 8;
  while (16 * step <= tokens) step *= 2;
  return (tokens + step - 1) / step * step;
}

}  // namespace

// The decoding pass through the model of model.cpp: B sequences, one token each. Legend as there.

ops::DecodeOptions AttentionImpl::decode_options() const {
  ops::DecodeOptions options;
  if (stable_mask) options.pseudo = stable_mask->scores();
  options.alibi_slopes = slopes_;
  options.window = config_.window;
  if (config_.position == Position::kRope) options.rope_dims = config_.resolved_rope_dims();
  return options;
}

at::Tensor NormImpl::then(const Linear& linear, const at::Tensor& x, ops::Kernels kernels) const {
  return kind_ == NormKind::kRms ? linear.normed(x, weight_, eps_, kernels)
                                 : linear.forward(forward(x, kernels), kernels);
}

at::Tensor NormImpl::then_swiglu(const Linear& up, const Linear& down, const at::Tensor& x,
                                 ops::Kernels kernels) const {
  return kind_ == NormKind::kRms ? Linear::normed_swiglu(up, down, x, weight_, eps_, kernels)
                                 : Linear::swiglu(up, down, forward(x, kernels), x, kernels);
}

at::Tensor AttentionImpl::decode(const at::Tensor& x, const Norm& norm, const DecodeArgs& args) {
  const int64_t batch = x.size(0), heads = config_.heads;
  at::Tensor packed =
      norm->then(qkv_, x, args.kernels)
          .view({batch, heads + 2 * config_.resolved_kv_heads(), config_.resolved_head_dim()});
  if (config_.qk_norm) packed = normalised(packed.unsqueeze(1), args.kernels).squeeze(1);
  const at::Tensor out = ops::decode_attention(packed, heads, args.cache->layer(layer_), args.rows,
                                               args.positions, args.layers.at(layer_));
  return proj_.add_to(x, out.view({batch, -1}), args.kernels);
}

at::Tensor FeedForwardImpl::decode(const at::Tensor& x, const Norm& norm, ops::Kernels kernels) {
  return kind_ == FfnKind::kSwiglu ? norm->then_swiglu(up_, down_, x, kernels)
                                   : forward(norm->forward(x, kernels), x, kernels);
}

at::Tensor BlockImpl::decode(const at::Tensor& in, const DecodeArgs& args) {
  const at::Tensor x = attention_->decode(in, attention_norm_, args);
  if (parallel_) return ffn_->forward(ffn_norm_->forward(in, args.kernels), x, args.kernels);
  return ffn_->decode(x, ffn_norm_, args.kernels);
}

std::vector<ops::DecodeOptions> TransformerImpl::decode_options(int64_t capacity) {
  std::vector<ops::DecodeOptions> layers;
  for (const auto& module : *blocks_) {
    layers.push_back(std::dynamic_pointer_cast<BlockImpl>(module)->attention()->decode_options());
    if (layers.back().rope_dims > 0) {
      layers.back().rope_table = rope_tables_.from_start(capacity, head_weight().device());
    }
  }
  return layers;
}

at::Tensor TransformerImpl::decode(const at::Tensor& ids, const DecodeArgs& args) {
  require_weights();
  at::Tensor x = embedding_.forward(ids, args.positions, args.kernels);
  for (const auto& module : *blocks_) {
    x = std::dynamic_pointer_cast<BlockImpl>(module)->decode(x, args);
  }
  return norm_->then(head_, x, args.kernels);
}

Decoder::Decoder(Transformer model, int64_t rows, int64_t capacity)
    : model_(std::move(model)),
      cache_(model_->config(), rows, capacity,
             model_->head_weight().options().requires_grad(false)) {
  const at::NoGradGuard no_grad;
  args_.cache = &cache_;
  args_.layers = model_->decode_options(capacity);
  args_.kernels = model_->kernels();
}

void Decoder::prefill(int64_t row, int64_t position, const at::Tensor& ids) {
  const at::NoGradGuard no_grad;
  ForwardArgs args;
  args.cached = {&cache_, row, position, ids.size(0)};
  at::Tensor tokens = ids;
  if (ids.is_cuda()) {
    tokens = at::constant_pad_nd(ids, {0, padded_length(ids.size(0)) - ids.size(0)});
  }
  model_->hidden(tokens.unsqueeze(0), std::move(args));
}

int64_t Decoder::tokens_to_begin(int64_t sequences, int64_t longest) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(sequences))) *
         padded_length(longest);
}

void Decoder::begin(const at::Tensor& rows, const at::Tensor& ids) {
  const at::NoGradGuard no_grad;
  const int64_t count = ids.size(1);
  ForwardArgs args;
  args.cached.cache = &cache_;
  args.cached.count = count;
  args.cached.rows = rows;
  at::Tensor tokens = ids;
  if (ids.is_cuda()) {
    // The last sequence is computed, and written, several times.
    const auto padded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(ids.size(0))));
    const at::Tensor which = at::arange(padded, rows.options()).clamp_max(ids.size(0) - 1);
    args.cached.rows = rows.index_select(0, which);
    tokens = at::constant_pad_nd(ids.index_select(0, which), {0, padded_length(count) - count});
  }
  model_->hidden(tokens, std::move(args));
}

at::Tensor Decoder::decode(const at::Tensor& ids, const at::Tensor& positions,
                           const at::Tensor& rows) {
  const at::NoGradGuard no_grad;
  const ops::OverlappedLaunches overlapped;
  args_.positions = positions;
  args_.rows = rows;
  return model_->decode(ids, args_);
}

}  // namespace stablemask::nn
