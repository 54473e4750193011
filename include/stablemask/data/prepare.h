#pragma once

#include <cstdint>
#include <string>

#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {

enum class TextFormat { kAuto, kText, kJsonl };  ///< auto: by the file's ending

struct PrepareOptions {
  TextFormat format = TextFormat::kAuto;
  std::string jsonl_field = "text";  ///< each JSON line is one document
  int threads = 1;
};

/// True for a document's first line: a top-level WikiText heading, " = Title = \n", not "= =".
bool is_document_line(const std::string& line);

/// Encodes a text or JSONL file ("-": standard input) into a shard, in constant memory, polling
/// stop_signal(). Throws DataError on invalid UTF-8 (names line and byte), an empty corpus, or a
/// tokenizer that does not round-trip (shows the first difference).
ShardInfo prepare_shard(const std::string& input, const std::string& output,
                        const Tokenizer& tokenizer, const PrepareOptions& options);

/// Counts of a text as the shard header states them, without tokens. The goldens of WikiText-103:
/// test 4,358 lines and 241,211 words, valid 3,760 and 213,886.
struct TextCounts {
  uint64_t lines = 0, words = 0, bytes = 0, documents = 0;
};
TextCounts count_text(const std::string& path);

/// Writes a deterministic, invented, self-consistent encyclopedia in WikiText format (towns, rivers,
/// people; facts recur across articles): wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens.
void synthesize_corpus(const std::string& folder, uint64_t seed, uint64_t train_bytes);

}  // namespace stablemask
