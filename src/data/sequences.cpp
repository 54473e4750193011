#include "src/data/sequences.h"

#include <algorithm>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/data/loader.h"

namespace stablemask {

Sequences::Sequences(std::vector<std::shared_ptr<const Shard>> shards, int64_t context,
                     bool document_mask)
    : shards_(std::move(shards)), context_(context), document_mask_(document_mask) {
  if (shards_.empty()) throw DataError("no token shards to train on");
  const Shard& first = *shards_.front();
  std::vector<const Shard*> of_samples;
  for (const auto& shard : shards_) {
    shard->require_tokenizer(first.info().tokenizer_sha256);
    if (shard->info().vocab_size != first.info().vocab_size) {
      throw DataError("shards " + first.path() + " and " + shard->path() +
                      " have different vocabularies; prepare them with one tokenizer");
    }
    if (shard->info().has_samples()) {
      of_samples.push_back(shard.get());
    } else {
      add_text(*shard);
    }
  }
  if (!texts_.empty()) text_count_ = std::max<int64_t>(0, tokens_ - 1) / context_;
  if (!of_samples.empty()) samples_ = std::make_unique<PackedSamples>(of_samples, context_);
}

SequenceCounts Sequences::counts() const {
  SequenceCounts counts;
  counts.text = text_count_;
  if (!samples_) return counts;
  counts.packed = samples_->rows();
  counts.samples = samples_->counts();
  counts.fill_rate = samples_->fill_rate();
  return counts;
}

void Sequences::add_text(const Shard& shard) {
  texts_.push_back(&shard);
  begins_.push_back(tokens_);
  // The first token of a shard begins a document even if its line is not a document line.
  document_starts_.push_back(tokens_);
  for (const int64_t start : shard.document_starts()) {
    if (start > 0) document_starts_.push_back(tokens_ + start);
  }
  tokens_ += shard.size();
}

void Sequences::require_sequences() const {
  if (!texts_.empty() && text_count_ < 1) {
    throw DataError(
        format("the shards have %lld tokens, one sequence needs %lld; use a larger "
               "corpus or a smaller context",
               static_cast<long long>(tokens_), static_cast<long long>(context_ + 1)));
  }
  if (samples_ && samples_->rows() < 1) {
    throw DataError(format(
        "none of the %lld samples has a training target in its first %lld tokens; use a "
        "larger context",
        static_cast<long long>(samples_->counts().samples), static_cast<long long>(context_ + 1)));
  }
}

void Sequences::fill(int64_t id, int64_t row, Batch& batch) const {
  if (id >= text_count_) {
    samples_->fill(id - text_count_, row, batch);
    return;
  }
  const int64_t T = context_;
  std::vector<int64_t> window(static_cast<size_t>(T + 1));
  read(id * T, T + 1, window.data());
  std::copy_n(window.begin(), T, batch.tokens.begin() + row * T);
  std::copy_n(window.begin() + 1, T, batch.targets.begin() + row * T);
  if (document_mask_) {
    read_document_columns(id * T, batch.document_start.data() + row * T);
  } else if (samples_) {
    std::fill_n(batch.document_start.begin() + row * T, T, 0);
  }
  batch.valid_targets += T;
}

void Sequences::read(int64_t begin, int64_t count, int64_t* out) const {
  auto shard = static_cast<size_t>(std::upper_bound(begins_.begin(), begins_.end(), begin) -
                                   begins_.begin() - 1);
  while (count > 0) {
    const int64_t offset = begin - begins_[shard];
    const int64_t here = std::min(count, texts_[shard]->size() - offset);
    texts_[shard]->read(offset, here, out);
    begin += here;
    count -= here;
    out += here;
    ++shard;
  }
}

/// For each token of [begin, begin + T): the index in that range of the first token of its
/// document, 0 when the document began before the range.
void Sequences::read_document_columns(int64_t begin, int64_t* out) const {
  auto next = std::upper_bound(document_starts_.begin(), document_starts_.end(), begin);
  int64_t start = 0;
  for (int64_t column = 0; column < context_; ++column) {
    if (next != document_starts_.end() && *next == begin + column) {
      start = column;
      ++next;
    }
    out[column] = start;
  }
}

}  // namespace stablemask
