#include "stablemask/infer/score.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/ops/device.h"
#include "tests/data/tiny_corpus.h"
#include "tests/infer/literal_model.h"
#include "tests/infer/text_shard.h"
#include "tests/nn/models.h"

namespace stablemask::infer {
namespace {

using testing_models::tiny_config;
using testing_models::tiny_model;

constexpr int32_t kEos = 2;
constexpr int64_t kVocabulary = 50;

std::vector<int32_t> ids_of(int64_t count, int64_t seed = 1) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>((i * i * 7 + i * 3 + seed * 11) % kVocabulary));
  }
  return ids;
}

ScoreOptions options_of(int64_t window, int64_t stride = 0, int64_t batch = 0) {
  ScoreOptions options;
  options.window = window;
  options.stride = stride;
  options.batch = batch;
  options.eos_id = kEos;
  return options;
}

/// What the model reads and, at its end, the ids that it predicts.
struct LiteralWindow {
  std::vector<int64_t> inputs, predicted;
};

/// The windows of lm-eval's loglikelihood_rolling, after the text of its get_rolling_token_windows:
/// list slices of the ids, the prefix EOS read in front of the first window alone.
std::vector<LiteralWindow> rolling_windows(const std::vector<int32_t>& ids, int64_t most,
                                           int64_t context) {
  const auto size = static_cast<int64_t>(ids.size());
  const auto slice = [&](int64_t begin, int64_t end) {
    std::vector<int64_t> part;
    for (int64_t i = begin; i < end; ++i) part.push_back(i < 0 ? kEos : ids[i]);
    return part;
  };
  const int64_t first = std::min(most, size), step = most - context + 1;
  std::vector<LiteralWindow> windows = {{slice(-1, first - 1), slice(0, first)}};
  for (int64_t done = first; done < size;) {
    const int64_t count = std::min(size - done, step), end = done + count;
    windows.push_back({slice(end - most - 1, end - 1), slice(end - count, end)});
    done = end;
  }
  return windows;
}

/// NLL of the predictions by the fp64 model, and whether each is its likeliest id.
std::pair<double, bool> literal_score(nn::Transformer& model, const LiteralWindow& window) {
  testing_models::Literal literal(model, window.inputs);
  const at::Tensor log_p =
      at::matmul(literal.hidden.back(), literal.weight("head").t()).log_softmax(-1);
  const auto skipped = static_cast<int64_t>(window.inputs.size() - window.predicted.size());
  double nll = 0;
  bool greedy = true;
  for (size_t i = 0; i < window.predicted.size(); ++i) {
    const at::Tensor row = log_p[skipped + static_cast<int64_t>(i)];
    nll -= row[window.predicted[i]].item<double>();
    greedy &= row.argmax().item<int64_t>() == window.predicted[i];
  }
  return {nll, greedy};
}

Score score_one(nn::Transformer& model, const ScoreText& text, const ScoreOptions& options) {
  return score(model, {text}, options).front();
}

class ScoreOf : public ::testing::TestWithParam<std::tuple<Position, bool>> {
 protected:
  ScoreOf() {
    const auto [position, stable_mask] = GetParam();
    model_ = tiny_model(tiny_config(position, stable_mask, 8));
  }
  nn::Transformer model_{nullptr};
};

TEST_P(ScoreOf, ATextIsThatOfTheLiteralModelInLmEvalsWindows) {
  for (const auto& [size, window, stride] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 12, 12}, {12, 12, 12}, {13, 12, 12}, {29, 12, 12}, {29, 12, 5}, {14, 6, 1}}) {
    const std::vector<int32_t> ids = ids_of(size);
    double expected = 0;
    for (const LiteralWindow& part : rolling_windows(ids, window, window - stride + 1)) {
      expected += literal_score(model_, part).first;
    }
    const Score found = score_one(model_, {ids}, options_of(window, stride));
    EXPECT_EQ(found.tokens, size);
    EXPECT_NEAR(found.nll, expected, 1e-5 * expected) << size << ", " << window << ", " << stride;
  }
}

