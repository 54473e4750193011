#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "src/serve/engine.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/infer/continuation.h"

namespace stablemask::serve {

/// A token of a completion with log-probabilities.
struct TokenEntry {
  std::string text;    ///< "bytes:\xC3" for bytes that are no text
  int64_t offset = 0;  ///< of its first character in the text
  float logprob = 0;
  std::vector<std::pair<std::string, float>> top;  ///< likeliest first, then the token itself
};

/// "bytes:\xHH…" for the bytes of a token that are not UTF-8, else its text.
std::string token_text(const Tokenizer& tokenizer, int32_t id);

/// The text of a completion, put together from its ids: whole characters alone, U+FFFD for bytes
/// that are no character, nothing from a stop string on.
class CompletionText {
 public:
  struct Options {
    std::vector<std::string> stop = {};
    std::string held = {};  ///< as PromptIds::held: left out of the text
    bool entries = false;
    int64_t offset = 0;  ///< characters before the completion
  };
  /// `tokenizer` must outlive this object.
  CompletionText(const Tokenizer& tokenizer, const Options& options);

  /// Returns whether the text goes on: false after a stop string.
  bool add(const Draw& draw);
  /// At the end of the text.
  void finish();

  /// The text that has become certain since the last call.
  std::string take_text();
  /// The tokens that begin in the texts taken so far and were not returned before.
  std::vector<TokenEntry> take_entries();
  int64_t tokens() const { return tokens_; }

 private:
  void add_entry(const Draw& draw);

  const Tokenizer& tokenizer_;
  infer::Continuation continuation_;
  const bool with_entries_;
  infer::Continuation all_;  ///< with entries: the text without regard to stop strings
  int64_t decoded_, shown_;  ///< characters
  std::string text_;         ///< certain and not taken
  std::vector<TokenEntry> entries_;
  int64_t tokens_ = 0;
  bool complete_ = false;  ///< at its end, without a stop string
};

/// Characters of a valid text.
int64_t characters(const std::string& text);

}  // namespace stablemask::serve
