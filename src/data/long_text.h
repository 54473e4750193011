#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/data/unigram_pieces.h"
#include "stablemask/data/sentencepiece_model.h"

namespace stablemask {

// Encoding of long lines. SentencePiece needs about a hundred bytes of memory for each byte of a
// line, because it encodes a line as a whole. These give the same ids with memory for the ids and
// for one part of the line.

inline constexpr size_t kPartBytes = size_t{1} << 16;  ///< a longer text is encoded in parts

/// The ids that SentencePiece gives for a text.
using EncodeText = std::function<std::vector<int32_t>(std::string_view)>;

/// Encodes by byte pair merges, in parts of `part_bytes`; appends to `ids` what `encode` gives for
/// the whole text. `surfaces`: the text of each id, one byte for a byte piece. The model must have
/// no unused piece: SentencePiece divides those as it did elsewhere in the text.
///
/// Why the parts fit: SentencePiece merges the adjacent pair of symbols whose union is the piece of
/// the highest score, the leftmost of equals. When no pair (a, b) of neighbours in a sequence of
/// tokens would be merged across its boundary if a b were encoded alone, then no merge crosses a
/// boundary of the whole sequence either: the first that did would be the best one of its pair,
/// too. Each part begins with a token of the part before, some tokens before its end, and is
/// accepted if its first token is that token: then all neighbours are such pairs. Otherwise it
/// begins earlier.
void encode_bpe_in_parts(std::string_view text, size_t part_bytes, const EncodeText& encode,
                         const std::vector<std::string>& surfaces, std::vector<int32_t>& ids);

/// SentencePiece's search for the best segmentation under a unigram model (0.1.97,
/// EncodeOptimized), with the same arithmetic, so that also sums that are rounded compare equally.
/// The path up to a position through which all paths lead that may still win is final: only later
/// positions are kept.
class UnigramEncoder {
 public:
  explicit UnigramEncoder(const SentencePieceModel& model) : pieces_(model) {}

  /// Appends the ids of `text`. `part_bytes`: how often to look for a final position. `score`: the
  /// sum of the text before, of which `text` is the rest; becomes that of both.
  void encode(std::string_view text, size_t part_bytes, std::vector<int32_t>& ids,
              float& score) const;
  const UnigramPieces& pieces() const { return pieces_; }

 private:
  struct Best {  // the last token of the best path to a position
    float score = 0;
    int32_t id = -1;
    uint32_t bytes = 0;  // of its text; 0: the position was not reached
  };

  size_t extend(std::string_view text, Best* best) const;
  static size_t meeting_point(const std::vector<Best>& best, size_t at);
  void emit(std::string_view text, const std::vector<Best>& best, size_t end,
            std::vector<int32_t>& ids) const;

  UnigramPieces pieces_;
};

}  // namespace stablemask