TEST_P(ScoreOf, AContinuationIsThatOfTheLiteralModel) {
  const std::vector<int32_t> ids = ids_of(20);
  for (const int64_t context : {0, 1, 11, 19}) {
    LiteralWindow whole;
    for (int64_t i = 0; i < 20; ++i) whole.inputs.push_back(i == 0 ? kEos : ids[i - 1]);
    whole.predicted.assign(ids.begin() + context, ids.end());
    const double expected = literal_score(model_, whole).first;
    const Score found = score_one(model_, {ids, context, true}, options_of(32));
    EXPECT_EQ(found.tokens, 20 - context);
    EXPECT_NEAR(found.nll, expected, 1e-5 * expected) << context;
    // The end of a pair that is longer than the window.
    LiteralWindow cut = whole;
    cut.inputs.erase(cut.inputs.begin(), cut.inputs.end() - 10);
    if (cut.predicted.size() > cut.inputs.size()) continue;
    const double shorter = literal_score(model_, cut).first;
    EXPECT_NEAR(score_one(model_, {ids, context, true}, options_of(10)).nll, shorter,
                1e-5 * shorter);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ScoreOf,
                         ::testing::Combine(::testing::Values(Position::kRope, Position::kAlibi),
                                            ::testing::Bool()));

class ScoreTest : public ::testing::Test {
 protected:
  void TearDown() override { request_stop(0); }
  nn::Transformer model_ = tiny_model(tiny_config(Position::kRope, true, 8));
};

TEST_F(ScoreTest, OnlyTheLikeliestContinuationIsGreedy) {
  std::vector<int32_t> ids = ids_of(6);
  for (int i = 0; i < 4; ++i) {
    std::vector<int64_t> inputs = {kEos};
    inputs.insert(inputs.end(), ids.begin(), ids.end());
    testing_models::Literal literal(model_, inputs);
    const at::Tensor logits = at::matmul(literal.hidden.back()[-1], literal.weight("head").t());
    ids.push_back(logits.argmax().item<int32_t>());
  }
  EXPECT_TRUE(score_one(model_, {ids, 6, true}, options_of(32)).greedy);
  EXPECT_FALSE(score_one(model_, {ids, 6, false}, options_of(32)).greedy) << "not asked for";
  for (size_t i = 6; i < ids.size(); ++i) {
    std::vector<int32_t> other = ids;
    other[i] = (other[i] + 1) % static_cast<int32_t>(kVocabulary);
    EXPECT_FALSE(score_one(model_, {other, 6, true}, options_of(32)).greedy) << i;
  }
  // An id that cannot be drawn is not the likeliest, whatever its logit.
  ScoreOptions few = options_of(32);
  few.vocab_size = *std::max_element(ids.begin() + 6, ids.end());
  EXPECT_FALSE(score_one(model_, {ids, 6, true}, few).greedy);
}

/// Texts and pairs of many lengths.
std::vector<ScoreText> company() {
  std::vector<ScoreText> texts;
  for (int64_t i = 0; i < 24; ++i) {
    const int64_t size = 1 + i * i * 5 % 67;
    texts.push_back({ids_of(size, i), i % 3 == 0 ? size / 2 : 0, i % 3 == 0});
  }
  return texts;
}

void expect_equal_bits(const Score& a, const Score& b) {
  EXPECT_EQ(a.nll, b.nll);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.greedy, b.greedy);
}

TEST_F(ScoreTest, HasTheSameBitsInWhateverCompanyAndBatch) {
  const std::vector<ScoreText> texts = company();
  const std::vector<Score> together = score(model_, texts, options_of(16, 9));
  for (const int64_t batch : {1, 5}) {
    for (size_t i = 0; i < texts.size(); ++i) {
      expect_equal_bits(score_one(model_, texts[i], options_of(16, 9, batch)), together[i]);
    }
  }
}

TEST_F(ScoreTest, SumsAreThoseOfEvaluateWhereTheWindowsAreTheSame) {
  const testing::TemporaryFolder folder;
  const auto evaluated = [&](const std::vector<int32_t>& ids, int64_t window, int64_t stride,
                             bool document_mask) {
    EvalOptions options;
    options.window = window;
    options.stride = stride;
    options.batch = 1;
    options.eos_id = kEos;
    options.document_mask = document_mask;
    return evaluate(model_, testing::text_shard(folder / "text.shard", kVocabulary, ids, {0}),
                    options)
        .nll;
  };
  // Texts of a window each: every window of the shard begins with EOS.
  std::vector<ScoreText> texts;
  std::vector<int32_t> all;
  for (int64_t i = 0; i < 5; ++i) {
    texts.push_back({ids_of(14, i)});
    all.insert(all.end(), texts.back().ids.begin(), texts.back().ids.end());
  }
  double sum = 0;
  for (const Score& one : score(model_, texts, options_of(14))) sum += one.nll;
  EXPECT_NEAR(sum, evaluated(all, 14, 14, false), 1e-12 * sum);
  // Sliding windows, of which the last one is whole: 20 + 5 + 5 + 5.
  const double sliding = score_one(model_, {ids_of(35)}, options_of(20, 5)).nll;
  EXPECT_NEAR(sliding, evaluated(ids_of(35), 20, 5, false), 1e-12 * sliding);
  // One document.
  ScoreOptions masked = options_of(40);
  masked.document_mask = true;
  const double document = score_one(model_, {ids_of(35)}, masked).nll;
  EXPECT_NEAR(document, evaluated(ids_of(35), 40, 40, true), 1e-12 * document);
  EXPECT_NE(document, score_one(model_, {ids_of(35)}, options_of(40)).nll);
}

