#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/perplexity.h"
#include "tests/data/tiny_corpus.h"

namespace stablemask {
namespace {

using testing::TinyCorpus;
using testing::write_file;

Perplexity example() {
  Perplexity result;
  result.nll = 100;
  result.tokens = 50;
  result.words = 30;
  result.lines = 5;
  result.documents = 2;
  result.bytes = 200;
  result.space_words = 33;
  return result;
}

// By hand: e^2, e^(100/35), e^(100/34), e^(2·49/32), 100/(200·ln 2).
TEST(Perplexity, ConventionsByHand) {
  const Perplexity result = example();
  EXPECT_NEAR(result.token(), 7.38905610, 1e-8);
  EXPECT_NEAR(result.word(), 17.41170806, 1e-7);
  EXPECT_NEAR(result.lm_eval(), 18.93811334, 1e-7);
  EXPECT_NEAR(result.megatron(), 21.38094276, 1e-7);
  EXPECT_NEAR(result.bits_per_byte(), 0.72134752, 1e-8);
}

TEST(Perplexity, WithoutTheTextOnlyFiguresPerTokenAreDefined) {
  Perplexity result = example();
  result.text_known = false;
  for (const double figure : {result.word(), result.lm_eval(), result.bits_per_byte()}) {
    EXPECT_TRUE(std::isnan(figure));
  }
  EXPECT_NEAR(result.token(), 7.38905610, 1e-8);
  EXPECT_NEAR(result.bits_per_token(), 2.88539008, 1e-8);
  const std::string report = perplexity_report(result);
  EXPECT_NE(report.find("bits/token       2.8854"), std::string::npos) << report;
  EXPECT_EQ(report.find("word"), std::string::npos) << report;
  const nlohmann::json json = nlohmann::json::parse(perplexity_json(result));
  EXPECT_TRUE(json["word_perplexity"].is_null());
  EXPECT_TRUE(json["bits_per_byte"].is_null());
}

TEST(Perplexity, TheSameNllReads18Point70And19Point69) {
  Perplexity result;
  result.nll = std::log(18.70) * 245569;
  result.words = 241211;
  result.lines = 4358;
  result.documents = 62;
  EXPECT_EQ(result.word_count(), 245569u);
  EXPECT_EQ(result.lm_eval_count(), 241335u);
  EXPECT_NEAR(result.word(), 18.70, 1e-9);
  EXPECT_NEAR(result.lm_eval(), 19.69, 0.02);
}

TEST(Perplexity, ReportNamesEveryDenominator) {
  Perplexity result = example();
  result.tokens = 1234567;
  const std::string report = perplexity_report(result);
  EXPECT_NE(report.find("100.0000 nats over 1,234,567 tokens"), std::string::npos) << report;
  for (const char* piece : {"token ", "word ", "lm-eval ", "megatron ", "bpb ", "35 words + EOS",
                            "34 words", "32 original words", "200 bytes"}) {
    EXPECT_NE(report.find(piece), std::string::npos) << piece << " in\n" << report;
  }
  const std::string word = perplexity_report(result, "word");
  EXPECT_NE(word.find("17.4117"), std::string::npos) << word;
  EXPECT_EQ(word.find("bpb"), std::string::npos);
  EXPECT_THROW(perplexity_report(result, "words"), ConfigError);
}

TEST(Perplexity, AnUndefinedFigureIsADashWithTheReason) {
  Perplexity result = example();
  result.words = result.lines = 0;
  result.space_words = 1;
  const std::string report = perplexity_report(result);
  EXPECT_NE(report.find("word                  -   exp(NLL / 0 words + EOS)"), std::string::npos)
      << report;
  EXPECT_NE(report.find("megatron              -   exp(mean token NLL * "), std::string::npos)
      << report;
  EXPECT_NE(report.find(" / 0 original words - 1), undefined for so few words\n"),
            std::string::npos)
      << report;
  EXPECT_EQ(report.find("nan"), std::string::npos) << report;
  result.space_words = 0;
  EXPECT_EQ(perplexity_report(result).find("megatron"), std::string::npos);
  EXPECT_NE(perplexity_report(result, "megatron").find("megatron              -"),
            std::string::npos);
}

TEST(Perplexity, JsonHasEveryFigureAndNullWhereThereIsNone) {
  Perplexity result = example();
  auto json = nlohmann::json::parse(perplexity_json(result));
  EXPECT_EQ(json["nll"], 100.0);
  EXPECT_EQ(json["word_count"], 35);
  EXPECT_EQ(json["lm_eval_count"], 34);
  EXPECT_EQ(json["word_perplexity"].get<double>(), result.word());
  EXPECT_EQ(json["bits_per_byte"].get<double>(), result.bits_per_byte());
  result.space_words = 0;
  json = nlohmann::json::parse(perplexity_json(result));
  EXPECT_TRUE(json["megatron_perplexity"].is_null());
}

TEST(RecogniseText, GoldenCountsAreAsserted) {
  ShardInfo info;
  info.text_sha256 = "56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9";
  info.words = 241211;
  info.lines = 4358;
  EXPECT_EQ(recognise_text(info), "WikiText-103 test");
  info.lines = 4357;
  EXPECT_THROW(recognise_text(info), DataError);
  info.text_sha256 = std::string(64, 'a');
  EXPECT_EQ(recognise_text(info), "");
}

class CorpusTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { corpus_ = new TinyCorpus(); }
  static void TearDownTestSuite() { delete corpus_; }

