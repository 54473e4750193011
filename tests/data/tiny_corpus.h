#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "stablemask/data/prepare.h"
#include "stablemask/data/tokenizer.h"

/// A corpus small enough for tests, with its tokenizer and shards.
namespace stablemask::testing {

/// A fresh folder, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = ::testing::TempDir() + "/stablemask-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

/// Articles in WikiText's format about `towns` towns; `extra` is one more line of the first one.
inline std::string tiny_text(int towns, const std::string& extra = "") {
  const char* const names[] = {"Arn", "Bel", "Cor", "Dun", "Elm", "Fen", "Gil"};
  const char* const goods[] = {"salt", "wool", "iron"};
  std::string text;
  for (int i = 0; i < towns; ++i) {
    const std::string name = names[i * 5 % 7];
    text += " \n = " + name + " = \n \n";
    text += " " + name + " is a town on a river , known for " + goods[i % 3] + " . \n";
    if (i == 0 && !extra.empty()) text += " " + extra + " \n";
    text += " The river of " + name + " carries " + goods[i % 3] + " and <unk> to the sea . \n";
  }
  return text;
}

/// Tokenizer and shards in one folder, made once per process.
struct TinyCorpus {
  explicit TinyCorpus(const std::string& extra = "") {
    write_file(folder / "train.txt", tiny_text(40, extra));
    write_file(folder / "valid.txt", tiny_text(4));
    TokenizerTraining training;
    training.vocab_size = 400;
    Tokenizer::train({folder / "train.txt"}, tokenizer, training);
    const Tokenizer loaded = Tokenizer::load(tokenizer);
    prepare_shard(folder / "train.txt", train, loaded, {});
    prepare_shard(folder / "valid.txt", valid, loaded, {});
  }

  TemporaryFolder folder;
  std::string tokenizer = folder / "tokenizer.model";
  std::string train = folder / "train.shard";
  std::string valid = folder / "valid.shard";
};

}  // namespace stablemask::testing
