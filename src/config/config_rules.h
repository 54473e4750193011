#pragma once

#include <string>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask {

/// Fields whose values are valid each for itself but not together.
struct Contradiction {
  std::vector<std::string> pointers;  ///< of all fields involved, the one to change first
  std::string message;
  /// Applies only when this field is stated; "": always. Finetuning takes the model's sizes from a
  /// checkpoint after its config has been read.
  std::string if_stated = {};
};

/// Every contradiction of a config before resolve(), so that only stated values are blamed.
std::vector<Contradiction> find_contradictions(const Config& config);

}  // namespace stablemask
