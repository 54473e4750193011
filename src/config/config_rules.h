#pragma once

#include <string>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask {

/// Replaces what stands for "as another field": micro batch, mask length, evaluation window.
void resolve(Config& config);

/// Fields that are fine each for itself but not together.
struct Contradiction {
  std::vector<std::string> pointers;  ///< of all fields involved, the one to blame first
  std::string message;
  /// Holds only where this field is stated; "": always. Finetuning learns the model's sizes from a
  /// checkpoint, after its config was read.
  std::string if_stated = {};
};

/// Every contradiction of a resolved config.
std::vector<Contradiction> find_contradictions(const Config& config);

}  // namespace stablemask
