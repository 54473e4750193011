#include "stablemask/nn/kv_cache.h"

#include <ATen/ATen.h>

namespace stablemask::nn {

KvCache::KvCache(const ModelConfig& config, int64_t batch, int64_t capacity,
                 at::TensorOptions options)
    : capacity_(capacity) {
  const std::vector<int64_t> shape = {batch, capacity, config.resolved_kv_heads(),
                                      config.resolved_head_dim()};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    keys_.push_back(at::empty(shape, options));
    values_.push_back(at::empty(shape, options));
  }
}

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  const int64_t end = length_ + k.size(1);
  TORCH_CHECK(end <= capacity_, "KV cache: capacity is ", capacity_, " tokens, need ", end);
  keys_.at(layer).narrow(1, length_, k.size(1)).copy_(k);
  values_.at(layer).narrow(1, length_, v.size(1)).copy_(v);
  return {keys_[layer].narrow(1, 0, end), values_[layer].narrow(1, 0, end)};
}

void KvCache::truncate(int64_t length) {
  TORCH_CHECK(length >= 0 && length <= length_, "KV cache: cannot truncate ", length_,
              " tokens to ", length);
  length_ = length;
}

}  // namespace stablemask::nn
