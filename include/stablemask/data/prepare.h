#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {

enum class TextFormat { kAuto, kText, kJsonl };  ///< auto: by the file's ending

/// Counts of a text as the shard header states them, without tokens.
struct TextCounts {
  uint64_t lines = 0;  ///< "\n"s: each is one EOS token
  uint64_t words = 0;  ///< runs of bytes other than ASCII white space
  uint64_t bytes = 0;
  uint64_t documents = 0;  ///< document lines; for JSONL, lines
  uint64_t unk_words = 0;  ///< words that are the text `<unk>`
};

struct PrepareOptions {
  TextFormat format = TextFormat::kAuto;
  std::string jsonl_field = "text";  ///< each JSON line is one document
  int threads = 1;                   ///< encoding; the shard does not depend on it
  /// Called about once a megabyte, from the calling thread, with the counts so far.
  std::function<void(const TextCounts&)> progress;
};

/// True for a document's first line: a top-level WikiText heading, " = Title = " with or without
/// its "\n", not " = = Section = = ".
bool is_document_line(std::string_view line);

/// Encodes a text or JSONL file ("-": standard input) into a shard, in constant memory but for 8
/// bytes a document, polling stop_signal(). A document of a JSONL file is the field's text, ended
/// by one "\n" when it has none at its end; the counts and the hash are those of these texts
/// joined. Every line is decoded again and compared. Throws DataError, leaving nothing behind, on
/// invalid UTF-8 or JSON (names line and byte), an empty corpus, a tokenizer that does not
/// round-trip (shows the first difference), or a failed write; throws Stopped on a stop signal.
ShardInfo prepare_shard(const std::string& input, const std::string& output,
                        const Tokenizer& tokenizer, const PrepareOptions& options);

/// Counts a text file. WikiText-103: test 4,358 lines and 241,211 words, valid 3,760 and 213,886.
/// Throws DataError when it cannot be read or is not valid UTF-8.
TextCounts count_text(const std::string& path);

}  // namespace stablemask
