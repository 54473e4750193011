#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "src/synth/synth.h"
#include "src/synth/synth_phrase.h"
#include "stablemask/base/sha256.h"
#include "stablemask/data/prepare.h"
#include "tests/data/fixtures.h"

namespace stablemask {
namespace {

using test::expect_data_error;

struct Corpus {
  std::string train, valid, test;
  std::string all() const { return train + valid + test; }
};

Corpus synthesize(uint64_t seed, uint64_t bytes) {
  const Scratch folder;
  synthesize_corpus(folder.path(), seed, bytes);
  EXPECT_EQ(test::entries_of(folder), 3U);
  return {read_bytes(folder / "wiki.train.tokens"), read_bytes(folder / "wiki.valid.tokens"),
          read_bytes(folder / "wiki.test.tokens")};
}

const Corpus& encyclopedia() {
  static const Corpus corpus = synthesize(1, 2'000'000);
  return corpus;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (const std::string& line : lines_of(text)) {
    std::istringstream stream(line);
    for (std::string word; stream >> word;) words.push_back(word);
    words.emplace_back("\n");
  }
  return words;
}

std::multiset<std::string> titles_of(const std::string& text) {
  std::multiset<std::string> titles;
  for (const std::string& line : lines_of(text)) {
    if (is_document_line(line)) titles.insert(line);
  }
  return titles;
}

std::string hash_of(const std::string& text) { return sha256_hex(text.data(), text.size()); }

TEST(Phrase, FillsInFactsAndChoosesAlternatives) {
  synth::Facts facts;
  facts.values = {{"river", "Sarn"}, {"km", "12"}};
  SplitMix64 random(1);
  EXPECT_EQ(synth::tell("The {river} is {km} km long .", facts, random),
            "The Sarn is 12 km long .");
  EXPECT_EQ(synth::tell("A {town} on the {river} .", facts, random), "") << "a fact is missing";
  std::set<std::string> told;
  for (int i = 0; i < 200; ++i) told.insert(synth::tell("a [b|c [d|{river}]|] e", facts, random));
  EXPECT_EQ(told, (std::set<std::string>{"a b e", "a c d e", "a c Sarn e", "a e"}));
  for (int i = 0; i < 200; ++i) told.insert(synth::tell("[x|{town}]", facts, random));
  EXPECT_EQ(told.count("x"), 1U);
  EXPECT_EQ(told.count(""), 1U) << "only the chosen alternative's facts are needed";
}

TEST(Phrase, NumbersAreWikiTexts) {
  EXPECT_EQ(synth::number(0), "0");
  EXPECT_EQ(synth::number(999), "999");
  EXPECT_EQ(synth::number(12045), "12 @,@ 045");
  EXPECT_EQ(synth::number(3000007), "3 @,@ 000 @,@ 007");
  EXPECT_EQ(synth::number_word(12), "twelve");
  EXPECT_EQ(synth::number_word(13), "13");
}

TEST(Synth, IsTheSameOnEveryMachine) {
  const Corpus corpus = synthesize(7, 300'000);
  EXPECT_EQ(hash_of(corpus.train),
            "518e88064a510b8b86749c1f2c41ac4330ed6d45b0255e6dd46bc1aa8815a022");
  EXPECT_EQ(hash_of(corpus.valid),
            "e620db0eed4081c0345b2a57c25c9933683f210d990d110e505491b91c875e54");
  EXPECT_EQ(hash_of(corpus.test),
            "dcf30d56bf349e5feb87b6d9d9cbf194a1587c0cd873ac842653b62d3a9e8ca1");
  EXPECT_NE(hash_of(synthesize(8, 300'000).train), hash_of(corpus.train));
}

TEST(Synth, HasTheSizeAskedFor) {
  for (const uint64_t bytes : {100'000, 1'000'000}) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const Corpus corpus = synthesize(seed, bytes);
      const auto near = [](const std::string& text, uint64_t wanted, double slack) {
        EXPECT_GT(static_cast<double>(text.size()), static_cast<double>(wanted) * 0.95);
        EXPECT_LT(static_cast<double>(text.size()), static_cast<double>(wanted) + slack);
      };
      near(corpus.train, bytes, 20'000);  // the last article goes beyond
      near(corpus.valid, bytes / 20, 20'000);
      near(corpus.test, bytes / 20, 20'000);
    }
  }
}

TEST(Synth, IsWikiText) {
  const std::regex heading("^( =)+ [^=]+( =)+ $");
  size_t articles = 0;
  for (const std::string& line : lines_of(encyclopedia().all())) {
    ASSERT_TRUE(line.front() == ' ' && line.back() == ' ') << line;
    ASSERT_EQ(line.find("  "), std::string::npos) << line;
    ASSERT_EQ(line.find_first_of("[]{}|_"), std::string::npos) << "a pattern's mark: " << line;
    if (line.find('=') != std::string::npos) {
      ASSERT_TRUE(std::regex_match(line, heading)) << line;
    } else if (line.size() > 1) {
      ASSERT_TRUE(line.substr(line.size() - 3) == " . " || line.substr(line.size() - 3) == " \" ")
          << line;
    }
    articles += is_document_line(line);
  }
  EXPECT_EQ(titles_of(encyclopedia().all()).size(), articles);
  EXPECT_GT(articles, 1000U);
  EXPECT_EQ(encyclopedia().train.rfind(" \n = ", 0), 0U);
  for (const char* mark :
       {" = = History = = ", " = = = The bridge = = = ", " @,@ ", " @-@ ", "<unk>"}) {
    EXPECT_NE(encyclopedia().train.find(mark), std::string::npos) << mark;
  }
}

TEST(Synth, RareWordsAreUnknown) {
  std::map<std::string, int> counts;
  for (const std::string& word : words_of(encyclopedia().train)) ++counts[word];
  for (const auto& [word, count] : counts) ASSERT_GE(count, 3) << word;
  const std::vector<std::string> held_out = words_of(encyclopedia().valid + encyclopedia().test);
  for (const std::string& word : held_out) ASSERT_TRUE(counts.count(word)) << word;
  const auto unknown = std::count(held_out.begin(), held_out.end(), "<unk>");
  EXPECT_GT(unknown, 10);
  EXPECT_LT(static_cast<double>(unknown), 0.03 * static_cast<double>(held_out.size()));
}

TEST(Synth, SplitsHaveDifferentArticles) {
  std::multiset<std::string> titles = titles_of(encyclopedia().all());
  std::map<std::string, int> repeated;
  for (const std::string& title : titles) {
    if (title.find("<unk>") == std::string::npos) ++repeated[title];
  }
  for (const auto& [title, count] : repeated) EXPECT_EQ(count, 1) << title;
  EXPECT_GT(repeated.size(), 1000U);
}

// Values that sentences of this form give to each name, over all articles and splits.
std::map<std::string, std::vector<std::string>> claims(const std::vector<const char*>& patterns) {
  std::map<std::string, std::vector<std::string>> found;
  const std::string text = encyclopedia().all();
  for (const char* pattern : patterns) {
    const std::regex expression(pattern);
    for (std::sregex_iterator it(text.begin(), text.end(), expression), end; it != end; ++it) {
      found[(*it)[1]].push_back((*it)[2]);
    }
  }
  return found;
}

void expect_one_value_each(const std::map<std::string, std::vector<std::string>>& claims) {
  size_t told_more_than_once = 0;
  for (const auto& [name, values] : claims) {
    for (const std::string& value : values) {
      EXPECT_TRUE(value == values.front() || value == "<unk>" || values.front() == "<unk>")
          << name << ": " << value << " and " << values.front();
    }
    told_more_than_once += values.size() > 1;
  }
  EXPECT_GT(told_more_than_once, 50U);
}

TEST(Synth, FactsAgreeAcrossArticles) {
  expect_one_value_each(claims({R"(([A-Z][a-z]+) was founded in (\S+) )",
                                R"(charter of ([A-Z][a-z]+) is from (\S+) ,)",
                                R"(([A-Z][a-z]+) , on the [A-Z][a-z]+ , was founded in (\S+) )"}));
  expect_one_value_each(
      claims({R"(The ([A-Z][a-z]+) rises in the [^.]*? and is (\S+) kilometres)",
              R"(The ([A-Z][a-z]+) is a river in [^.]*? , (\S+) kilometres long)"}));
  expect_one_value_each(claims({R"(bridge of ([A-Z][a-z]+) , which has (\S+) arches)",
                                R"(bridge of ([A-Z][a-z]+) over the [^.]*? , with (\S+) arches)",
                                R"(bridge of ([A-Z][a-z]+) has (\S+) arches)"}));
  expect_one_value_each(claims({R"(([A-Z][a-z]+ [A-Z][a-z]+) \( (\S+) – )",
                                R"(([A-Z][a-z]+ [A-Z][a-z]+) was born in (1\d+) in )"}));
}

TEST(Synth, ContextTellsMoreThanWordCounts) {
  const std::vector<std::string> train = words_of(encyclopedia().train);
  std::map<std::string, double> single;
  std::map<std::pair<std::string, std::string>, double> pairs;
  for (size_t i = 0; i < train.size(); ++i) {
    ++single[train[i]];
    if (i > 0) ++pairs[{train[i - 1], train[i]}];
  }
  const std::vector<std::string> test = words_of(encyclopedia().test);
  double unigram_nll = 0;
  double bigram_nll = 0;
  const double total = static_cast<double>(train.size() + single.size());
  for (size_t i = 1; i < test.size(); ++i) {
    const double unigram = (single[test[i]] + 1) / total;
    const auto pair = pairs.find({test[i - 1], test[i]});
    const double seen = pair == pairs.end() ? 0 : pair->second;
    unigram_nll -= std::log(unigram);
    bigram_nll -= std::log((seen + unigram) / (single[test[i - 1]] + 1));
  }
  const auto count = static_cast<double>(test.size() - 1);
  const double unigram = std::exp(unigram_nll / count);
  const double bigram = std::exp(bigram_nll / count);
  EXPECT_GT(unigram, 150) << "too few words to be a text";
  EXPECT_LT(bigram, unigram / 6);
  EXPECT_GT(bigram, 5) << "one could learn it by heart";
}

TEST(Synth, RefusesWhatItCannotDo) {
  const Scratch folder;
  expect_data_error([&] { synthesize_corpus(folder.path(), 1, 1000); }, "is not within");
  write_bytes(folder / "file", "");
  expect_data_error([&] { synthesize_corpus(folder / "file", 1, 100'000); }, "cannot create");
  EXPECT_EQ(test::entries_of(folder), 1U);
}

}  // namespace
}  // namespace stablemask
