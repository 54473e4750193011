#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// How a text is read. JSONL: each line is a document. Samples: each line of JSONL is a sample of
/// instruction data (docs/instruction_data.md), {"prompt", "completion"} or {"messages"} by its
/// first object. Auto: JSONL when the file's name ends with .jsonl, .ndjson or .json in any case,
/// or when it is standard input that begins like an object with a first key, then samples when the
/// first object has their fields and not `jsonl_field`; text otherwise.
enum class TextFormat { kAuto, kText, kJsonl, kSamples };

/// Counts of a text, as a shard's header stores them.
struct TextCounts {
  uint64_t lines = 0;  ///< line ends ("\n"), each encoded as one EOS token
  uint64_t words = 0;  ///< runs of bytes other than ASCII white space
  uint64_t bytes = 0;
  uint64_t documents = 0;    ///< lines that is_document_line accepts; for JSONL, objects
  uint64_t unk_words = 0;    ///< words equal to "<unk>"
  uint64_t input_bytes = 0;  ///< of the file; for JSONL more than `bytes`
};

struct PrepareOptions {
  TextFormat format = TextFormat::kAuto;
  std::string jsonl_field = "text";      ///< the string field that holds a document's text
  int threads = 1;                       ///< for encoding; the shard does not depend on it
  size_t chunk_bytes = size_t{1} << 20;  ///< of text that a thread encodes at a time; nor on this
  /// Called about once a megabyte, from the calling thread, with the counts so far.
  std::function<void(const TextCounts&)> progress;
};

/// True for a document's first line: a top-level WikiText heading, " = Title = " with or without
/// its "\n", not " = = Section = = ".
bool is_document_line(std::string_view line);

/// Encodes a text or JSONL file ("-": standard input) into a shard. With a lossless tokenizer line
/// by line, as follows; with another SentencePiece model each document as a whole, at most
/// Tokenizer::kLongestText bytes, with end-of-text after it: a text is divided at the lines that
/// is_document_line accepts. Throws DataError for a tokenizer that cannot encode. Memory: 64 MiB of
/// text, or 2 MiB a thread if that is more, with its tokens, or the longest line with its tokens if
/// that is more, plus 16 MiB a thread and 8 bytes per document. Each line of JSONL is an object
/// whose field `jsonl_field` is one document; a "\n" is appended to a document that does not end
/// with one; counts and hash are those of the documents concatenated. Every encoded line is decoded
/// and compared with the original. Throws DataError for compressed text, UTF-16 or UTF-32, a line
/// of more than 256 MiB, invalid UTF-8 or JSON (with line and byte; see read_json_record), a
/// missing field, an empty corpus, a line that does not decode to itself (with the first
/// difference) or a failed write, and Stopped on a stop signal (it polls); `output` is then
/// unchanged.
ShardInfo prepare_shard(const std::string& input, const std::string& output,
                        const Tokenizer& tokenizer, const PrepareOptions& options);

/// Writes token ids that another program made into a shard: JSONL with a document a line, {"ids":
/// [5, 6, …]}, "-": standard input. With "trained": [[1, 3], …] in every line it is a shard of
/// samples, whose training targets are the ids in these ranges [begin, end). The ids are taken as
/// they are; other fields are passed over. Where the tokenizer is lossless, the counts and the hash
/// are those of the decoded text, else the text is not known and they are 0 and that of nothing. Of
/// `options` only `progress` is used. Throws as prepare_shard, with the line's number, and for an
/// id that is not in the vocabulary.
ShardInfo prepare_ids(const std::string& input, const std::string& output,
                      const Tokenizer& tokenizer, const PrepareOptions& options = {});

/// Counts the lines, words, bytes and documents of a text file without encoding it. Throws
/// DataError when it cannot be read or is not valid UTF-8. For reference, WikiText-103: test 4,358
/// lines and 241,211 words, valid 3,760 and 213,886.
TextCounts count_text(const std::string& path);

}  // namespace stablemask
