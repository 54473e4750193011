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
  /// Lower-case hexadecimal digest of everything so far; the object may not be updated after.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(const void* data, size_t size);

/// Digest of a file's bytes. Throws std::system_error when it cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace stablemask
