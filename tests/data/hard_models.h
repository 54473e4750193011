#pragma once

#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "stablemask/base/random.h"

namespace stablemask::test {

class GivenLines : public sentencepiece::SentenceIterator {
 public:
  explicit GivenLines(std::vector<std::string> lines) : lines_(std::move(lines)) {}
  bool done() const override { return at_ == lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  size_t at_ = 0;
};

inline std::string random_text(SplitMix64& random, const std::vector<std::string>& parts,
                               size_t count) {
  std::string text;
  for (; count > 0; --count) text += parts[random.below(parts.size())];
  return text;
}

/// A kind of text that is hard to cut, and the model of it.
struct HardModel {
  const char* name;
  std::vector<std::string> alphabet;
  std::string user_defined;  // beside <unk>

  /// A lossless model of `type`; `inner_spaces`: whether pieces may have spaces between letters.
  std::string train(const std::string& type, bool inner_spaces = true) const {
    SplitMix64 random(3);
    std::vector<std::string> lines;
    for (int i = 0; i < 60; ++i) lines.push_back(random_text(random, alphabet, 60));
    GivenLines source(lines);
    std::string bytes;
    const std::unordered_map<std::string, std::string> flags = {
        {"model_type", type},
        {"vocab_size", "340"},
        {"hard_vocab_limit", "false"},
        {"add_dummy_prefix", "false"},
        {"normalization_rule_name", "identity"},
        {"byte_fallback", "true"},
        {"remove_extra_whitespaces", "false"},
        {"unk_piece", "<|unknown|>"},
        {"split_by_whitespace", inner_spaces ? "false" : "true"},
        {"user_defined_symbols", "<unk>" + user_defined},
        {"minloglevel", "3"},
    };
    const auto status = sentencepiece::SentencePieceTrainer::Train(flags, &source, &bytes);
    EXPECT_TRUE(status.ok()) << name << ": " << status.ToString();
    return bytes;
  }
};

inline const std::vector<HardModel>& hard_models() {
  static const std::vector<HardModel> kModels = {
      {"two letters", {"a", "b"}, ""},
      {"runs", {"aaaaaaaa", "a", "b"}, ""},
      {"genome", {"A", "C", "G", "T"}, ",ACAC,CACA,GT"},
      {"spaces", {"a", " ", "  ", "b"}, ",b a"},
      {"user-defined pieces that overlap", {"a", "b", "c", "<unk>", "<un"}, ",ab,bca,cab,aab"},
      {"characters of several bytes", {"\u00E9", "\u6CB3", "\u5DDD", "a", "b"}, ""},
  };
  return kModels;
}

}  // namespace stablemask::test
