#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "stablemask/data/sentencepiece_model.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// How ids become text, and the special ids, of a tokenizer that is not lossless.
struct TokenTexts {
  std::vector<std::string> texts;  ///< of each id; "" for a special token
  int32_t start_id = -1;           ///< beginning of text; −1: none
  int32_t end_of_text_id = -1;
  /// The space that an encoder adds before a text is left out again: of the first token, or of all
  /// tokens up to one that has more than it.
  bool strips_space = false, strips_all_spaces = false;

  std::string decode(const std::vector<int32_t>& ids) const;  ///< ids must be in `texts`
};

/// Of a tokenizer.json. Throws DataError, naming `name`, when it is not JSON, when its model or its
/// decoder is of a kind that is not known, and when an id is out of range or end-of-text unknown.
TokenTexts read_tokenizer_json(std::string_view bytes, const std::string& name,
                               const TokenizerFiles& companions);

/// Of a SentencePiece model whose pieces are sound. Throws DataError when it has no end-of-text
/// token.
TokenTexts read_foreign_pieces(const SentencePieceModel& model, const std::string& name,
                               const TokenizerFiles& companions);

}  // namespace stablemask
