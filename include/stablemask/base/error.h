#pragma once

#include <stdexcept>
#include <string>

namespace stablemask {

/// Exit codes of the `stablemask` binary; 128 + s after it was stopped by signal s (see Stopped).
enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,     ///< a bug of ours, or an unexpected system failure
  kConfig = 2,       ///< command line or config
  kData = 3,         ///< text, tokenizer model or token shard
  kCheckpoint = 4,   ///< checkpoint missing, damaged, incompatible, or not writable
  kNonFinite = 5,    ///< loss or gradient norm not finite, and the config says stop
  kPeerLost = 6,     ///< another process of the run is lost or timed out
  kOutOfMemory = 7,  ///< the batch does not fit into the device's memory
};

/// A problem that the user can solve: input, config, files, memory. `what()` names the problem, the
/// place (file, line, field) and the remedy, normally in one line. The program catches it in main
/// only, prints it and exits with `code()`.
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
struct PeerLostError : Error {
  explicit PeerLostError(const std::string& message) : Error(ExitCode::kPeerLost, message) {}
};
struct OutOfMemoryError : Error {
  explicit OutOfMemoryError(const std::string& message) : Error(ExitCode::kOutOfMemory, message) {}
};

}  // namespace stablemask