  /// A shard of `text`.
  static Shard shard_of(const std::string& text) {
    write_file(corpus_->folder / "text", text);
    const Tokenizer tokenizer = Tokenizer::load(corpus_->tokenizer);
    prepare_shard(corpus_->folder / "text", corpus_->folder / "text.shard", tokenizer, {});
    return Shard::open(corpus_->folder / "text.shard");
  }

  static TinyCorpus* corpus_;
};
TinyCorpus* CorpusTest::corpus_ = nullptr;

TEST_F(CorpusTest, AuditCountsSpacesAsPythonDoes) {
  const Tokenizer tokenizer = Tokenizer::load(corpus_->tokenizer);
  const struct {
    const char* text;
    uint64_t pieces;  // len(text.strip().split(" "))
  } cases[] = {
      {" \n = Arn = \n \n Salt , wool . \n", 9},
      {"one", 1},
      {"  two words\n", 2},
      {"a  b", 3},
      {"a \n b", 3},
      {"a\nb", 1},
  };
  for (const auto& [text, pieces] : cases) {
    const TextAudit audit = audit_text(shard_of(text), tokenizer);
    EXPECT_TRUE(audit.round_trips) << text;
    EXPECT_EQ(audit.space_words, pieces) << text;
  }
}

TEST_F(CorpusTest, AuditSeesAnotherTokenizersIds) {
  const TinyCorpus other("A wholly other line of text , quite long .");
  const TextAudit audit = audit_text(Shard::open(corpus_->valid), Tokenizer::load(other.tokenizer));
  EXPECT_FALSE(audit.round_trips);
  EXPECT_THROW(unigram_baseline(Shard::open(other.train), Shard::open(corpus_->valid)), DataError);
}

TEST_F(CorpusTest, UnigramByHand) {
  const Shard train = Shard::open(corpus_->train);
  const Shard shard = shard_of("Arn\n");
  std::map<int32_t, int64_t> counts;
  for (int64_t i = 0; i < train.size(); ++i) ++counts[train.token(i)];
  double nll = 0;
  for (int64_t i = 0; i < shard.size(); ++i) {
    nll -= std::log((counts[shard.token(i)] + 1.0) / (train.size() + 400.0));
  }
  const Perplexity baseline = unigram_baseline(train, shard);
  EXPECT_NEAR(baseline.nll, nll, 1e-9);
  EXPECT_EQ(baseline.tokens, static_cast<uint64_t>(shard.size()));
  EXPECT_EQ(baseline.word_count(), 2u);
}

TEST_F(CorpusTest, AStopSignalEndsReadingWithoutAResult) {
  const Tokenizer tokenizer = Tokenizer::load(corpus_->tokenizer);
  const Shard shard = Shard::open(corpus_->valid);
  request_stop(SIGINT);
  EXPECT_THROW(audit_text(shard, tokenizer), Stopped);
  EXPECT_THROW(unigram_baseline(shard, shard), Stopped);
  request_stop(0);
}

TEST_F(CorpusTest, UnigramRefusesAnIdOutsideTheVocabulary) {
  const std::string path = corpus_->folder / "foreign.shard";
  std::string bytes = testing::read_file(corpus_->valid);
  bytes[256] = bytes[257] = '\xFF';  // the first id, a uint16; opening does not hash the payload
  write_file(path, bytes);
  try {
    unigram_baseline(Shard::open(path), Shard::open(path));
    FAIL() << "id 65535 of 400 was counted";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("foreign.shard: token id 65535"), std::string::npos)
        << error.what();
  }
}

TEST_F(CorpusTest, GenuineWikiTextHasTheGoldenCounts) {
  const char* data = std::getenv("STABLEMASK_DATA");
  if (data == nullptr) GTEST_SKIP() << "STABLEMASK_DATA is not set: no genuine WikiText here";
  const Tokenizer tokenizer = Tokenizer::load(corpus_->tokenizer);
  const struct {
    const char* split;
    const char* name;
    uint64_t words_and_lines, lm_eval, bytes;
  } cases[] = {{"test", "WikiText-103 test", 245569, 241335, 1281077},
               {"valid", "WikiText-103 validation", 217646, 0, 1142309}};
  for (const auto& golden : cases) {
    const std::string path = std::string(data) + "/wikitext-103/wiki." + golden.split + ".tokens";
    PrepareOptions options;
    options.threads = 2;
    const ShardInfo info =
        prepare_shard(path, corpus_->folder / "golden.shard", tokenizer, options);
    EXPECT_EQ(recognise_text(info), golden.name);
    Perplexity result;
    result.words = info.words;
    result.lines = info.lines;
    result.documents = info.documents;
    EXPECT_EQ(result.word_count(), golden.words_and_lines);
    EXPECT_EQ(info.bytes, golden.bytes);
    if (golden.lm_eval == 0) continue;
    EXPECT_EQ(result.lm_eval_count(), golden.lm_eval);
    const TextAudit audit = audit_text(Shard::open(corpus_->folder / "golden.shard"), tokenizer);
    EXPECT_TRUE(audit.round_trips);
    EXPECT_EQ(audit.space_words, 245566u) << "the figure Megatron-LM divides by";
  }
}

}  // namespace
}  // namespace stablemask
