#include "stablemask/infer/evaluate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/infer/evaluate_graph.h"
#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "tests/data/tiny_corpus.h"
#include "tests/dist/threads.h"
#include "tests/infer/text_shard.h"

namespace stablemask {
namespace {

constexpr int64_t kVocabulary = 48;
constexpr int32_t kEos = 2;
constexpr int64_t kTokens = 53;

ModelConfig small_model(Position position, int64_t mask_length) {
  ModelConfig config;
  config.vocab_size = kVocabulary;
  config.layers = 2;
  config.channels = 16;
  config.heads = 2;
  config.ffn_hidden = 32;
  config.position = position;
  config.init_std = 0.3;  // so that what a token sees matters
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kFixed, mask_length};
  return config;
}

class EvaluateTest : public ::testing::Test {
 protected:
  EvaluateTest() {
    model_ = nn::Transformer(small_model(Position::kRope, 24));
    model_->init_weights(5);
    for (int64_t i = 0; i < kTokens; ++i) text_.push_back((i * i * 7 + i * 3) % kVocabulary);
    shard_ = std::make_unique<Shard>(
        testing::text_shard(folder_ / "text.shard", kVocabulary, text_, {0, 20, 41}));
  }
  void TearDown() override { request_stop(0); }

  static EvalOptions options_of(int64_t window, int64_t stride, int64_t batch,
                                bool document_mask = false) {
    EvalOptions options;
    options.window = window;
    options.stride = stride;
    options.batch = batch;
    options.eos_id = kEos;
    options.document_mask = document_mask;
    return options;
  }

  Perplexity run(int64_t window, int64_t stride, int64_t batch, bool document_mask = false) {
    return evaluate(model_, *shard_, options_of(window, stride, batch, document_mask));
  }

  /// −log p(text_[begin + i]) after `inputs`, for each input: the plain definition.
  std::vector<double> nll_of(const std::vector<int64_t>& inputs, int64_t begin) {
    at::NoGradGuard no_grad;
    const at::Tensor tokens = at::tensor(inputs).unsqueeze(0);
    const at::Tensor log_p = model_->logits(tokens).squeeze(0).to(at::kDouble).log_softmax(-1);
    std::vector<double> nll;
    for (size_t i = 0; i < inputs.size(); ++i) {
      nll.push_back(-log_p[i][text_[begin + i]].item<double>());
    }
    return nll;
  }

  /// The header's definition of windows, written down a second time.
  double expected_nll(int64_t window, int64_t stride) {
    double sum = 0;
    int64_t scored = 0;
    for (int64_t begin = 0; scored < kTokens; begin += stride) {
      const int64_t end = std::min(begin + window, kTokens);
      std::vector<int64_t> inputs;
      for (int64_t i = begin; i < end; ++i) {
        const bool opens = i == 0 || (i == begin && stride == window);
        inputs.push_back(opens ? kEos : text_[i - 1]);
      }
      const std::vector<double> nll = nll_of(inputs, begin);
      for (; scored < end; ++scored) sum += nll[scored - begin];
    }
    return sum;
  }

  testing::TemporaryFolder folder_;
  nn::Transformer model_{nullptr};
  std::vector<int32_t> text_;
  std::unique_ptr<Shard> shard_;
};

TEST_F(EvaluateTest, EveryWindowAndStrideScoresEachTokenOnce) {
  for (const int64_t window : {1, 2, 7, 16, 52, 53, 54, 200}) {
    for (const int64_t stride : {int64_t{1}, int64_t{3}, window - 1, window, int64_t{0}}) {
      if (stride < 0 || stride > window) continue;
      const Perplexity result = run(window, stride, 3);
      EXPECT_EQ(result.tokens, static_cast<uint64_t>(kTokens)) << window << ", " << stride;
      const double expected = expected_nll(window, stride == 0 ? window : stride);
      EXPECT_NEAR(result.nll, expected, 1e-5 * expected) << window << ", " << stride;
      EXPECT_TRUE(result.complete);
    }
  }
}

TEST_F(EvaluateTest, SlidingByOneOverTheWholeTextIsOneFullForward) {
  std::vector<int64_t> inputs = {kEos};
  inputs.insert(inputs.end(), text_.begin(), text_.end() - 1);
  double full = 0;
  for (const double nll : nll_of(inputs, 0)) full += nll;
  EXPECT_NEAR(run(kTokens, 1, 2).nll, full, 1e-5 * full);
  EXPECT_NEAR(run(4 * kTokens, 1, 2).nll, full, 1e-5 * full);
}

TEST_F(EvaluateTest, TheBatchDoesNotMatter) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const int64_t stride : {0, 2}) {
    const double one = run(8, stride, 1).nll;
    for (const int64_t batch : {int64_t{0}, int64_t{2}, int64_t{5}, kMost}) {
      EXPECT_NEAR(run(8, stride, batch).nll, one, 1e-6 * one) << batch;
    }
  }
}

