#include "src/ops/cuda/gemm_cache.h"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"

namespace stablemask::ops::cuda {
namespace {

template <typename Numbers>
std::string joined(const Numbers& numbers) {
  std::ostringstream text;
  for (size_t i = 0; i < numbers.size(); ++i) text << (i > 0 ? " " : "") << numbers[i];
  return text.str();
}

}  // namespace

std::string text_of(const GemmKey& key) { return joined(key); }

std::string text_of(const GemmAlgorithm& algorithm) { return joined(algorithm); }

std::optional<GemmAlgorithm> algorithm_from_text(const std::string& text) {
  std::istringstream words(text);
  GemmAlgorithm algorithm;
  for (uint64_t& value : algorithm) words >> value;
  if (!words || text_of(algorithm) != text) return std::nullopt;
  return algorithm;
}

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
  const auto [place, is_new] = entries_.try_emplace(key, algorithm);
  if (!is_new && place->second == algorithm) return;
  place->second = algorithm;
  write();
}

void GemmCache::write() const {
  if (path_.empty()) return;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  // Several processes may write at once: the last one wins.
  std::string text;
  for (const auto& [key, algorithm] : entries_) {
    text += text_of(key) + " : " + text_of(algorithm) + '\n';
  }
  try {
    write_file_atomically(path_, text);
  } catch (const Error&) {  // the next process times the algorithms again
    return;
  }
}

}  // namespace stablemask::ops::cuda
