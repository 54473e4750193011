#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace stablemask {

/// Incremental SHA-256 (FIPS 180-4).
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(const void* data, size_t size);
  /// The digest, 64 lower-case hexadecimal digits. Call it once; `update` is not allowed after it.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The digest of a byte array.
std::string sha256_hex(const void* data, size_t size);

/// The digest of a file. Throws std::system_error when it cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace stablemask