TEST_F(EvaluateTest, DocumentsAreScoredAsIfAlone) {
  // Inputs are EOS t0 t1 …: the document of token s has its first input one column further.
  double expected = 0;
  const int64_t starts[] = {0, 21, 42, kTokens};
  for (int part = 0; part < 3; ++part) {
    std::vector<int64_t> inputs;
    for (int64_t i = starts[part]; i < starts[part + 1]; ++i) {
      inputs.push_back(i == 0 ? kEos : text_[i - 1]);
    }
    // The EOS that opens the text is a document of its own: its first document starts at column 1.
    if (part == 0) {
      expected += nll_of({kEos}, 0)[0];
      inputs.erase(inputs.begin());
      for (const double nll : nll_of(inputs, 1)) expected += nll;
    } else {
      for (const double nll : nll_of(inputs, starts[part])) expected += nll;
    }
  }
  EXPECT_NEAR(run(kTokens, 0, 1, true).nll, expected, 1e-5 * expected);
}

TEST_F(EvaluateTest, RepeatsItsBits) {
  EXPECT_EQ(run(7, 3, 4).nll, run(7, 3, 4).nll);
  EXPECT_FALSE(model_->is_training());
}

TEST_F(EvaluateTest, NonsenseIsRefused) {
  EXPECT_THROW(run(0, 0, 0), ConfigError);
  EXPECT_THROW(run(8, 9, 0), ConfigError);
  EXPECT_THROW(run(8, -1, 0), ConfigError);
  EXPECT_THROW(run(8, 4, -1), ConfigError);
  EvalOptions options;
  options.window = 8;
  EXPECT_THROW(evaluate(model_, *shard_, options), ConfigError) << "no EOS";
  ModelConfig config = small_model(Position::kRope, 24);
  config.vocab_size = kVocabulary - 1;
  model_ = nn::Transformer(config);
  model_->init_weights(5);
  EXPECT_THROW(run(8, 4, 0), DataError) << "ids that the model does not have";
}

TEST_F(EvaluateTest, StopsBetweenWindows) {
  request_stop(SIGTERM);
  const Perplexity result = run(4, 0, 1);
  EXPECT_FALSE(result.complete);
  EXPECT_EQ(result.tokens, 0u);
}

/// What each of `size` processes, here threads with equal models, finds.
std::vector<Perplexity> evaluate_together(int64_t size, const ModelConfig& config,
                                          const Shard& shard, const EvalOptions& options) {
  std::vector<Perplexity> results(size);
  testing::run_processes(size, [&](const std::shared_ptr<dist::Group>& group) {
    nn::Transformer model(config);
    model->init_weights(5);
    EvalOptions shared = options;
    shared.group = group;
    results[group->rank()] = evaluate(model, shard, shared);
  });
  return results;
}

TEST_F(EvaluateTest, ProcessesFindTheBitsOfOne) {
  const struct {
    int64_t window, stride, batch;
    bool documents;
  } cases[] = {{8, 0, 1, false}, {8, 3, 2, false},           {7, 0, 3, true},
               {16, 5, 2, true}, {kTokens + 9, 0, 0, false}, {1, 0, 50, false}};
  for (const auto& [window, stride, batch, documents] : cases) {
    const Perplexity alone = run(window, stride, batch, documents);
    for (const int64_t size : {2, 3, 5}) {
      const EvalOptions options = options_of(window, stride, batch, documents);
      for (const Perplexity& result :
           evaluate_together(size, small_model(Position::kRope, 24), *shard_, options)) {
        EXPECT_EQ(result.nll, alone.nll) << size << " processes, window " << window;
        EXPECT_EQ(result.tokens, alone.tokens);
        EXPECT_EQ(result.words, alone.words);
        EXPECT_TRUE(result.complete);
      }
    }
  }
}

TEST_F(EvaluateTest, AStopInOneProcessStopsAllAfterTheSameRound) {
  EvalOptions options = options_of(4, 0, 1);
  options.progress = [](int64_t scored, int64_t) {
    if (scored >= 16) request_stop(SIGTERM);
  };
  for (const Perplexity& result :
       evaluate_together(2, small_model(Position::kRope, 24), *shard_, options)) {
    EXPECT_FALSE(result.complete);
    EXPECT_EQ(result.tokens, 16u) << "two rounds of two windows";
  }
}

TEST_F(EvaluateTest, AnErrorInOneProcessEndsTheOthers) {
  std::atomic<int> lost = 0;
  const auto work = [&](const std::shared_ptr<dist::Group>& group) {
    nn::Transformer model(small_model(Position::kRope, 24));
    model->init_weights(5);
    EvalOptions options = options_of(8, 0, 1);
    options.group = group;
    if (group->rank() == 1)
      options.progress = [](int64_t, int64_t) { throw DataError("bad page"); };
    try {
      evaluate(model, *shard_, options);
    } catch (const PeerLostError& error) {
      EXPECT_NE(std::string(error.what()).find("bad page"), std::string::npos) << error.what();
      ++lost;
    }
  };
  EXPECT_THROW(testing::run_processes(3, work), DataError);
  EXPECT_EQ(lost, 2);
}

