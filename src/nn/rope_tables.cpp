#include "stablemask/nn/rope_tables.h"

#include <algorithm>

#include "stablemask/ops/functional.h"

namespace stablemask::nn {
namespace {

/// Rows of a segment, and of the longest whole table that passes with a KV cache use.
constexpr int64_t kSegment = 8192;

int64_t next_power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace

at::Tensor RopeTables::make(int64_t first, int64_t length, at::Device device) const {
  return ops::rope_table(length, config_.resolved_rope_dims(), config_.rope_theta,
                         config_.rope_scaling, first)
      .to(device);
}

RopeTables::Rows RopeTables::from_start(int64_t length, at::Device device) {
  const bool fits =
      !whole_.empty() && whole_.back().size(0) >= length && whole_.back().device() == device;
  if (!fits) whole_.push_back(make(0, next_power_of_two(length), device));
  return {whole_.back(), 0};
}

RopeTables::Rows RopeTables::continued(int64_t first, int64_t length, at::Device device) {
  const int64_t end = first + length;
  if (end <= kSegment) return {from_start(end, device).table, first};
  const bool fits = segment_.defined() && segment_.device() == device && segment_first_ <= first &&
                    end <= segment_first_ + segment_.size(0);
  if (!fits) {
    segment_ = make(first, std::max(length, kSegment), device);
    segment_first_ = first;
  }
  return {segment_, first - segment_first_};
}

}  // namespace stablemask::nn
