#include "stablemask/nn/kv_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "stablemask/base/error.h"
#include "stablemask/nn/parameters.h"

namespace stablemask::nn {
namespace {

void require_cacheable(const ModelConfig& config) {
  if (config.stable_mask.enabled &&
      config.stable_mask.mask_length.kind == MaskLengthSpec::Kind::kSequence) {
    throw ConfigError(
        "model.stable_mask.mask_length \"sequence\" depends on the length of the input and cannot "
        "run with a KV cache; train with a fixed mask_length, or evaluate without a cache");
  }
  if (config.log_length_scale) {
    throw ConfigError(
        "model.log_length_scale depends on the length of the input and cannot run with a KV cache; "
        "train without it, or evaluate without a cache");
  }
}

/// With a window one slot more than it needs: the newest token can be computed again after its
/// successor has been cached.
int64_t slots_for(const ModelConfig& config, int64_t capacity) {
  return config.window > 0 ? std::min(capacity, config.window + 1) : capacity;
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, int64_t rows, int64_t capacity,
                 at::TensorOptions options)
    : rows_(rows),
      capacity_(capacity),
      slots_(slots_for(config, capacity)),
      window_(config.window) {
  require_cacheable(config);
  require_positions(config, capacity);
  const std::vector<int64_t> shape = {rows, slots_, config.resolved_kv_heads(),
                                      config.resolved_head_dim()};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    layers_.push_back({at::empty(shape, options), at::empty(shape, options)});
  }
}

int64_t KvCache::bytes() const {
  int64_t sum = 0;
  for (const ops::DecodeCache& layer : layers_) sum += layer.keys.nbytes() + layer.values.nbytes();
  return sum;
}

int64_t KvCache::first_visible(int64_t position) const {
  return window_ > 0 ? std::max<int64_t>(0, position - window_ + 1) : 0;
}

at::Tensor KvCache::after_cached(const at::Tensor& row, int64_t first, int64_t end,
                                 const at::Tensor& fresh) const {
  if (first == end) return fresh;
  std::vector<at::Tensor> parts;
  for (int64_t position = first; position < end;) {
    const int64_t slot = position % slots_;
    const int64_t count = std::min(end - position, slots_ - slot);
    parts.push_back(row.narrow(0, slot, count));
    position += count;
  }
  parts.push_back(fresh.squeeze(0));
  return at::cat(parts).unsqueeze(0);
}

void KvCache::write(at::Tensor row, int64_t position, const at::Tensor& values) const {
  const int64_t count = values.size(0);
  for (int64_t done = std::max<int64_t>(0, count - slots_); done < count;) {
    const int64_t slot = (position + done) % slots_;
    const int64_t part = std::min(count - done, slots_ - slot);
    row.narrow(0, slot, part).copy_(values.narrow(0, done, part));
    done += part;
  }
}

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const CachedTokens& tokens,
                                                  const at::Tensor& k, const at::Tensor& v) {
  const int64_t count = tokens.count > 0 ? tokens.count : k.size(1);
  TORCH_CHECK(k.size(0) == 1 && count <= k.size(1), "KV cache: need one sequence of at least ",
              count, " tokens, got keys ", k.sizes());
  TORCH_CHECK(tokens.row >= 0 && tokens.row < rows_ && tokens.position >= 0 &&
                  tokens.position + count <= capacity_,
              "KV cache of ", rows_, " rows of ", capacity_, " tokens: no room for ", count,
              " tokens from position ", tokens.position, " on of row ", tokens.row);
  const int64_t first = first_visible(tokens.position);
  const auto appended = [&](const at::Tensor& buffer, const at::Tensor& fresh) {
    const at::Tensor row = buffer.select(0, tokens.row);
    // Before the new tokens take slots of a ring that their own rows still see.
    at::Tensor all = after_cached(row, first, tokens.position, fresh);
    write(row, tokens.position, fresh.squeeze(0).narrow(0, 0, count));
    return all;
  };
  const ops::DecodeCache& buffers = layers_.at(layer);
  return {appended(buffers.keys, k), appended(buffers.values, v)};
}

void KvCache::begin(int64_t layer, const CachedTokens& tokens, const at::Tensor& k,
                    const at::Tensor& v) {
  const int64_t count = tokens.count > 0 ? tokens.count : k.size(1);
  TORCH_CHECK(tokens.rows.numel() == k.size(0) && count <= k.size(1) && count <= slots_,
              "KV cache of ", slots_, " slots: cannot begin ", tokens.rows.numel(),
              " sequences with ", count, " tokens of keys ", k.sizes());
  const auto write = [&](const at::Tensor& buffer, const at::Tensor& fresh) {
    buffer.narrow(1, 0, count).index_copy_(0, tokens.rows, fresh.narrow(1, 0, count));
  };
  const ops::DecodeCache& buffers = layers_.at(layer);
  write(buffers.keys, k);
  write(buffers.values, v);
}

}  // namespace stablemask::nn
