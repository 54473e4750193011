#include "src/data/unigram_pieces.h"

#include <algorithm>
#include <cfloat>

namespace stablemask {

UnigramPieces::UnigramPieces(const SentencePieceModel& model) {
  using enum SentencePieceModel::PieceType;
  float least = FLT_MAX;
  float most = FLT_MIN;  // as in SentencePiece: the smallest positive number
  for (const auto& piece : model.pieces) {
    if (piece.type != kNormal) continue;
    least = std::min(least, piece.score);
    most = std::max(most, piece.score);
  }
  constexpr float kUnknownPenalty = 10.0F;
  unknown_score_ = least - kUnknownPenalty;
  unknown_id_ = model.unk_id;
  byte_ids_.assign(256, unknown_id_);
  std::vector<Key> keys;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    scores_.push_back(piece.score);
    if (const int byte = byte_of(piece); byte >= 0) byte_ids_[static_cast<size_t>(byte)] = id;
    if (piece.type == kUserDefined) {
      const float bonus = static_cast<float>(piece.text.size()) * most;
      scores_.back() = bonus - 0.1;
    } else if (piece.type != kNormal) {
      continue;
    }
    // A space itself never stands in a text as SentencePiece sees it.
    if (piece.text.find(' ') == std::string::npos) keys.push_back({surface_of(piece.text), id});
    longest_ = std::max(longest_, piece.text.size());
  }
  build_trie(std::move(keys));
}

void UnigramPieces::build_trie(std::vector<Key> keys) {
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) { return a.text < b.text; });
  struct Branch {
    size_t node, begin, end, depth;  // the keys [begin, end) share `depth` bytes
  };
  nodes_.emplace_back();
  std::vector<Branch> open = {{0, 0, keys.size(), 0}};
  while (!open.empty()) {
    const Branch branch = open.back();
    open.pop_back();
    size_t at = branch.begin;
    if (at < branch.end && keys[at].text.size() == branch.depth) {
      nodes_[branch.node].id = keys[at++].id;
    }
    nodes_[branch.node].first_child = static_cast<uint32_t>(nodes_.size());
    while (at < branch.end) {
      const char byte = keys[at].text[branch.depth];
      const size_t begin = at;
      while (at < branch.end && keys[at].text[branch.depth] == byte) ++at;
      open.push_back({nodes_.size(), begin, at, branch.depth + 1});
      nodes_.push_back({static_cast<unsigned char>(byte)});
      ++nodes_[branch.node].children;
    }
  }
}

const UnigramPieces::Node* UnigramPieces::child(const Node& node, char byte) const {
  const Node* begin = nodes_.data() + node.first_child;
  const Node* end = begin + node.children;
  const auto wanted = static_cast<unsigned char>(byte);
  const Node* found = std::lower_bound(
      begin, end, wanted, [](const Node& one, unsigned char value) { return one.byte < value; });
  return found != end && found->byte == wanted ? found : nullptr;
}

float UnigramPieces::sum(float score, std::span<const int32_t> ids) const {
  for (const int32_t id : ids) {
    score = static_cast<float>(scores_[static_cast<size_t>(id)] + score);
  }
  return score;
}

}  // namespace stablemask
