#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace stablemask::ops::cuda {

/// What tells one matrix product from another for the choice of an algorithm.
using GemmKey = std::array<int64_t, 10>;

/// An algorithm as cuBLASLt describes it: plain data, valid for one GPU model and library version.
using GemmAlgorithm = std::array<uint64_t, 8>;

/// The choices of earlier runs: a text file with one line per product, "KEY… : ALGORITHM…". A file
/// that cannot be read or written is the same as none: it saves time and nothing else.
class GemmCache {
 public:
  explicit GemmCache(std::string path);
  const GemmAlgorithm* find(const GemmKey& key) const;
  void insert(const GemmKey& key, const GemmAlgorithm& algorithm);

 private:
  void write() const;

  std::string path_;
  std::map<GemmKey, GemmAlgorithm> entries_;
};

}  // namespace stablemask::ops::cuda
