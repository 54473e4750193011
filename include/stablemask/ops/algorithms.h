#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace stablemask::ops {

/// How several processes take the same algorithm for a GEMM, which on a GPU is chosen by timing:
/// the processes' timings, and so their choices, would differ.
struct AlgorithmExchange {
  /// Returns the result of `choose`, which one process calls for all: the first that asks for
  /// `key` (dist::Group::once). Exceptions pass through the GEMM. Unset: every process chooses.
  std::function<std::string(const std::string& key, const std::function<std::string()>& choose)>
      once;
  /// Whether this process writes the choices to the cache file; all processes read it.
  bool writes_cache = true;
};

/// Sets the exchange for all GEMMs from now on; {}: this process alone. Choices that were made
/// before remain. Thread-safe. In deterministic mode no algorithm is timed, and none exchanged.
void set_algorithm_exchange(AlgorithmExchange exchange);

/// What this process has timed so far.
struct AlgorithmTrials {
  int64_t gemms = 0;
  double seconds = 0;  ///< the GEMMs' callers waited for it
};
AlgorithmTrials algorithm_trials();

}  // namespace stablemask::ops
