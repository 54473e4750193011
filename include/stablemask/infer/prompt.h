#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/data/tokenizer.h"

namespace stablemask::infer {

/// A text to continue, for GenerateRequest. The model reads `ids`; the text of the first id that is
/// drawn begins with `held`, the end of the text that `ids` leave out, and what follows `held` is
/// new.
struct Prompt {
  std::vector<int32_t> ids;             ///< EOS, then the text without `held`
  std::vector<int32_t> first_ids = {};  ///< ids whose text begins with `held`; empty: any
  std::string held = {};
};

/// Turns texts into prompts. A text often ends within a token: after "The " the usual next token is
/// " river", and a space of its own is rare in training. Token healing takes the last token back
/// and lets the model draw it again among the ids whose text begins with it, so that prompt and
/// continuation are encoded together. The last token stays where it is a line end, or where the
/// text of no other id begins with it. Safe for concurrent use.
class PromptEncoder {
 public:
  /// Without `heal`, `held` is always empty. `tokenizer` must outlive the object.
  explicit PromptEncoder(const Tokenizer& tokenizer, bool heal = true);

  /// Throws DataError "WHAT: …" for a text that cannot be encoded.
  Prompt encode(const std::string& text, const std::string& what) const;

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> by_text_;  // ids in the order of their texts; empty: no healing
};

}  // namespace stablemask::infer
