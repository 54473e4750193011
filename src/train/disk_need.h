#pragma once

#include <cstdint>
#include <string>

#include "stablemask/config/config.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// Space on disk that a run of `config`, going on from `step`, will need in train.out beside what
/// is there: checkpoints by train.keep_last, keep_every and keep_best with the one being written,
/// logs, and the copies of the logs that a resume makes. Checkpoints that retention removes and
/// temporary folders of killed processes count as free.
///
/// A run that saves by time (train.save_minutes) is expected to save often enough to reach
/// keep_last, unless its steps or train.time_limit_s are too few; that such a save falls on a
/// multiple of keep_every is not expected.
class DiskNeed {
 public:
  DiskNeed(const Config& config, const Tokenizer& tokenizer, int64_t step);

  int64_t checkpoints() const { return checkpoints_; }           ///< new ones at a time, at most
  double checkpoint_bytes() const { return checkpoint_bytes_; }  ///< of one
  double bytes() const { return bytes_; }                        ///< in all
  /// Figures and what to do when that much is not free; "" when it is, or when nobody knows.
  std::string problem() const;

 private:
  std::string out_;
  int64_t checkpoints_ = 0;
  double checkpoint_bytes_ = 0, log_bytes_ = 0, bytes_ = 0;
};

}  // namespace stablemask
