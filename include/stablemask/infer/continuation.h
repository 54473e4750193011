#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/data/tokenizer.h"

namespace stablemask::infer {

/// The text of a continuation while its ids are drawn: without the held end of the prompt, and
/// ended before the first stop text. The texts that `push` and `finish` return are together the
/// whole text, whatever tokens a stop text spans; UTF-8 characters are not divided between them.
/// Takes time in proportion to the text.
class Continuation {
 public:
  /// `held`: Prompt::held. Of two stop texts that end at the same character, the longer one counts.
  /// `tokenizer` must outlive the object. Throws ConfigError for an empty stop text.
  Continuation(const Tokenizer& tokenizer, const std::string& held,
               const std::vector<std::string>& stops);

  /// The text that is certain with `id`: an end that may be the beginning of a stop text is kept
  /// back. Nothing after a stop text.
  std::string push(int32_t id);
  /// What was kept back.
  std::string finish();
  /// Whether a stop text came: the text ends before it.
  bool stopped() const { return stopped_; }

 private:
  /// A stop text and how far the end of the text matches it (Knuth, Morris and Pratt).
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // [i]: longest proper prefix of text[0…i] that is its suffix
    size_t matched = 0;
  };

  std::string take(const std::string& text);
  static bool advance(Stop& stop, char byte);

  StreamDecoder decoder_;
  size_t skip_;  // bytes of the held text still to come
  std::vector<Stop> stops_;
  std::string pending_;  // the end that may begin a stop text
  bool stopped_ = false;
};

}  // namespace stablemask::infer
