#include "src/data/long_text.h"

#include <algorithm>
#include <cfloat>
#include <set>

#include "stablemask/base/stop.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

using PieceType = SentencePieceModel::PieceType;

bool is_continuation(char byte) { return (byte & 0xC0) == 0x80; }

/// The smallest start of a character that is not before `at`.
size_t character_start(std::string_view text, size_t at) {
  while (at < text.size() && is_continuation(text[at])) ++at;
  return std::min(at, text.size());
}

}  // namespace

void encode_bpe_in_parts(std::string_view text, size_t part_bytes, const EncodeText& encode,
                         const std::vector<std::string>& surfaces, std::vector<int32_t>& ids) {
  const auto bytes_of = [&](int32_t id) { return surfaces[static_cast<size_t>(id)].size(); };
  size_t longest = 4;
  for (const std::string& surface : surfaces) longest = std::max(longest, surface.size());
  const size_t first = ids.size();
  size_t covered = 0;  // ids[first…] are those of text[0, covered)
  while (covered < text.size()) {
    check_stop("encoding text");
    const size_t end = character_start(text, std::min(text.size(), covered + part_bytes));
    for (size_t back = 4 * longest;; back *= 2) {
      size_t keep = ids.size();  // the part begins with the text of ids[keep]
      size_t begin = covered;
      while (keep > first && (covered - begin < back || is_continuation(text[begin]))) {
        begin -= bytes_of(ids[--keep]);
      }
      const std::vector<int32_t> part = encode(text.substr(begin, end - begin));
      if (keep > first && part.front() != ids[keep]) continue;
      size_t bytes = 0;
      for (const int32_t id : part) bytes += bytes_of(id);
      if (bytes != end - begin) {  // not lossless: nothing says where a token begins
        ids.resize(first);
        const std::vector<int32_t> whole = encode(text);
        ids.insert(ids.end(), whole.begin(), whole.end());
        return;
      }
      ids.resize(keep);
      ids.insert(ids.end(), part.begin(), part.end());
      break;
    }
    covered = end;
  }
}

UnigramEncoder::UnigramEncoder(const SentencePieceModel& model) {
  float least = FLT_MAX;
  float most = FLT_MIN;  // as in SentencePiece: the smallest positive number
  for (const auto& piece : model.pieces) {
    if (piece.type != PieceType::kNormal) continue;
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
    if (piece.type == PieceType::kUserDefined) {
      const float bonus = static_cast<float>(piece.text.size()) * most;
      scores_.back() = bonus - 0.1;
    } else if (piece.type != PieceType::kNormal) {
      continue;
    }
    // A space itself never stands in a text as SentencePiece sees it.
    if (piece.text.find(' ') == std::string::npos) keys.push_back({surface_of(piece.text), id});
    longest_ = std::max(longest_, piece.text.size());
  }
  build_trie(std::move(keys));
}

void UnigramEncoder::build_trie(std::vector<Key> keys) {
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

const UnigramEncoder::Node* UnigramEncoder::child(const Node& node, char byte) const {
  const Node* begin = nodes_.data() + node.first_child;
  const Node* end = begin + node.children;
  const auto wanted = static_cast<unsigned char>(byte);
  const Node* found = std::lower_bound(
      begin, end, wanted, [](const Node& one, unsigned char value) { return one.byte < value; });
  return found != end && found->byte == wanted ? found : nullptr;
}

// Continues the best path to `at`, of which `best` is the entry, by one token in every way. The
// types decide the rounding: pieces are added up in double, the unknown piece in float.
void UnigramEncoder::extend(std::string_view text, size_t at, size_t character_bytes,
                            Best* best) const {
  const float here = best->score;
  const auto improve = [&](size_t bytes, auto score, int32_t id) {
    Best& target = best[bytes];
    if (target.bytes != 0 && !(score > target.score)) return;
    target = {static_cast<float>(score), id, static_cast<uint32_t>(bytes)};
  };
  bool single = false;  // a piece is this character alone
  const Node* node = nodes_.data();
  for (size_t end = at; end < text.size();) {
    node = child(*node, text[end++]);
    if (node == nullptr) break;
    if (node->id < 0) continue;
    improve(end - at, scores_[static_cast<size_t>(node->id)] + here, node->id);
    single = single || end - at == character_bytes;
  }
  if (!single) improve(character_bytes, unknown_score_ + here, unknown_id_);
}

size_t UnigramEncoder::meeting_point(const std::vector<Best>& best, size_t at) {
  std::set<size_t> ends = {at};
  for (size_t end = at + 1; end < best.size(); ++end) {
    if (best[end].bytes != 0) ends.insert(end);
  }
  while (ends.size() > 1) {
    const size_t last = *ends.rbegin();
    ends.erase(last);
    ends.insert(last - best[last].bytes);
  }
  return *ends.begin();
}

// The path from the first entry to `end`; `text` begins where the first entry stands.
void UnigramEncoder::emit(std::string_view text, const std::vector<Best>& best, size_t end,
                          std::vector<int32_t>& ids) const {
  const size_t old_size = ids.size();
  while (end > 0) {
    const Best& last = best[end];
    if (last.id == unknown_id_) {
      for (size_t k = 1; k <= last.bytes; ++k) {
        ids.push_back(byte_ids_[static_cast<unsigned char>(text[end - k])]);
      }
    } else {
      ids.push_back(last.id);
    }
    end -= last.bytes;
  }
  std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(old_size), ids.end());
}

void UnigramEncoder::encode(std::string_view text, size_t part_bytes,
                            std::vector<int32_t>& ids) const {
  std::vector<Best> best(1);  // of the positions from the start of `text`, which moves
  size_t at = 0;
  size_t look_at = part_bytes;
  while (at < text.size()) {
    const size_t character_bytes = utf8_character_size(text.substr(at));
    if (best.size() < at + longest_ + 1) best.resize(at + longest_ + 1);
    extend(text, at, character_bytes, best.data() + at);
    at += character_bytes;
    if (at < look_at) continue;
    check_stop("encoding text");
    const size_t meeting = meeting_point(best, at);
    emit(text, best, meeting, ids);
    text.remove_prefix(meeting);
    best.erase(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(meeting));
    at -= meeting;
    look_at = std::max(2 * at, part_bytes);
  }
  best.resize(text.size() + 1);
  emit(text, best, text.size(), ids);
}

}  // namespace stablemask
