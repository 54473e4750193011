#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "src/data/text_kind.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/output.h"
#include "stablemask/base/random.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/utf8.h"
#include "stablemask/data/line_reader.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {
namespace {

constexpr uint64_t kSampleSeed = 0x5371626d61736bULL;

// With one character more, the space before the word included, SentencePiece's BPE trainer ends the
// process: it packs the places of two neighbours in a word into 32 bits with a sign.
constexpr size_t kMaxRunCharacters = 32768;
// SentencePiece needs about a hundred bytes of memory for each byte of a line.
constexpr size_t kMaxPieceBytes = size_t{1} << 20;

// Lines of the texts, in pieces that SentencePiece takes. It drops a whole line for one NUL, U+2581
// or U+2585 (it uses the last two itself), so lines are cut there and nothing is lost. Longer lines
// than kMaxPieceBytes are cut before spaces: words are counted by themselves in any case. Words of
// more than kMaxRunCharacters are cut between characters.
class LineSource {
 public:
  LineSource(const std::vector<std::string>& paths, const TokenizerTraining& options)
      : paths_(paths), options_(options) {}

  bool next(std::string& piece) {
    while (pending_.empty()) {
      std::string_view line;
      const bool all = !next_line(line);
      constexpr uint64_t kInterval = 10000;
      if (options_.progress && (all || lines_ % kInterval == 0)) options_.progress(lines_, all);
      if (all) return false;
      split(line);
    }
    piece = std::move(pending_.back());
    pending_.pop_back();
    return true;
  }

  /// "" or what to say about words that were cut.
  std::string cut_words_report() const {
    if (cut_words_ == 0) return "";
    return format(
               "words of more than %zu characters were cut for the training: %llu, the first in ",
               kMaxRunCharacters, static_cast<unsigned long long>(cut_words_)) +
           first_cut_ + "; encoding does not cut words";
  }

 private:
  bool next_line(std::string_view& line) {
    bool terminated = false;
    while (!reader_ || !reader_->next(line, terminated)) {
      if (file_ == paths_.size()) return false;
      const std::string& path = paths_[file_++];
      reader_ = std::make_unique<LineReader>(path);
      if (begins_like_jsonl(reader_->head())) {
        log_warning(reader_->name() +
                    ": looks like JSONL, but a tokenizer is trained on the lines as they are, with "
                    "keys and escapes; extract the text first, for example with jq -r .text");
      }
    }
    ++lines_;
    if (const std::string problem = utf8_problem(line); !problem.empty()) reader_->fail(problem);
    return true;
  }

  void split(std::string_view line) {
    static constexpr std::string_view kCuts[] = {{"\0", 1}, "\xE2\x96\x81", "\xE2\x96\x85"};
    // The next of each, so that a line of many is still read once.
    size_t found[std::size(kCuts)];
    for (size_t k = 0; k < std::size(kCuts); ++k) found[k] = line.find(kCuts[k]);
    for (size_t at = 0; at < line.size();) {
      size_t end = line.size();
      size_t skip = 0;
      for (size_t k = 0; k < std::size(kCuts); ++k) {
        if (found[k] < at) found[k] = line.find(kCuts[k], at);
        if (found[k] >= end) continue;
        end = found[k];
        skip = kCuts[k].size();
      }
      add(line.substr(at, end - at));
      at = end + skip;
    }
    std::reverse(pending_.begin(), pending_.end());
  }

  // Adds a text without the characters above. A word, as SentencePiece counts them, begins with a
  // space or with the text.
  void add(std::string_view text) {
    if (text.size() > kMaxRunCharacters) {
      size_t begin = 0;  // of the piece
      for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find(' ', at + 1), text.size());
        if (end - begin > kMaxPieceBytes && at > begin) {
          pending_.emplace_back(text.substr(begin, at - begin));
          begin = at;
        }
        if (end - at > kMaxRunCharacters) begin = cut_word(text.substr(0, end), begin, at);
        at = end;
      }
      text.remove_prefix(begin);
    }
    if (!text.empty()) pending_.emplace_back(text);
  }

  // The word from `at` to the end of `text`, which may be too long, ends a piece from `begin` and
  // continues in further ones; returns where the last of them begins.
  size_t cut_word(std::string_view text, size_t begin, size_t at) {
    const size_t old_begin = begin;
    size_t characters = 0;
    for (at += text[at] == ' '; at < text.size(); at += utf8_character_size(text.substr(at))) {
      if (characters++ < kMaxRunCharacters) continue;
      pending_.emplace_back(text.substr(begin, at - begin));
      begin = at;
      characters = 1;
    }
    if (begin != old_begin && cut_words_++ == 0) {
      first_cut_ = reader_->name() +
                   format(", line %llu", static_cast<unsigned long long>(reader_->number()));
    }
    return begin;
  }

  std::vector<std::string> paths_;
  const TokenizerTraining& options_;
  uint64_t lines_ = 0;  // of all files
  size_t file_ = 0;
  std::unique_ptr<LineReader> reader_;
  std::vector<std::string> pending_;  // reversed
  uint64_t cut_words_ = 0;
  std::string first_cut_;
};

