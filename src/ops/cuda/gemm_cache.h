#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace stablemask::ops::cuda {

/// Properties of a GEMM on which the choice of an algorithm depends (cuda/gemm.cpp fills it).
using GemmKey = std::array<int64_t, 10>;

/// An algorithm as cuBLASLt describes it: plain data, valid for one GPU model and library version.
using GemmAlgorithm = std::array<uint64_t, 8>;

/// Numbers separated by spaces.
std::string text_of(const GemmKey& key);
std::string text_of(const GemmAlgorithm& algorithm);
/// Inverse of text_of; nullopt for any other text.
std::optional<GemmAlgorithm> algorithm_from_text(const std::string& text);

/// Algorithms chosen in earlier runs: a text file with one line per GEMM, "KEY… : ALGORITHM…".
/// Lines that do not parse and a file that cannot be read or written are ignored: the algorithms
/// are then timed again.
class GemmCache {
 public:
  explicit GemmCache(std::string path);
  /// nullptr when there is no entry. Valid until the next insert.
  const GemmAlgorithm* find(const GemmKey& key) const;
  /// Adds or replaces an entry and rewrites the file, if that changes anything.
  void insert(const GemmKey& key, const GemmAlgorithm& algorithm);

 private:
  void write() const;

  std::string path_;
  std::map<GemmKey, GemmAlgorithm> entries_;
};

}  // namespace stablemask::ops::cuda
