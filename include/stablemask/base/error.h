#pragma once

#include <stdexcept>
#include <string>

namespace stablemask {

/// Exit codes of the `stablemask` binary; a run ended by signal s exits with 128 + s.
enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,     ///< a bug of ours, or an unexpected system failure
  kConfig = 2,       ///< command line or config
  kData = 3,         ///< text, tokenizer model or token shard
  kCheckpoint = 4,   ///< checkpoint missing, damaged, incompatible, or not writable
  kNonFinite = 5,    ///< loss or gradient norm not finite and the policy says stop
  kPeerLost = 6,     ///< another process of the run is lost or timed out
  kOutOfMemory = 7,  ///< the batch does not fit into the device's memory
};

/// What a user did or has that we cannot go on with. `what()` is one line that names what is wrong,
/// where, and what to do. Caught once, in main.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

struct ConfigError : Error {
  explicit ConfigError(const std::string& message) : Error(ExitCode::kConfig, message) {}
};
struct DataError : Error {
  explicit DataError(const std::string& message) : Error(ExitCode::kData, message) {}
};
struct CheckpointError : Error {
  explicit CheckpointError(const std::string& message) : Error(ExitCode::kCheckpoint, message) {}
};
struct NonFiniteError : Error {
  explicit NonFiniteError(const std::string& message) : Error(ExitCode::kNonFinite, message) {}
};
struct OutOfMemoryError : Error {
  explicit OutOfMemoryError(const std::string& message) : Error(ExitCode::kOutOfMemory, message) {}
};

}  // namespace stablemask
