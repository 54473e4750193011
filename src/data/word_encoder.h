#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "src/data/long_text.h"
#include "src/data/word_cache.h"
#include "stablemask/data/sentencepiece_model.h"

namespace stablemask {

/// Where a text may be divided so that its parts have the ids that they have in the whole: before a
/// space, unless a piece of the model has the byte before it and the space side by side. No token
/// crosses such a place: merges of byte pairs on one side do not see the other side, and every path
/// of a unigram model leads through it.
class WordEnds {
 public:
  explicit WordEnds(const SentencePieceModel& model);

  /// The end of the first word of a text that is not empty.
  size_t first(std::string_view text) const {
    size_t end = 1;
    while (end < text.size() &&
           (text[end] != ' ' || joined_[static_cast<unsigned char>(text[end - 1])])) {
      ++end;
    }
    return end;
  }

 private:
  std::array<bool, 256> joined_{};  // by the byte before a space
};

/// Appends the ids of a word of at most WordCache::kLongestWord bytes by sums that are not rounded
/// to float. Returns up to which magnitude of the sum before the word the rounded sums give the
/// same ids; negative: for none, as with an unknown character, whose id is that of the unknown
/// piece.
///
/// The rounded sums at a position after c characters are of at most c tokens and what was before.
/// With M, the greatest magnitude of a sum, each token adds an error of at most M 2^-24. So the
/// token that ends there is chosen as by exact sums if it is better than the others by more than
/// twice c of these errors.
float encode_unigram_word(const UnigramPieces& pieces, std::string_view word,
                          std::vector<int32_t>& ids);

/// Encodes texts word by word and remembers the words.
class WordEncoder {
 public:
  /// Appends the ids of a text.
  using AppendIds = std::function<void(std::string_view, std::vector<int32_t>&)>;

  /// `unigram`: null for byte pair merges, where `encode` gives the ids of a text by itself. They
  /// must outlive this object.
  WordEncoder(const WordEnds& ends, const UnigramEncoder* unigram, AppendIds encode)
      : ends_(ends), unigram_(unigram), encode_(std::move(encode)) {}

  /// Appends the ids that the text has as a whole. Throws Stopped (it polls).
  void append(std::string_view text, std::vector<int32_t>& ids);

 private:
  void append_word(std::string_view word, std::vector<int32_t>& ids);
  void append_unigram_word(std::string_view word, float& score, std::vector<int32_t>& ids);

  const WordEnds& ends_;
  const UnigramEncoder* unigram_;
  AppendIds encode_;
  WordCache words_;
};

}  // namespace stablemask
