#pragma once

#include <string>

#include "stablemask/data/prepare.h"

namespace stablemask {

/// prepare_shard for a tokenizer that is not lossless: each document is encoded as a whole and
/// followed by end-of-text. A text is divided at the lines that is_document_line accepts.
ShardInfo prepare_documents(const std::string& input, const std::string& output,
                            const Tokenizer& tokenizer, const PrepareOptions& options);

/// Adds the words and the "<unk>" words of a line.
void count_words(std::string_view line, TextCounts& counts);

}  // namespace stablemask
