#include "src/ops/cuda/gemm_cache.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

namespace stablemask::ops::cuda {

GemmCache::GemmCache(std::string path) : path_(std::move(path)) {
  std::ifstream file(path_);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    GemmKey key;
    GemmAlgorithm algorithm;
    std::string colon;
    for (int64_t& value : key) words >> value;
    words >> colon;
    for (uint64_t& value : algorithm) words >> value;
    if (words && colon == ":") entries_[key] = algorithm;
  }
}

const GemmAlgorithm* GemmCache::find(const GemmKey& key) const {
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : &found->second;
}

void GemmCache::insert(const GemmKey& key, const GemmAlgorithm& algorithm) {
  entries_[key] = algorithm;
  write();
}

void GemmCache::write() const {
  if (path_.empty()) return;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  // Several processes may write at once: each writes a temporary file, and the last rename wins.
  const std::string temporary = path_ + ".tmp-" + std::to_string(::getpid());
  {
    std::ofstream file(temporary);
    for (const auto& [key, algorithm] : entries_) {
      for (const int64_t value : key) file << value << ' ';
      file << ':';
      for (const uint64_t value : algorithm) file << ' ' << value;
      file << '\n';
    }
    if (!file.flush()) {
      std::filesystem::remove(temporary, ignored);
      return;
    }
  }
  std::filesystem::rename(temporary, path_, ignored);
}

}  // namespace stablemask::ops::cuda
