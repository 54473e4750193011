#include "stablemask/nn/decoder.h"

#include <ATen/ATen.h>

#include <utility>

#include "stablemask/ops/functional.h"

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

at::Tensor AttentionImpl::decode(const at::Tensor& x, const at::Tensor& residual,
                                 const DecodeArgs& args) {
  const int64_t batch = x.size(0), heads = config_.heads;
  at::Tensor packed =
      qkv_.forward(x, args.kernels)
          .view({batch, heads + 2 * config_.resolved_kv_heads(), config_.resolved_head_dim()});
  if (config_.qk_norm) packed = normalised(packed.unsqueeze(1), args.kernels).squeeze(1);
  const at::Tensor out = ops::decode_attention(packed, heads, args.cache->layer(layer_), args.rows,
                                               args.positions, args.layers.at(layer_));
  return proj_.add_to(residual, out.view({batch, -1}), args.kernels);
}

at::Tensor BlockImpl::decode(const at::Tensor& in, const DecodeArgs& args) {
  auto [x, normal] = attention_norm_->branch(in, args.kernels);
  x = attention_->decode(normal, x, args);
  std::tie(x, normal) = ffn_norm_->branch(x, args.kernels);
  return ffn_->forward(normal, x, args.kernels);
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
  at::Tensor x = embedding_.lookup(ids, args.kernels);
  for (const auto& module : *blocks_) {
    x = std::dynamic_pointer_cast<BlockImpl>(module)->decode(x, args);
  }
  return head_.forward(norm_->forward(x, args.kernels), args.kernels);
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

at::Tensor Decoder::decode(const at::Tensor& ids, const at::Tensor& positions,
                           const at::Tensor& rows) {
  const at::NoGradGuard no_grad;
  args_.positions = positions;
  args_.rows = rows;
  return model_->decode(ids, args_);
}

}  // namespace stablemask::nn
