#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/base/stop.h"
#include "stablemask/config/config.h"
#include "stablemask/data/prepare.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/train/trainer.h"

/// Runs small enough for tests: a corpus of one grammar, a model of a few thousand weights.
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

/// 64 sequences of 16 tokens make an epoch of exactly eight steps where the corpus has more.
inline nlohmann::json tiny_json(const TinyCorpus& corpus, const std::string& out) {
  return {
      {"model", {{"layers", 2}, {"channels", 16}, {"heads", 2}, {"ffn_hidden", 32}}},
      {"data",
       {{"train", {corpus.train}}, {"valid", corpus.valid}, {"tokenizer", corpus.tokenizer}}},
      {"train",
       {{"out", out},
        {"device", "cpu"},
        {"threads", 1},
        {"context", 16},
        {"batch", 8},
        {"micro_batch", 4},
        {"steps", 12},
        {"log_every", 1}}},
      {"optimizer", {{"lr", 0.01}}},
      {"schedule", {{"warmup_steps", 2}}},
  };
}

inline Config tiny_config(const TinyCorpus& corpus, const std::string& out) {
  return parse_config(tiny_json(corpus, out).dump(), "tiny");
}

inline RunOptions quiet_options(ResumePolicy resume = ResumePolicy::kAuto) {
  RunOptions options;
  options.resume = resume;
  options.quiet = true;
  return options;
}

/// Trains to the end.
inline RunResult train(const Config& config, const RunOptions& options = quiet_options()) {
  return Trainer(config, options).run();
}

/// The metrics file, line by line.
inline std::vector<nlohmann::json> metrics_of(const std::string& run) {
  std::ifstream file(run + "/metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// Bytes of every tensor, model and optimizer.
inline std::map<std::string, std::string> tensors_of(const Checkpoint& checkpoint) {
  std::map<std::string, std::string> bytes;
  const auto add = [&](const SafetensorsFile& file) {
    for (const auto& [name, view] : file.tensors()) {
      bytes[name].assign(static_cast<const char*>(view.data), view.bytes());
    }
  };
  add(checkpoint.model);
  if (checkpoint.optimizer) add(*checkpoint.optimizer);
  return bytes;
}

inline std::map<std::string, std::string> tensors_of(const std::string& folder) {
  return tensors_of(load_checkpoint(resolve_checkpoint(folder)));
}

}  // namespace stablemask::testing
