#include "stablemask/nn/kv_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace stablemask::nn {
namespace {

/// Slots beyond the window: the window moves to the front once per that many tokens, which costs
/// two or three copied tokens per new one.
int64_t spare_slots(int64_t window) { return std::max<int64_t>(64, window / 2); }

}  // namespace

KvCache::KvCache(const ModelConfig& config, int64_t batch, int64_t capacity,
                 at::TensorOptions options)
    : slots_(capacity) {
  const int64_t bounded = config.window + spare_slots(config.window);
  if (config.window > 0 && bounded < capacity) {
    window_ = config.window;
    slots_ = bounded;
  }
  const std::vector<int64_t> shape = {batch, slots_, config.resolved_kv_heads(),
                                      config.resolved_head_dim()};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    keys_.push_back(at::empty(shape, options));
    values_.push_back(at::empty(shape, options));
  }
}

int64_t KvCache::visible(int64_t length) const {
  return window_ > 0 ? std::min(length, window_ - 1) : length;
}

int64_t KvCache::longest_append() const { return slots_ - visible(length_); }

int64_t KvCache::first_position(int64_t tokens) const {
  const bool fits = length_ - first_ + tokens <= slots_;
  return fits ? first_ : length_ - visible(length_);
}

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  const int64_t tokens = k.size(1), first = first_position(tokens);
  TORCH_CHECK(tokens <= longest_append(), "KV cache: room for ", longest_append(),
              " more tokens, got ", tokens);
  const int64_t dropped = first - first_, kept = length_ - first;
  const auto write = [&](at::Tensor& buffer, const at::Tensor& values) {
    if (dropped > 0 && kept > 0) {
      buffer.narrow(1, 0, kept).copy_(buffer.narrow(1, dropped, kept).clone());
    }
    buffer.narrow(1, kept, tokens).copy_(values);
    return buffer.narrow(1, 0, kept + tokens);
  };
  return {write(keys_.at(layer), k), write(values_.at(layer), v)};
}

void KvCache::advance(int64_t tokens) {
  first_ = first_position(tokens);
  length_ += tokens;
}

void KvCache::truncate(int64_t length) {
  TORCH_CHECK(length >= 0 && length <= length_, "KV cache: cannot truncate ", length_,
              " tokens to ", length);
  TORCH_CHECK(first_ <= length - visible(length), "KV cache: cannot truncate to ", length,
              " tokens: those that its next row sees have been dropped");
  length_ = length;
}

}  // namespace stablemask::nn
