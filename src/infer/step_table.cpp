#include "src/infer/step_table.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>

namespace stablemask::infer {

StepTable::StepTable(int64_t slots, at::Device device) {
  const auto numbers = at::TensorOptions(at::kLong);
  table_ = at::zeros({kRows, slots}, numbers.device(device));
  ids_ = at::zeros({slots}, numbers.device(device));
  for (at::Tensor& host : host_) {
    host = at::zeros({kRows, slots}, numbers.pinned_memory(device.is_cuda()));
  }
}

at::Tensor StepTable::real_row(Row which, int64_t batch) const {
  return row(which, batch).view(at::kDouble);
}

bool StepTable::holds(const std::vector<SequencePtr>& sequences, int64_t batch) const {
  return batch == batch_ && sequences == sequences_;
}

void StepTable::fill(at::Tensor& host, const std::vector<SequencePtr>& sequences) const {
  auto table = host.accessor<int64_t, 2>();
  const auto count = static_cast<int64_t>(sequences.size());
  std::vector<bool> used(host.size(1));
  for (int64_t slot = 0; slot < count; ++slot) {
    const Sequence& sequence = *sequences[slot];
    const GenerateConfig& settings = sequence.request.settings;
    const auto before = std::ranges::find(sequences_, sequences[slot]);
    used[sequence.row] = true;
    table[kPosition][slot] = sequence.prompt_length() - 1 + sequence.launched;
    table[kDrawn][slot] = sequence.launched;
    table[kActive][slot] = 1;
    table[kCacheRow][slot] = sequence.row;
    table[kSeed][slot] = settings.seed;
    table[kTopK][slot] = settings.top_k;
    table[kTemperature][slot] = std::bit_cast<int64_t>(settings.temperature);
    table[kTopP][slot] = std::bit_cast<int64_t>(settings.top_p);
    table[kMinP][slot] = std::bit_cast<int64_t>(settings.min_p);
    table[kPenalty][slot] = std::bit_cast<int64_t>(settings.repetition_penalty);
    table[kId][slot] = sequence.last;
    table[kSource][slot] = before == sequences_.end() ? -1 : before - sequences_.begin();
  }
  // Slots without a sequence: greedy, in rows of the cache that no slot has.
  int64_t row = 0;
  for (int64_t slot = count; slot < host.size(1); ++slot) {
    while (used[row]) ++row;
    for (int64_t which = 0; which < kRows; ++which) table[which][slot] = 0;
    table[kPosition][slot] = -1;
    table[kCacheRow][slot] = row++;
    table[kTopP][slot] = table[kPenalty][slot] = std::bit_cast<int64_t>(1.0);
    table[kSource][slot] = -1;
  }
}

void StepTable::set(const std::vector<SequencePtr>& sequences, int64_t batch) {
  at::Tensor& host = host_[turn_++ % 2];
  fill(host, sequences);
  table_.copy_(host, /*non_blocking=*/true);
  const at::Tensor source = table_[kSource];
  ids_.copy_(at::where(source >= 0, ids_.index_select(0, source.clamp_min(0)), table_[kId]));
  sequences_ = sequences;
  batch_ = batch;
}

ops::Sampling StepTable::sampling(int64_t batch) const {
  ops::Sampling sampling;
  sampling.temperature = real_row(kTemperature, batch);
  sampling.top_k = row(kTopK, batch);
  sampling.top_p = real_row(kTopP, batch);
  sampling.min_p = real_row(kMinP, batch);
  sampling.repetition_penalty = real_row(kPenalty, batch);
  sampling.seed = row(kSeed, batch);
  sampling.drawn = row(kDrawn, batch);
  sampling.rows = row(kCacheRow, batch);
  return sampling;
}

void StepTable::advance(const at::Tensor& sampled) {
  const int64_t batch = sampled.size(0);
  at::Tensor next = ids(batch);
  at::clamp_min_out(next, sampled, 0);  // −1: not finite; any id, the sequence ends
  table_.narrow(0, 0, 2).narrow(1, 0, batch).add_(row(kActive, batch));
}

}  // namespace stablemask::infer
