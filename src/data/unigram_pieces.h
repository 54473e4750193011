#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/utf8.h"
#include "stablemask/data/sentencepiece_model.h"

namespace stablemask {

/// The tokens of a unigram model with their scores, as SentencePiece's encoder uses them.
class UnigramPieces {
 public:
  explicit UnigramPieces(const SentencePieceModel& model);

  /// Calls visit(bytes, score, id) for each token that `text`, valid UTF-8 with spaces, may begin
  /// with: shorter ones first, then the unknown piece if no piece is the first character alone.
  /// Returns the bytes of that character. The types of the scores decide the rounding of sums:
  /// those of pieces are double, that of the unknown piece is float.
  template <typename Visit>
  size_t visit_tokens(std::string_view text, const Visit& visit) const {
    const size_t character_bytes = utf8_character_size(text);
    bool single = false;
    const Node* node = nodes_.data();
    for (size_t end = 0; end < text.size();) {
      node = child(*node, text[end++]);
      if (node == nullptr) break;
      if (node->id < 0) continue;
      visit(end, scores_[static_cast<size_t>(node->id)], node->id);
      single = single || end == character_bytes;
    }
    if (!single) visit(character_bytes, unknown_score_, unknown_id_);
    return character_bytes;
  }

  /// The sum of `score` and the scores of pieces, rounded to float after each.
  float sum(float score, std::span<const int32_t> ids) const;
  int32_t unknown_id() const { return unknown_id_; }
  int32_t byte_id(char byte) const { return byte_ids_[static_cast<unsigned char>(byte)]; }
  size_t longest() const { return longest_; }  ///< bytes of a piece or a character, at most

 private:
  struct Node {  // of a trie; its children are neighbours, in the order of their bytes
    unsigned char byte = 0;
    int32_t id = -1;  // of the piece that ends here
    uint32_t first_child = 0;
    uint16_t children = 0;
  };
  struct Key {
    std::string text;
    int32_t id;
  };

  void build_trie(std::vector<Key> keys);
  const Node* child(const Node& node, char byte) const;

  std::vector<Node> nodes_;
  std::vector<double> scores_;  // by id
  std::vector<int32_t> byte_ids_;
  float unknown_score_ = 0;
  int32_t unknown_id_ = 0;
  size_t longest_ = 4;
};

}  // namespace stablemask