// A uniform sample of at most `count` lines in their order (Vitter's algorithm R): SentencePiece's
// own sampling depends on what the process trained before.
std::vector<std::string> sample_lines(LineSource& source, uint64_t count) {
  struct Line {
    uint64_t number;
    std::string text;
  };
  std::vector<Line> kept;
  SplitMix64 random(kSampleSeed);
  std::string text;
  for (uint64_t number = 0; source.next(text); ++number) {
    if (kept.size() < count) {
      kept.push_back({number, std::move(text)});
    } else if (const uint64_t slot = random.below(number + 1); slot < count) {
      kept[slot] = {number, std::move(text)};
    }
  }
  std::sort(kept.begin(), kept.end(),
            [](const Line& a, const Line& b) { return a.number < b.number; });
  std::vector<std::string> lines;
  for (Line& line : kept) lines.push_back(std::move(line.text));
  return lines;
}

class SentenceSource : public sentencepiece::SentenceIterator {
 public:
  SentenceSource(const std::vector<std::string>& paths, const TokenizerTraining& options)
      : lines_(paths, options), sampled_(options.max_sentences > 0) {
    if (sampled_) sample_ = sample_lines(lines_, static_cast<uint64_t>(options.max_sentences));
    advance();
  }
  bool done() const override { return done_; }
  void Next() override { advance(); }
  const std::string& value() const override { return value_; }
  sentencepiece::util::Status status() const override { return {}; }
  size_t count() const { return count_; }
  std::string cut_words_report() const { return lines_.cut_words_report(); }

 private:
  void advance() {
    if (sampled_) {
      done_ = count_ == sample_.size();
      if (!done_) value_ = std::move(sample_[count_]);
    } else {
      done_ = !lines_.next(value_);
    }
    count_ += done_ ? 0 : 1;
  }

  LineSource lines_;
  bool sampled_;
  std::vector<std::string> sample_;
  std::string value_;
  size_t count_ = 0;
  bool done_ = false;
};

// 256 bytes, unknown, EOS and <unk>, and something to learn.
constexpr int64_t kLeastPieces = 300, kMostPieces = 1000000;

// The number behind `words` in a message; -1: it is not there.
int64_t number_after(const std::string& message, const std::string& words) {
  const size_t at = message.find(words);
  return at == std::string::npos ? -1 : std::atoll(message.c_str() + at + words.size());
}

// Why the library failed and what to do: its own advice names options of its programs and
// vocabularies that check_options refuses.
std::string reason_of(const sentencepiece::util::Status& status) {
  const std::string whole = status.ToString();
  if (const int64_t most = number_after(whole, "Please set it to a value <= "); most >= 0) {
    const std::string has = format("it has at most %lld pieces; ", static_cast<long long>(most));
    return has + (most >= kLeastPieces ? "set --vocab-size to that or less, or use more text"
                                       : "use more text, a tokenizer has at least 300");
  }
  if (const int64_t least = number_after(whole, " vs "); least >= 0) {
    return format("its characters need at least %lld pieces; set --vocab-size to that or more",
                  static_cast<long long>(least));
  }
  // Without the source line and the condition in brackets.
  const size_t end = whole.rfind("] ");
  return end == std::string::npos ? whole : whole.substr(end + 2);
}

void check_options(const std::vector<std::string>& text_paths, const TokenizerTraining& options) {
  if (text_paths.empty()) throw DataError("no text to train a tokenizer on; give a file");
  if (options.model_type != "bpe" && options.model_type != "unigram") {
    throw DataError("tokenizer type \"" + options.model_type + "\" is neither bpe nor unigram");
  }
  if (options.vocab_size < kLeastPieces || options.vocab_size > kMostPieces) {
    throw DataError(format("vocabulary size %lld is not within 300 to 1000000",
                           static_cast<long long>(options.vocab_size)));
  }
  if (options.threads < 1 || options.threads > 1024) {
    throw DataError(format("%d threads is not within 1 to 1024", options.threads));
  }
  if (options.max_sentences < 0) throw DataError("the number of sampled lines is negative");
}

}  // namespace

Tokenizer Tokenizer::train(const std::vector<std::string>& text_paths,
                           const std::string& model_path, const TokenizerTraining& options) {
  check_options(text_paths, options);
  require_other_file(model_path, text_paths);
  OutputFile output(model_path, OutputContent::kBytes, ExitCode::kData);
  SentenceSource sentences(text_paths, options);
  if (sentences.done())
    throw DataError("no text to train a tokenizer on: " + text_paths[0] + " is empty");

  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {
          {"model_type", options.model_type},
          {"vocab_size", std::to_string(options.vocab_size)},
          {"num_threads", std::to_string(options.threads)},
          {"normalization_rule_name", "identity"},
          {"add_dummy_prefix", "false"},
          {"remove_extra_whitespaces", "false"},
          {"byte_fallback", "true"},
          {"unk_id", "0"},
          {"unk_piece", "<|unknown|>"},
          {"eos_id", "1"},
          {"bos_id", "-1"},
          {"pad_id", "-1"},
          {"user_defined_symbols", "<unk>"},
          {"max_sentence_length",
           "1073741824"},  // its default silently skips lines over 4192 bytes
          {"input_sentence_size", "0"},
          {"minloglevel", "2"},
      },
      &sentences, &model);
  check_stop("training a tokenizer");
  if (const std::string report = sentences.cut_words_report(); !report.empty()) {
    log_warning(report);
  }
  if (!status.ok()) {
    throw DataError(format("cannot train a tokenizer of %lld pieces on %zu lines: %s",
                           static_cast<long long>(options.vocab_size), sentences.count(),
                           reason_of(status).c_str()));
  }
  // Throws, and nothing is written, if the model would be refused.
  Tokenizer trained = from_bytes(model, "the trained tokenizer");
  output.write(model);
  output.commit();
  return trained;
}

}  // namespace stablemask