TEST_F(EvaluateTest, ReportsProgressUpToTheWholeText) {
  EvalOptions options = options_of(16, 4, 2);
  std::vector<std::pair<int64_t, int64_t>> seen;
  options.progress = [&](int64_t scored, int64_t total) { seen.emplace_back(scored, total); };
  evaluate(model_, *shard_, options);
  ASSERT_GT(seen.size(), 2u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), std::make_pair(kTokens, kTokens));
}

TEST(EvalOptions, ComeFromTheConfig) {
  Config config;
  config.train.context = 96;
  config.data.document_mask = true;
  const EvalOptions defaults = eval_options(config, 3);
  EXPECT_EQ(defaults.window, 96);
  EXPECT_EQ(defaults.stride, 96);
  EXPECT_EQ(defaults.batch, 0);
  EXPECT_EQ(defaults.eos_id, 3);
  EXPECT_TRUE(defaults.document_mask);
  config.eval = {.window = 64, .stride = 16, .batch = 5};
  const EvalOptions stated = eval_options(config, 3);
  EXPECT_EQ(stated.window, 64);
  EXPECT_EQ(stated.stride, 16);
  EXPECT_EQ(stated.batch, 5);
}

TEST_F(EvaluateTest, AlibiBeyondTheMaskLengthToo) {
  model_ = nn::Transformer(small_model(Position::kAlibi, 4));
  model_->init_weights(6);
  const double expected = expected_nll(32, 5);
  EXPECT_NEAR(run(32, 5, 2).nll, expected, 1e-5 * expected);
}

TEST_F(EvaluateTest, ACpuRecordsNothing) {
  GraphUse graph;
  EXPECT_EQ(evaluate(model_, *shard_, options_of(4, 0, 1), graph).nll, run(4, 0, 1).nll);
  EXPECT_FALSE(graph.used);
}

/// Heads of 64 in bf16, so that the kernels of a real run serve.
class GpuEvaluateTest : public EvaluateTest {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }

  void put_on_gpu(ModelConfig config) {
    config.channels = 128;
    config.ffn_hidden = 192;
    config.init_std = 0.1;
    model_ = nn::Transformer(config);
    model_->init_weights(7);
    model_->to(at::kCUDA);
    for (auto& item : model_->named_parameters()) {
      item.value().set_data(item.value().to(at::kBFloat16));
    }
  }

  struct Pair {
    Perplexity graph, plain;
    bool recorded;
  };
  Pair both_ways(const EvalOptions& options) {
    GraphUse graph, plain{.allowed = false};
    Pair pair;
    pair.graph = evaluate(model_, *shard_, options, graph);
    pair.plain = evaluate(model_, *shard_, options, plain);
    EXPECT_FALSE(plain.used);
    pair.recorded = graph.used;
    return pair;
  }

  /// Windows with and without overlap, one and several to a batch, with and without a last batch of
  /// another shape.
  void expect_graph_equals_plain(const std::string& model) {
    struct {
      int64_t window, stride, batch;
    } const cases[] = {{4, 0, 2}, {8, 0, 1}, {13, 0, 1}, {8, 3, 2}, {16, 1, 3}, {16, 5, 2}};
    for (const auto& [window, stride, batch] : cases) {
      const Pair pair = both_ways(options_of(window, stride, batch));
      const std::string what = model + ", window " + std::to_string(window) + ", stride " +
                               std::to_string(stride) + ", batch " + std::to_string(batch);
      EXPECT_TRUE(pair.recorded) << what;
      EXPECT_EQ(pair.graph.nll, pair.plain.nll) << what;
      EXPECT_EQ(pair.graph.tokens, static_cast<uint64_t>(kTokens)) << what;
    }
  }
};

TEST_F(GpuEvaluateTest, RecordedGraphGivesTheBitsOfPlainLaunches) {
  ModelConfig config = small_model(Position::kRope, 24);
  put_on_gpu(config);
  expect_graph_equals_plain("StableMask");
  config.stable_mask.enabled = false;
  put_on_gpu(config);
  expect_graph_equals_plain("causal");
  config = small_model(Position::kAlibi, 24);
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kInfinite, 0};
  put_on_gpu(config);
  expect_graph_equals_plain("ALiBi, infinite");
}

TEST_F(GpuEvaluateTest, NothingIsRecordedWhereShapesDifferOrAreFew) {
  put_on_gpu(small_model(Position::kRope, 24));
  for (const EvalOptions& options : {options_of(4, 0, 1, /*document_mask=*/true),
                                     options_of(16, 0, 1), options_of(kTokens, 0, 0)}) {
    const Pair pair = both_ways(options);
    EXPECT_FALSE(pair.recorded) << options.window;
    EXPECT_EQ(pair.graph.nll, pair.plain.nll) << options.window;
  }
}

TEST_F(GpuEvaluateTest, FollowsTheCpu) {
  put_on_gpu(small_model(Position::kRope, 24));
  const double gpu = run(16, 1, 3).nll;
  model_->to(at::kCPU);
  for (auto& item : model_->named_parameters()) {
    item.value().set_data(item.value().to(at::kFloat));
  }
  EXPECT_NEAR(gpu, run(16, 1, 3).nll, gpu / 128);  // what rounding to bf16, 2^-8, may move
}

}  // namespace
}  // namespace stablemask
