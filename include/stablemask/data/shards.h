#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/base/file.h"

namespace stablemask {

/// The header of a token shard; src/data/shards.cpp documents the layout on disk. A shard is of
/// text, every token of which is trained on (version 1), or of samples, each a document, of which
/// some tokens are training targets (version 2).
struct ShardInfo {
  uint32_t version = 1;
  uint32_t token_bytes = 2;  ///< 2: uint16, 4: uint32
  uint64_t vocab_size = 0;
  std::string tokenizer_sha256;  ///< 64 hex digits
  uint64_t tokens = 0;           ///< including one EOS for each line end
  uint64_t lines = 0;            ///< line ends ("\n") of the text
  uint64_t words = 0;            ///< separated by white space, EOS not counted
  uint64_t bytes = 0;            ///< of the original text
  uint64_t documents = 0;
  std::string text_sha256;      ///< of the original text
  std::string payload_sha256;   ///< of everything after the header
  uint64_t trained = 0;         ///< samples: tokens that are training targets; text: 0
  std::string sample_template;  ///< samples: name of the template that made them; text: ""

  bool has_samples() const { return !sample_template.empty(); }
};

/// Writes a shard in constant memory (8 bytes a document, a bit a token of samples) through an
/// OutputFile: `path` is replaced
/// by `finish`; destroyed without it, the writer leaves nothing.
class ShardWriter {
 public:
  ShardWriter(const std::string& path, uint64_t vocab_size, const std::string& tokenizer_sha256);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  void append(const std::vector<int32_t>& tokens);
  /// The same for samples: `trained`, for each token, whether it is a training target, which the
  /// first of a document is not. All tokens of a shard are appended so, or none; throws DataError.
  void append(const std::vector<int32_t>& tokens, const std::vector<bool>& trained);
  /// The next appended token is the first of a document.
  void begin_document();
  /// Completes and publishes the file. Of `counts` it uses lines, words, bytes, text_sha256 and
  /// sample_template; the rest of the header the writer knows. Returns the header.
  ShardInfo finish(const ShardInfo& counts);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// An open token shard, read with pread; all members are safe for concurrent use. `open` reads the
/// header and the document starts and checks magic, version, sizes, header hash and counts;
/// `verify` checks the tokens. Every failure is a DataError that names the file, also when the file
/// was shortened after it was opened.
class Shard {
 public:
  static Shard open(const std::string& path);
  /// True when the file begins with a shard's magic number, even if the rest is damaged; false also
  /// when it cannot be read.
  static bool is_shard(const std::string& path);
  Shard(Shard&&) noexcept;
  Shard& operator=(Shard&&) noexcept;
  ~Shard();

  const ShardInfo& info() const;
  const std::string& path() const;
  int64_t size() const;            ///< tokens
  uint64_t payload_bytes() const;  ///< of the file after the header: what `verify` reads
  /// One system call, as `read`: read a range instead of calling it in a loop.
  int32_t token(int64_t index) const;
  /// Copies tokens [begin, begin + count) into `out`. Throws DataError for a token that is not in
  /// the vocabulary.
  void read(int64_t begin, int64_t count, int64_t* out) const;
  /// Whether tokens [begin, begin + count) are training targets: in text all are.
  std::vector<bool> read_trained(int64_t begin, int64_t count) const;
  /// First token of each document, ascending; empty when the text had no document lines.
  const std::vector<int64_t>& document_starts() const;
  /// Reads the payload once; checks its hash and that each token is in the vocabulary. Polls
  /// check_stop. `read_bytes` is called with the size of each block that was read.
  void verify(const std::function<void(uint64_t bytes)>& read_bytes = {}) const;
  /// `verify` of a shard in use, without check_stop: throws DataError when its tokens are no longer
  /// those of its header. It reads them only if the file's size or times differ from `known`, which
  /// it then updates.
  void verify_again(FileStamps& known) const;
  const FileStamps& stamps_at_open() const;
  /// Whether the path still names the open file.
  bool is_named() const;
  /// Throws DataError unless the shard was made with this tokenizer.
  void require_tokenizer(const std::string& tokenizer_sha256) const;

 private:
  struct State;
  explicit Shard(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Bytes read so far and in all.
using VerifyProgress = std::function<void(uint64_t done, uint64_t total)>;

/// Verifies shards in up to `threads` threads (0: one per CPU), one shard per thread at a time.
/// Throws the first failed shard's DataError, or Stopped; the other threads then end early.
/// `progress` is called from the calling thread about ten times a second, and with done = total at
/// the end.
void verify_shards(const std::vector<std::shared_ptr<const Shard>>& shards, int threads,
                   const VerifyProgress& progress = {});

}  // namespace stablemask
