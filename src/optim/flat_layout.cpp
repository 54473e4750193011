#include "stablemask/optim/flat_layout.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <algorithm>

namespace stablemask {
namespace {

/// Parameters and parts begin at a multiple of this many elements, so that kernels may use vector
/// loads.
constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t elements, int64_t alignment) {
  return (elements + alignment - 1) / alignment * alignment;
}

Bucket::Kind bucket_kind(const nn::Parameter& parameter) {
  if (!parameter.decays()) return Bucket::Kind::kVectors;
  if (!parameter.multiplies) return Bucket::Kind::kEmbedding;
  return parameter.block < 0 ? Bucket::Kind::kHead : Bucket::Kind::kBlock;
}

}  // namespace

Share share_of(const dist::Group& group, ShardKind shard) {
  if (shard == ShardKind::kNone) return {};
  return {group.rank(), group.size()};
}

int64_t FlatLayout::Entry::numel() const { return c10::multiply_integers(shape); }

FlatLayout::FlatLayout(const ModelConfig& config, int64_t freeze_layers, Kind kind, Share share)
    : share_(share) {
  TORCH_CHECK(share.parts >= 1 && share.part >= 0 && share.part < share.parts,
              "FlatLayout: no part ", share.part, " of ", share.parts);
  using enum Bucket::Kind;
  const std::vector<nn::Parameter> parameters = nn::parameters(config);
  for (const Bucket::Kind wanted : {kHead, kBlock, kEmbedding, kVectors}) {
    for (const nn::Parameter& parameter : parameters) {
      const bool frozen = parameter.is_frozen(freeze_layers);
      if (bucket_kind(parameter) != wanted || frozen != (kind == Kind::kFrozen)) continue;
      add(wanted, parameter);
    }
    end_bucket();
    if (wanted == kHead) blocks_.begin = size_;
    if (wanted == kBlock) blocks_.end = overwritten_end_ = size_;
    if (wanted == kEmbedding) decay_end_ = size_;
  }
  if (share_.parts == 1) {
    own_ranges_ = {{0, size_}};
  } else {
    for (const Bucket& bucket : buckets_) own_ranges_.push_back(own(bucket));
  }
}

void FlatLayout::add(Bucket::Kind kind, const nn::Parameter& parameter) {
  const int64_t block = kind == Bucket::Kind::kBlock ? parameter.block : -1;
  if (buckets_.empty() || buckets_.back().kind != kind || buckets_.back().block != block) {
    end_bucket();
    const Bucket* const last = buckets_.empty() ? nullptr : &buckets_.back();
    const int64_t first = last ? last->first + used_ : 0;
    buckets_.push_back({kind, block, {size_, size_}, first});
    used_ = 0;
  }
  entries_.push_back({parameter.name, parameter.shape, size_, parameter.matrix_rows()});
  const int64_t place = aligned(entries_.back().numel(), kAlignment);
  size_ += place;
  used_ += place;
}

void FlatLayout::end_bucket() {
  if (buckets_.empty()) return;
  FlatRange& range = buckets_.back().range;
  size_ = range.begin + aligned(size_ - range.begin, kAlignment * share_.parts);
  range.end = size_;
}

FlatRange FlatLayout::own(const Bucket& bucket) const {
  const int64_t size = bucket.range.size() / share_.parts;
  const int64_t begin = bucket.range.begin + share_.part * size;
  return {begin, begin + size};
}

int64_t FlatLayout::local_size(Cover cover) const {
  const int64_t blocks = blocks_.size();
  const int64_t size = cover == Cover::kAll      ? size_
                       : cover == Cover::kBlocks ? blocks
                                                 : size_ - blocks;
  return size / share_.parts;
}

bool FlatLayout::covers(Cover cover, FlatRange range) const {
  const FlatRange common{std::max(range.begin, blocks_.begin), std::min(range.end, blocks_.end)};
  const int64_t in_blocks = std::max<int64_t>(common.size(), 0);
  return cover == Cover::kAll || in_blocks == (cover == Cover::kBlocks ? range.size() : 0);
}

FlatRange FlatLayout::local(FlatRange range, Cover cover) const {
  // Elements of the whole local buffer in front of it that `cover` leaves out. Every bucket is cut
  // into equal parts, so a border of buckets at n is at n / parts there.
  int64_t left_out = 0;
  if (cover == Cover::kBlocks) left_out = blocks_.begin / share_.parts;
  if (cover == Cover::kRest && range.begin >= blocks_.end) {
    left_out = blocks_.size() / share_.parts;
  }
  int64_t before = 0;
  for (const FlatRange& own : own_ranges_) {
    if (covers(cover, range) && own.begin <= range.begin && range.end <= own.end) {
      const int64_t begin = before + range.begin - own.begin - left_out;
      return {begin, begin + range.size()};
    }
    before += own.size();
  }
  TORCH_CHECK(false, "FlatLayout: [", range.begin, ", ", range.end,
              ") is not inside one part of this process");
}

int64_t FlatLayout::number_of(int64_t offset) const {
  for (const Bucket& bucket : buckets_) {
    if (offset < bucket.range.end) return bucket.first + offset - bucket.range.begin;
  }
  TORCH_CHECK(false, "FlatLayout: no element ", offset, " of ", size_);
}

const FlatLayout::Entry* FlatLayout::find(const std::string& name) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

std::map<std::string, at::Tensor> FlatLayout::views(const at::Tensor& values, FlatRange range,
                                                    const std::string& prefix, Cover cover) const {
  std::map<std::string, at::Tensor> tensors;
  for (const Entry& entry : entries_) {
    if (entry.offset < range.begin || entry.offset >= range.end) continue;
    if (!covers(cover, {entry.offset, entry.offset + entry.numel()})) continue;
    tensors[prefix + entry.name] =
        values.narrow(0, entry.offset - range.begin, entry.numel()).view(entry.shape);
  }
  return tensors;
}

int64_t FlatLayout::numel() const {
  int64_t count = 0;
  for (const Entry& entry : entries_) count += entry.numel();
  return count;
}

}  // namespace stablemask
