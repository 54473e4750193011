#include "src/data/word_cache.h"

#include <array>
#include <bit>
#include <cstring>
#include <utility>

namespace stablemask {
namespace {

/// The first sizeof(T) bytes of at least as many.
template <typename T>
uint64_t load(std::string_view bytes) {
  std::array<char, sizeof(T)> first;
  bytes.copy(first.data(), first.size());
  return std::bit_cast<T>(first);
}

/// The last bytes of a text, at most eight of them, in one number.
uint64_t last_bytes(std::string_view text) {
  const auto last = [&](size_t count) { return text.substr(text.size() - count); };
  if (text.size() >= 8) return load<uint64_t>(last(8));
  if (text.size() >= 4) return load<uint32_t>(text) << 32 | load<uint32_t>(last(4));
  uint64_t value = 0;
  for (const char c : text) value = value << 8 | static_cast<unsigned char>(c);
  return value;
}

uint64_t hash_of(std::string_view word) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15ULL;  // 2^64 / the golden ratio
  uint64_t hash = word.size();
  const auto mix = [&hash](uint64_t value) {
    hash = (hash ^ value) * kOdd;
    hash ^= hash >> 32;
  };
  for (; word.size() > 8; word.remove_prefix(8)) mix(load<uint64_t>(word));
  mix(last_bytes(word));
  return hash * kOdd;
}

}  // namespace

void WordCache::Entry::append_to(std::vector<int32_t>& ids) const {
  const size_t old_size = ids.size();
  ids.resize(old_size + ids_);
  std::memcpy(&ids[old_size], &data_[bytes_], ids_ * sizeof(int32_t));
}

bool WordCache::Entry::holds(std::string_view word) const {
  return bytes_ == word.size() && std::memcmp(data_.data(), word.data(), bytes_) == 0;
}

WordCache::Entry* WordCache::places_of(std::string_view word) {
  const size_t sets = entries_.size() / 2;
  return &entries_[2 * (hash_of(word) >> 40 & (sets - 1))];
}

const WordCache::Entry* WordCache::find(std::string_view word) {
  if (word.size() > kLongestWord) return nullptr;
  Entry* places = places_of(word);
  if (places[0].holds(word)) return places;
  if (!places[1].holds(word)) return nullptr;
  std::swap(places[0], places[1]);
  return places;
}

void WordCache::add(std::string_view word, std::span<const int32_t> ids, float reach) {
  Entry entry;
  if (word.size() + ids.size_bytes() > entry.data_.size()) return;
  entry.reach_ = reach;
  entry.bytes_ = static_cast<uint8_t>(word.size());
  entry.ids_ = static_cast<uint8_t>(ids.size());
  std::memcpy(entry.data_.data(), word.data(), word.size());
  std::memcpy(&entry.data_[entry.bytes_], ids.data(), ids.size_bytes());
  places_of(word)[1] = entry;
}

}  // namespace stablemask
