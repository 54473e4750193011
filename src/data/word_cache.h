#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace stablemask {

/// The ids of words, in a table of 16 MiB. A word has two places in it. It is put in the second and
/// moves to the first when it is met again, so words that are met once do not replace those that
/// repeat.
class WordCache {
 public:
  static constexpr size_t kLongestWord = 54;  ///< bytes

  class Entry {
   public:
    /// What `add` was given with the word.
    float reach() const { return reach_; }
    void append_to(std::vector<int32_t>& ids) const;

   private:
    friend class WordCache;
    bool holds(std::string_view word) const;

    float reach_ = 0;
    uint8_t bytes_ = 0;  // of the word; 0: an empty entry
    uint8_t ids_ = 0;
    std::array<char, 58> data_{};  // the word, then its ids
  };
  static_assert(sizeof(Entry) == 64);

  /// Of a word of at least a byte; null when it is not there. Valid until the next call.
  const Entry* find(std::string_view word);
  /// Keeps a word that is not there, if it and its ids fit into an entry.
  void add(std::string_view word, std::span<const int32_t> ids, float reach);

 private:
  Entry* places_of(std::string_view word);

  std::vector<Entry> entries_ = std::vector<Entry>(size_t{1} << 18);
};

}  // namespace stablemask
