#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"
#include "tests/io/scratch.h"

namespace stablemask::test {

inline size_t entries_of(const Scratch& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder.path()), {}));
}

/// The message of the DataError that `work` must throw: one line that has `part` in it.
template <typename Work>
std::string expect_data_error(Work work, const std::string& part) {
  try {
    work();
  } catch (const DataError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  ADD_FAILURE() << "no DataError; expected one with: " << part;
  return "";
}

/// Text with enough different words to train a small tokenizer on.
inline std::string small_text() {
  static const char* const kNames[] = {"Tarn", "wold", "Emmer", "brook", "Siln", "hael", "Ovra"};
  std::string text;
  for (int i = 0; i < 400; ++i) {
    text += " The river number " + std::to_string(i * 37 % 101) +
            " , called <unk> , reaches town " + std::to_string(i * 17 % 53) +
            " after the spring thaw \u2013 or " + kNames[i % 7] + kNames[i * 3 % 5] +
            " caf\u00E9 . \n";
  }
  return text;
}

/// A tokenizer of 320 pieces, "bpe" or "unigram".
inline Tokenizer train_small(const std::string& type, const std::string& text) {
  const Scratch folder;
  TokenizerTraining training;
  training.vocab_size = 320;
  training.model_type = type;
  write_bytes(folder / "text", text);
  Tokenizer::train({folder / "text"}, folder / "model", training);
  return Tokenizer::load(folder / "model");
}

/// A tokenizer of `pieces` trained on small_text, once per process and kind.
inline const Tokenizer& small_tokenizer() {
  static const Tokenizer tokenizer = [] {
    const Scratch folder;
    TokenizerTraining training;
    training.vocab_size = 340;
    write_bytes(folder / "text", small_text());
    Tokenizer::train({folder / "text"}, folder / "model", training);
    return Tokenizer::load(folder / "model");
  }();
  return tokenizer;
}

inline std::shared_ptr<const Shard> make_shard(
    const std::string& path, const std::vector<int32_t>& tokens,
    const std::vector<size_t>& documents = {}, uint64_t vocab = 1000,
    const std::string& tokenizer = std::string(64, 'a')) {
  ShardWriter writer(path, vocab, tokenizer);
  size_t written = 0;
  const auto append_until = [&](size_t end) {
    writer.append({tokens.begin() + static_cast<std::ptrdiff_t>(written),
                   tokens.begin() + static_cast<std::ptrdiff_t>(end)});
    written = end;
  };
  for (const size_t start : documents) {
    append_until(start);
    writer.begin_document();
  }
  append_until(tokens.size());
  ShardInfo counts;
  counts.lines = 1;
  counts.words = 2;
  counts.bytes = 3 * tokens.size();
  counts.text_sha256 = std::string(64, 'b');
  writer.finish(counts);
  return std::make_shared<const Shard>(Shard::open(path));
}

/// A shard of samples of a vocabulary of 1000, with `trained` of each token.
inline std::shared_ptr<const Shard> make_samples(const std::string& path,
                                                 const std::vector<std::vector<int32_t>>& samples,
                                                 const std::vector<std::vector<bool>>& trained) {
  ShardWriter writer(path, 1000, std::string(64, 'a'));
  for (size_t i = 0; i < samples.size(); ++i) {
    writer.begin_document();
    writer.append(samples[i], trained[i]);
  }
  ShardInfo counts;
  counts.lines = counts.words = 1;
  counts.bytes = 5;
  counts.text_sha256 = std::string(64, 'b');
  counts.sample_template = "prompt";
  writer.finish(counts);
  return std::make_shared<const Shard>(Shard::open(path));
}

}  // namespace stablemask::test
