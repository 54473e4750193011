#include "src/data/word_encoder.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <span>

#include "stablemask/base/stop.h"

namespace stablemask {

WordEnds::WordEnds(const SentencePieceModel& model) {
  for (const auto& piece : model.pieces) {
    const std::string surface = surface_of(piece.text);
    for (size_t at = 1; at < surface.size(); ++at) {
      if (surface[at] == ' ') joined_[static_cast<unsigned char>(surface[at - 1])] = true;
    }
  }
}

float encode_unigram_word(const UnigramPieces& pieces, std::string_view word,
                          std::vector<int32_t>& ids) {
  struct Sums {
    double best = 0, second = -DBL_MAX;
    int32_t id = -1;
    uint32_t bytes = 0;  // of the token; 0: the position was not reached
  };
  std::array<Sums, WordCache::kLongestWord + 1> sums;
  double magnitude = 0;
  int characters = 0;
  for (size_t at = 0; at < word.size(); ++characters) {
    at += pieces.visit_tokens(word.substr(at), [&](size_t bytes, double score, int32_t id) {
      score += sums[at].best;
      magnitude = std::max(magnitude, std::abs(score));
      Sums& target = sums[at + bytes];
      if (target.bytes == 0 || score > target.best) {
        const double second = target.bytes == 0 ? -DBL_MAX : target.best;
        target = {score, second, id, static_cast<uint32_t>(bytes)};
      } else {
        target.second = std::max(target.second, score);
      }
    });
  }
  double margin = DBL_MAX;
  const size_t old_size = ids.size();
  for (size_t end = word.size(); end > 0; end -= sums[end].bytes) {
    margin = std::min(margin, sums[end].best - sums[end].second);
    ids.push_back(sums[end].id);
    if (sums[end].id == pieces.unknown_id()) margin = -1;
  }
  std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(old_size), ids.end());
  // A little less than the bound: for the error of M and of the exact sums, and for sums so small
  // that they are rounded to less than 24 bits. A float does not hold sums without a limit.
  constexpr double kMost = 1e30;
  const double reach = margin / (2 * characters * std::exp2(-24)) * 0.99 - 1e-30 - magnitude;
  if (reach < 0 || magnitude > kMost) return -1;
  return static_cast<float>(std::min(reach, kMost));
}

void WordEncoder::append(std::string_view text, std::vector<int32_t>& ids) {
  float score = 0;
  size_t look_at = text.size();  // bytes left
  while (!text.empty()) {
    if (text.size() + kPartBytes <= look_at) {
      check_stop("encoding text");
      look_at = text.size();
    }
    const std::string_view word = text.substr(0, ends_.first(text));
    if (unigram_ == nullptr) {
      append_word(word, ids);
    } else {
      append_unigram_word(word, score, ids);
    }
    text.remove_prefix(word.size());
  }
}

void WordEncoder::append_word(std::string_view word, std::vector<int32_t>& ids) {
  if (const WordCache::Entry* known = words_.find(word)) return known->append_to(ids);
  const size_t old_size = ids.size();
  encode_(word, ids);
  words_.add(word, std::span(ids).subspan(old_size), 0);
}

// The library adds up the scores of a whole text, so the tokens of a word may depend on the sum
// before it where two of its segmentations score almost the same.
void WordEncoder::append_unigram_word(std::string_view word, float& score,
                                      std::vector<int32_t>& ids) {
  const size_t old_size = ids.size();
  float reach = -1;
  if (const WordCache::Entry* known = words_.find(word)) {
    reach = known->reach();
    if (std::abs(score) <= reach) known->append_to(ids);
  } else if (word.size() <= WordCache::kLongestWord) {
    reach = encode_unigram_word(unigram_->pieces(), word, ids);
    words_.add(word, std::span(ids).subspan(old_size), reach);
  }
  if (std::abs(score) <= reach) {
    score = unigram_->pieces().sum(score, std::span(ids).subspan(old_size));
  } else {
    ids.resize(old_size);
    unigram_->encode(word, kPartBytes, ids, score);
  }
}

}  // namespace stablemask
