#include "src/infer/windows.h"

#include <algorithm>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {
namespace {

/// Writes to out[c] the column at which the document of input column c starts. The input that
/// precedes a document's first token belongs to the document before, also when it is the EOS at the
/// start of a window.
void fill_document_start(const std::vector<int64_t>& starts, int64_t begin, int64_t length,
                         int64_t* out) {
  // Input column c is token begin + c − 1; documents that start in (begin − 1, …] start a column.
  auto next = std::lower_bound(starts.begin(), starts.end(), begin);
  int64_t column = 0;
  for (int64_t c = 0; c < length; ++c) {
    while (next != starts.end() && *next <= begin + c - 1) {
      column = *next - begin + 1;
      ++next;
    }
    out[c] = column;
  }
}

/// Window k as one row of inputs and targets, [plan.end(k) − plan.begin(k)] each.
void fill_row(const Shard& shard, const WindowPlan& plan, int32_t eos_id, int64_t k,
              int64_t* tokens, int64_t* targets) {
  const int64_t begin = plan.begin(k), columns = plan.end(k) - begin;
  const bool starts_with_eos = begin == 0 || !plan.overlaps();
  if (starts_with_eos) {
    shard.read(begin, columns, targets);
    tokens[0] = eos_id;
  } else {
    std::vector<int64_t> ids(columns + 1);
    shard.read(begin - 1, columns + 1, ids.data());
    tokens[0] = ids[0];
    std::copy(ids.begin() + 1, ids.end(), targets);
  }
  std::copy(targets, targets + columns - 1, tokens + 1);
}

void check_ids(const Shard& shard, const std::vector<int64_t>& ids, int64_t vocabulary) {
  const auto [least, most] = std::minmax_element(ids.begin(), ids.end());
  if (*least >= 0 && *most < vocabulary) return;
  throw DataError(
      format("%s: token id %lld is outside the model's vocabulary of %lld; the shard "
             "is damaged, prepare it again",
             shard.path().c_str(), static_cast<long long>(*least < 0 ? *least : *most),
             static_cast<long long>(vocabulary)));
}

}  // namespace

Batch gather_windows(const Shard& shard, const WindowPlan& plan, const EvalOptions& options,
                     int64_t k, int64_t rows, int64_t vocabulary) {
  Batch batch;
  batch.rows = rows;
  batch.columns = plan.end(k) - plan.begin(k);
  batch.tokens.resize(rows * batch.columns);
  batch.targets.resize(rows * batch.columns);
  if (options.document_mask) batch.document_start.resize(rows * batch.columns);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t first = row * batch.columns;
    fill_row(shard, plan, options.eos_id, k + row, &batch.tokens[first], &batch.targets[first]);
    if (options.document_mask) {
      fill_document_start(shard.document_starts(), plan.begin(k + row), batch.columns,
                          &batch.document_start[first]);
    }
  }
  check_ids(shard, batch.tokens, vocabulary);
  check_ids(shard, batch.targets, vocabulary);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t scored_before = plan.first_scored(k + row) - plan.begin(k + row);
    std::fill_n(&batch.targets[row * batch.columns], scored_before, kIgnoreTarget);
  }
  return batch;
}

int64_t windows_of_pass(const EvalOptions& options, int64_t count, bool on_cpu) {
  if (options.batch > 0) return std::min(options.batch, count);
  const int64_t tokens_per_forward = on_cpu ? 4096 : 32768;
  return std::clamp<int64_t>(tokens_per_forward / options.window, 1, count);
}

WindowPlan window_plan(const Shard& shard, const EvalOptions& options, int64_t vocabulary) {
  const int64_t stride = options.stride == 0 ? options.window : options.stride;
  if (options.window < 1) {
    throw ConfigError(format("evaluation window %lld: must be at least 1",
                             static_cast<long long>(options.window)));
  }
  if (stride < 1 || stride > options.window) {
    throw ConfigError(
        format("evaluation stride %lld: must be from 1 to the window, %lld; a larger stride would "
               "leave tokens unscored",
               static_cast<long long>(stride), static_cast<long long>(options.window)));
  }
  if (options.batch < 0) throw ConfigError("evaluation batch: must not be negative");
  if (shard.size() == 0) throw DataError(shard.path() + ": no tokens to evaluate on");
  if (static_cast<int64_t>(shard.info().vocab_size) > vocabulary) {
    throw DataError(
        format("%s: made for %lld token ids, but the model has %lld; use the shard made "
               "with the model's tokenizer",
               shard.path().c_str(), static_cast<long long>(shard.info().vocab_size),
               static_cast<long long>(vocabulary)));
  }
  if (options.eos_id < 0 || options.eos_id >= vocabulary) {
    throw ConfigError(format("evaluation: EOS id %d is not one of the model's %lld token ids",
                             options.eos_id, static_cast<long long>(vocabulary)));
  }
  const int64_t tokens = options.tokens > 0 ? std::min(options.tokens, shard.size()) : shard.size();
  return {tokens, options.window, stride};
}

}  // namespace stablemask
