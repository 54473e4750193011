#include "src/data/long_text.h"

#include <algorithm>
#include <set>

#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

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

// Continues the best path to the start of `text`, of which `best` is the entry, by one token in
// every way; returns the bytes of the first character.
size_t UnigramEncoder::extend(std::string_view text, Best* best) const {
  const float here = best->score;
  return pieces_.visit_tokens(text, [&](size_t bytes, auto token_score, int32_t id) {
    const auto score = token_score + here;
    Best& target = best[bytes];
    if (target.bytes != 0 && !(score > target.score)) return;
    target = {static_cast<float>(score), id, static_cast<uint32_t>(bytes)};
  });
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
    if (last.id == pieces_.unknown_id()) {
      for (size_t k = 1; k <= last.bytes; ++k) ids.push_back(pieces_.byte_id(text[end - k]));
    } else {
      ids.push_back(last.id);
    }
    end -= last.bytes;
  }
  std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(old_size), ids.end());
}

void UnigramEncoder::encode(std::string_view text, size_t part_bytes, std::vector<int32_t>& ids,
                            float& score) const {
  // Of the positions from the start of `text`, which moves.
  std::vector<Best> best(std::min(text.size(), part_bytes) + pieces_.longest() + 1);
  best[0].score = score;
  size_t at = 0;
  size_t look_at = part_bytes;
  while (at < text.size()) {
    best.resize(std::max(best.size(), at + pieces_.longest() + 1));
    at += extend(text.substr(at), best.data() + at);
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
  score = best.back().score;
}

}  // namespace stablemask
