#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

struct TokenizerTraining {
  int64_t vocab_size = 32000;
  std::string model_type = "bpe";  ///< "bpe" or "unigram"
  int threads = 1;
  int64_t max_sentences = 0;  ///< lines sampled for training (fixed seed); 0: all
  /// Called from the calling thread with the lines read so far, about every 10,000 of them, and
  /// with `all` when there are no more. The training itself, which follows, reports nothing.
  std::function<void(uint64_t lines, bool all)> progress = {};
};

/// Contents of files by their names.
using TokenizerFiles = std::map<std::string, std::string>;

/// A tokenizer of one of three kinds. All const members are safe for concurrent use.
///  - Lossless: a SentencePiece model for which decoding inverts encoding byte for byte: identity
///    normalisation, byte fallback, no dummy prefix, no white-space removal, the text "<unk>" as
///    one user-defined piece (the model's unknown piece has another name), and no "\n" in any
///    piece: a line end is the EOS id. Without a piece for a single space, a space is encoded as
///    its byte. A line of any length gets the ids that SentencePiece gives it, in memory of the ids
///    and a few MB.
///  - Any other SentencePiece model: encodes a text as a whole, by the SentencePiece library.
///  - tokenizer.json of Hugging Face's library tokenizers, byte-level BPE or with pieces like
///    SentencePiece's: ids become text here, texts become ids in scripts/encode.sh.
/// The last two end a document with their end-of-text token, which eos_id() also returns. Special
/// tokens decode to nothing.
class Tokenizer {
 public:
  /// Reads a model or a tokenizer.json; of a tokenizer that is not lossless also those of
  /// companion_names() that are in its folder. Throws DataError when a file is missing or damaged,
  /// of another kind, or has no end-of-text token.
  static Tokenizer load(const std::string& path);
  /// The same from the file's bytes, for example those in a checkpoint; `name` is for messages.
  static Tokenizer from_bytes(std::string bytes, const std::string& name,
                              TokenizerFiles companions = {});
  /// Files beside a tokenizer that name its special tokens or that other programs need.
  static const std::vector<std::string>& companion_names();

  /// Trains on UTF-8 text, one sentence per line, writes the model to `model_path` (OutputFile) and
  /// returns it. The same text, options and SentencePiece version give the same file. Words of more
  /// than 32,768 characters are cut for the training, with a warning. Throws DataError, Stopped.
  static Tokenizer train(const std::vector<std::string>& text_paths, const std::string& model_path,
                         const TokenizerTraining& options);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// "" for a lossless tokenizer; else what it does not keep, "it normalises (…)".
  const std::string& loss() const;
  bool lossless() const { return loss().empty(); }
  bool can_encode() const;  ///< false for a tokenizer.json

  /// Appends the ids of one line, without EOS. Of a lossless tokenizer only. Throws DataError on
  /// invalid UTF-8 or a "\n".
  void encode_line(std::string_view line, std::vector<int32_t>& ids) const;
  /// Ids of a text. Lossless: each "\n" becomes EOS; no EOS after a last line without "\n". Other
  /// SentencePiece models: the library's ids, without special tokens. Throws DataError for invalid
  /// UTF-8, for a text of more than kLongestText bytes where it is encoded as a whole, and unless
  /// can_encode().
  std::vector<int32_t> encode(std::string_view text) const;
  /// SentencePiece needs about a hundred bytes of memory for a byte of text.
  static constexpr size_t kLongestText = size_t{16} << 20;
  /// The text of ids that begin a text. Lossless: the inverse of encode, decode(encode(text)) ==
  /// text for every valid UTF-8 text. Others leave out the space that they add before a text.
  std::string decode(const std::vector<int32_t>& ids) const;
  /// What an id adds to a text: for a byte piece one byte, which may be part of a UTF-8 character.
  /// Throws DataError for an id that is not in the vocabulary.
  const std::string& text_of(int32_t id) const;

  int32_t vocab_size() const;
  /// Lossless: the line end. Others: end_of_text_id().
  int32_t eos_id() const;
  /// The id that a model reads before a text. Lossless: EOS. Others: their beginning-of-text token,
  /// or end-of-text where they have none.
  int32_t start_id() const;
  /// Ends a document or an answer. Lossless: the piece "<|endoftext|>" where it is a control or
  /// user-defined one, else the model's unknown piece, which no text is encoded to. Others: the
  /// eos_token of tokenizer_config.json, else that of the model.
  int32_t end_of_text_id() const;
  int32_t unk_text_id() const;        ///< id of the user-defined piece "<unk>"; −1: none
  const std::string& sha256() const;  ///< of the file
  const std::string& bytes() const;   ///< the file
  const TokenizerFiles& companions() const;

 private:
  friend class LineEncoder;
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class WordEncoder;

/// Encodes many lines. The ids are those of Tokenizer::encode_line, but words repeat, and the ids
/// of words that were met before come from a table of 16 MiB. For a lossless tokenizer; one object
/// a thread.
class LineEncoder {
 public:
  /// `tokenizer` must outlive this object.
  explicit LineEncoder(const Tokenizer& tokenizer);
  ~LineEncoder();

  /// As Tokenizer::encode_line.
  void append(std::string_view line, std::vector<int32_t>& ids);

 private:
  const Tokenizer& tokenizer_;
  std::unique_ptr<WordEncoder> words_;  // null until the first line
};

/// Decodes ids one at a time for output while they are generated, each in constant time. The texts
/// that `push` and `finish` return are together decode(all ids), and no UTF-8 character is divided
/// between two of them: `push` holds back up to three bytes until the next id completes them.
class StreamDecoder {
 public:
  /// `tokenizer` must outlive this object.
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  /// The text that is complete with `id`; may be empty.
  std::string push(int32_t id);
  /// The bytes of a character that the last ids began and did not complete; then starts afresh.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string held_;
};

}  // namespace stablemask
