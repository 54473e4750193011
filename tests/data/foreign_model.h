#pragma once

#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <sstream>
#include <string>
#include <unordered_map>

#include "tests/data/fixtures.h"

namespace stablemask::test {

using SentencePieceFlags = std::unordered_map<std::string, std::string>;

class SmallTextLines : public sentencepiece::SentenceIterator {
 public:
  SmallTextLines() { Next(); }
  bool done() const override { return done_; }
  void Next() override { done_ = !std::getline(text_, line_); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::istringstream text_{small_text()};
  std::string line_;
  bool done_ = false;
};

/// A model that SentencePiece trains with these flags on small_text.
inline std::string model_of_library(const SentencePieceFlags& flags) {
  SmallTextLines lines;
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(flags, &lines, &model);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return model;
}

/// A model of SentencePiece's defaults with `changes`, trained on small_text.
inline std::string foreign_model(const SentencePieceFlags& changes) {
  SentencePieceFlags flags = {{"model_type", "bpe"},     {"vocab_size", "360"},
                              {"byte_fallback", "true"}, {"user_defined_symbols", "a\nline,[INST]"},
                              {"minloglevel", "3"},      {"hard_vocab_limit", "false"}};
  for (const auto& [name, value] : changes) flags[name] = value;
  return model_of_library(flags);
}

/// What Llama's model has of its own.
inline SentencePieceFlags llama_flags() {
  return {{"normalization_rule_name", "identity"}, {"remove_extra_whitespaces", "false"}};
}

}  // namespace stablemask::test
