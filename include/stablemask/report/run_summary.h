#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stablemask {

/// Final figures of one run, from its metrics.jsonl. The run may be in progress.
struct RunSummary {
  int64_t lines = 0;    ///< lines that were read
  int64_t damaged = 0;  ///< complete lines that are no metrics; left out
  int64_t step = 0;     ///< of the last line, as the next three
  int64_t tokens = 0;
  int64_t skipped = 0;
  double seconds = 0;
  std::optional<double> loss;                 ///< last finite loss_mean, else loss
  std::optional<double> best_valid_loss;      ///< lowest validation loss, nats per token
  std::optional<double> best_valid_word_ppl;  ///< of the same validation
  int64_t best_valid_step = 0;                ///< of the same validation; 0: none
  std::optional<double> tokens_per_second;    ///< median over the lines
};

/// Paths of the runs at and below `folder` (folders with a metrics.jsonl), sorted. Symbolic links
/// and folders that cannot be read are not followed. Throws DataError when `folder` is no folder.
std::vector<std::string> find_runs(const std::string& folder);

/// Reads RUN/metrics.jsonl without a lock; a last line without its end is left out. Throws
/// DataError when the file cannot be read or has no line with metrics yet.
RunSummary summarize_run(const std::string& run);

}  // namespace stablemask
