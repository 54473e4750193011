#include "stablemask/data/packed_samples.h"

#include <algorithm>
#include <set>

#include "stablemask/base/error.h"

namespace stablemask {

PackedSamples::PackedSamples(std::vector<const Shard*> shards, int64_t context)
    : shards_(std::move(shards)), context_(context) {
  constexpr int64_t kLongest = int64_t{1} << 30;
  if (context < 1 || context > kLongest) throw ConfigError("packing: context out of range");
  for (size_t shard = 0; shard < shards_.size(); ++shard) take_samples(static_cast<int32_t>(shard));
  // A sample ends with end-of-text; where another program made the ids, any id serves as well.
  if (!shards_.empty()) padding_ = shards_[0]->token(shards_[0]->size() - 1);
  pack();
}

void PackedSamples::take_samples(int32_t shard) {
  const Shard& from = *shards_[static_cast<size_t>(shard)];
  if (!from.info().has_samples()) throw DataError("shard " + from.path() + " has no samples");
  const std::vector<bool> trained = from.read_trained(0, from.size());
  const std::vector<int64_t>& starts = from.document_starts();
  counts_.samples += static_cast<int64_t>(starts.size());
  for (size_t i = 0; i < starts.size(); ++i) {
    const int64_t begin = starts[i];
    const int64_t whole = (i + 1 < starts.size() ? starts[i + 1] : from.size()) - begin;
    const int64_t kept = std::min(whole, context_ + 1);
    // The first token of a sample is no target.
    const int64_t targets =
        std::count(trained.begin() + begin + 1, trained.begin() + begin + kept, true);
    if (targets == 0) {
      ++counts_.dropped;
      continue;
    }
    counts_.truncated += kept < whole;
    counts_.inputs += kept - 1;
    counts_.targets += targets;
    samples_.push_back({begin, shard, static_cast<int32_t>(kept)});
  }
}

void PackedSamples::pack() {
  std::vector<Sample> sorted = std::move(samples_);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Sample& a, const Sample& b) { return a.tokens > b.tokens; });
  std::vector<int64_t> row_of(sorted.size());
  std::vector<std::vector<int64_t>> with_space(static_cast<size_t>(context_) + 1);  // rows
  std::set<int64_t> spaces;    // of which there are rows
  std::vector<int64_t> sizes;  // of the rows, in samples
  for (size_t i = 0; i < sorted.size(); ++i) {
    const int64_t inputs = sorted[i].tokens - 1;
    int64_t left = context_;
    int64_t row = static_cast<int64_t>(sizes.size());
    if (const auto space = spaces.lower_bound(inputs); space != spaces.end()) {
      left = *space;
      std::vector<int64_t>& rows = with_space[static_cast<size_t>(left)];
      row = rows.back();
      rows.pop_back();
      if (rows.empty()) spaces.erase(space);
    } else {
      sizes.push_back(0);
    }
    left -= inputs;
    if (left > 0) {
      with_space[static_cast<size_t>(left)].push_back(row);
      spaces.insert(left);
    }
    row_of[i] = row;
    ++sizes[static_cast<size_t>(row)];
  }
  for (const int64_t size : sizes) row_begins_.push_back(row_begins_.back() + size);
  samples_.resize(sorted.size());
  std::vector<int64_t> next(row_begins_.begin(), row_begins_.end() - 1);
  for (size_t i = 0; i < sorted.size(); ++i) {
    samples_[static_cast<size_t>(next[static_cast<size_t>(row_of[i])]++)] = sorted[i];
  }
}

double PackedSamples::fill_rate() const {
  if (rows() == 0) return 0;
  return static_cast<double>(counts_.inputs) / static_cast<double>(context_) /
         static_cast<double>(rows());
}

void PackedSamples::fill(int64_t id, int64_t row, Batch& batch) const {
  const auto at = [&](std::vector<int64_t>& values) { return values.begin() + row * context_; };
  const auto tokens = at(batch.tokens), targets = at(batch.targets),
             document_start = at(batch.document_start);
  std::fill_n(tokens, context_, padding_);
  std::fill_n(targets, context_, kIgnoreTarget);
  int64_t column = 0;
  std::vector<int64_t> ids;
  for (int64_t i = row_begins_[static_cast<size_t>(id)];
       i < row_begins_[static_cast<size_t>(id) + 1]; ++i) {
    const Sample& sample = samples_[static_cast<size_t>(i)];
    const Shard& shard = *shards_[static_cast<size_t>(sample.shard)];
    ids.resize(static_cast<size_t>(sample.tokens));
    shard.read(sample.begin, sample.tokens, ids.data());
    const std::vector<bool> trained = shard.read_trained(sample.begin, sample.tokens);
    const int64_t inputs = sample.tokens - 1;
    std::copy_n(ids.begin(), inputs, tokens + column);
    std::fill_n(document_start + column, inputs, column);
    for (int64_t k = 0; k < inputs; ++k) {
      if (!trained[static_cast<size_t>(k) + 1]) continue;
      targets[column + k] = ids[static_cast<size_t>(k) + 1];
      ++batch.valid_targets;
    }
    column += inputs;
  }
  std::fill_n(document_start + column, context_ - column, column);
}

}  // namespace stablemask
