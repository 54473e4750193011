#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// Line encoders that know the words of the chunks before, one for each chunk under way.
class LineEncoders {
 public:
  explicit LineEncoders(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  std::unique_ptr<LineEncoder> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<LineEncoder>(tokenizer_);
    std::unique_ptr<LineEncoder> taken = std::move(idle_.back());
    idle_.pop_back();
    return taken;
  }
  void give_back(std::unique_ptr<LineEncoder> encoder) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(encoder));
  }

 private:
  const Tokenizer& tokenizer_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<LineEncoder>> idle_;
};

}  // namespace stablemask