TEST_F(ScoreTest, RefusesWhatItCannotScore) {
  const auto refuses = [&](const ScoreText& text, const ScoreOptions& options) {
    EXPECT_THROW(score_one(model_, text, options), Error);
  };
  refuses({{}}, options_of(8));
  refuses({{3, 4}, 2}, options_of(8));
  refuses({{3, 4}, -1}, options_of(8));
  refuses({{3, 50}}, options_of(8));
  refuses({{-1, 3}}, options_of(8));
  refuses({{3}}, options_of(0));
  refuses({{3}}, options_of(8, 9));
  refuses({{3}}, options_of(8, 0, -1));
  ScoreOptions no_eos = options_of(8);
  no_eos.eos_id = -1;
  refuses({{3}}, no_eos);
  EXPECT_TRUE(score(model_, {}, options_of(8)).empty());
  request_stop(SIGINT);
  EXPECT_THROW(score_one(model_, {{3}}, options_of(8)), Stopped);
}

TEST(EncodePair, PutsTheBoundaryWhereLmEvalDoes) {
  const testing::TinyCorpus corpus;
  const Tokenizer tokenizer = Tokenizer::load(corpus.tokenizer);
  const auto continuation = [&](const std::string& context, const std::string& text) {
    const ScoreText pair = encode_pair(tokenizer, context, text);
    EXPECT_EQ(tokenizer.decode(pair.ids), context + text);
    EXPECT_TRUE(pair.greedy);
    return tokenizer.decode({pair.ids.begin() + pair.context, pair.ids.end()});
  };
  // The encoding of the context begins that of both.
  const ScoreText pair = encode_pair(tokenizer, " Arn is a town on", " a river");
  EXPECT_EQ(pair.context, static_cast<int64_t>(tokenizer.encode(" Arn is a town on").size()));
  EXPECT_EQ(continuation(" Arn is a town on", " a river"), " a river");
  EXPECT_EQ(continuation("", " a river"), " a river");
  // White space at the end of the context counts to the continuation, line ends too.
  EXPECT_EQ(continuation(" Arn is a town on ", "a river"), " a river");
  EXPECT_EQ(continuation(" Arn\n \n", " a"), "\n \n a");
  EXPECT_EQ(continuation(" \n", "a"), " \na");
  // A token of both is the continuation's.
  for (const std::string text : {" Bel is a river", " known for iron\n"}) {
    for (size_t at = 1; at < text.size(); ++at) {
      const std::string scored = continuation(text.substr(0, at), text.substr(at));
      EXPECT_TRUE(scored.ends_with(text.substr(at))) << at;
      EXPECT_TRUE(text.ends_with(scored)) << at;
    }
  }
  EXPECT_THROW(encode_pair(tokenizer, " Arn", ""), DataError);
}

TEST(ScoreText, OtherTokenizersDivideWhereTheContextsTokensEnd) {
  const testing::TinyCorpus corpus;
  // The same pieces with add_dummy_prefix: field 3 of a second normalizer_spec, which is merged.
  const Tokenizer tokenizer = Tokenizer::from_bytes(
      Tokenizer::load(corpus.tokenizer).bytes() + "\x1a\x02\x18\x01", "model");
  ASSERT_FALSE(tokenizer.lossless());
  const ScoreText pair = encode_pair(tokenizer, "Arn is a town on ", "a river");
  EXPECT_EQ(pair.ids, tokenizer.encode("Arn is a town on a river"));
  EXPECT_EQ(pair.context, static_cast<int64_t>(tokenizer.encode("Arn is a town on").size()));
  EXPECT_EQ(encode_pair(tokenizer, "", "a river").context, 0);
}

TEST(ScoreGpu, HasTheSameBitsInWhateverCompany) {
  if (ops::gpu_count() == 0) GTEST_SKIP() << "needs a GPU";
  ModelConfig config = tiny_config(Position::kRope, true, 64);
  config.channels = 256;
  config.ffn_hidden = 512;
  config.init_std = 0.05;
  const nn::Transformer on_cpu = tiny_model(config);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    nn::Transformer model = tiny_model(config);
    for (auto& item : model->named_parameters()) {
      item.value().set_data(item.value().to(dtype));
    }
    model->to(at::Device(at::kCUDA));
    std::vector<ScoreText> texts = company();
    const std::vector<Score> together = score(model, texts, options_of(64));
    for (size_t i = 0; i < texts.size(); ++i) {
      expect_equal_bits(score_one(model, texts[i], options_of(64)), together[i]);
    }
    std::ranges::reverse(texts);
    std::vector<Score> turned = score(model, texts, options_of(64));
    std::ranges::reverse(turned);
    nn::Transformer reference = on_cpu;
    std::ranges::reverse(texts);
    const std::vector<Score> exact = score(reference, texts, options_of(64));
    const double tolerance = dtype == at::kFloat ? 1e-4 : 2e-2;
    for (size_t i = 0; i < texts.size(); ++i) {
      expect_equal_bits(turned[i], together[i]);
      EXPECT_NEAR(together[i].nll, exact[i].nll, tolerance * exact[i].nll);
    }
  }
}

}  // namespace
}  // namespace stablemask::infer
