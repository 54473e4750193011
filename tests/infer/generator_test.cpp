#include "stablemask/infer/generator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "src/infer/decoding.h"
#include "src/infer/scheduler.h"
#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "tests/infer/generator_texts.h"
#include "tests/nn/models.h"

namespace stablemask::infer {
namespace {

using testing::add_into;
using testing::expect_full_forward;
using testing::greedy;
using testing::run_all;
using testing::sampled;
using testing::Text;
using testing_models::tiny_config;
using testing_models::tiny_model;

std::vector<int32_t> prompt_of(int64_t length, int64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i)
    ids.push_back(static_cast<int32_t>((i * 7 + seed * 13) % 50));
  return ids;
}

nn::Transformer usual_model() { return tiny_model(tiny_config(Position::kRope, true)); }

enum class Mask { kCausal, kStable, kLearnable };

class EveryDecoding
    : public ::testing::TestWithParam<std::tuple<Position, Mask, int64_t, int64_t>> {};

/// Unequal prompts and lengths, more texts than run at a time, past the mask length 16 and, with a
/// window of 7, several times around the ring.
TEST_P(EveryDecoding, EqualsTheFullForwardTokenByToken) {
  const auto [position, mask, window, kv_heads] = GetParam();
  ModelConfig config = tiny_config(position, mask != Mask::kCausal);
  config.stable_mask.learnable = mask == Mask::kLearnable;
  config.window = window;
  config.kv_heads = kv_heads;
  const nn::Transformer model = tiny_model(config);
  std::vector<GenerateRequest> requests;
  for (const auto& [prompt, length] :
       {std::pair<int64_t, int64_t>{1, 24}, {5, 3}, {19, 9}, {40, 1}, {2, 11}, {8, 17}}) {
    requests.push_back(greedy(prompt_of(prompt, length), length));
    requests.back().logprobs = 3;
  }
  const std::vector<Text> texts = run_all(model, requests, 3);
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(texts[i].finish(), Finish::kLength);
    expect_full_forward(model, requests[i], texts[i], 2e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Generator, EveryDecoding,
    ::testing::Combine(::testing::Values(Position::kRope, Position::kAlibi, Position::kNone),
                       ::testing::Values(Mask::kCausal, Mask::kStable, Mask::kLearnable),
                       ::testing::Values(0, 7), ::testing::Values(4, 2)));

TEST(Generator, OtherPartsOfAModelDecodeAsTheFullForward) {
  const auto check = [](void (*change)(ModelConfig&)) {
    ModelConfig config = tiny_config(Position::kRope, true);
    change(config);
    const nn::Transformer model = tiny_model(config);
    std::vector<GenerateRequest> requests = {greedy(prompt_of(6, 1), 20), greedy({3}, 14)};
    for (GenerateRequest& request : requests) request.logprobs = 0;
    const std::vector<Text> texts = run_all(model, requests, 2);
    for (size_t i = 0; i < texts.size(); ++i) {
      expect_full_forward(model, requests[i], texts[i], 2e-4);
    }
  };
  check([](ModelConfig& c) { c.qk_norm = true; });
  check([](ModelConfig& c) { c.ffn = FfnKind::kGelu; });
  check([](ModelConfig& c) { c.norm = NormKind::kLayer; });
  check([](ModelConfig& c) { c.tied_head = true; });
  check([](ModelConfig& c) { c.rope_scaling.factor = 4; });
  check([](ModelConfig& c) { c.rope_dims = 4; });
  check([](ModelConfig& c) { c.head_dim = 16; });
  check([](ModelConfig& c) { c.stable_mask.beyond = BeyondMask::kNone; });
  check([](ModelConfig& c) { c.stable_mask.mask_length = {MaskLengthSpec::Kind::kInfinite, 0}; });
  for (const testing_models::Family& family : testing_models::kFamilies) check(family.change);
}

/// Settings of each kind, in the same batches.
std::vector<GenerateRequest> varied_requests() {
  std::vector<GenerateRequest> requests;
  for (int64_t i = 0; i < 8; ++i) requests.push_back(sampled(prompt_of(1 + i % 4, i), 9 + i, i));
  requests[1].settings.top_k = 5;
  requests[2].settings.top_p = 0.5;
  requests[3].settings.min_p = 0.2;
  requests[4].settings.repetition_penalty = 1.7;
  requests[5].settings.temperature = 0;
  requests[6].settings.temperature = 0.5;
  requests[7].settings.temperature = 0;
  requests[7].settings.repetition_penalty = 3;
  return requests;
}

TEST(Generator, ATextDoesNotDependOnWhatRunsBesideIt) {
  const nn::Transformer model = usual_model();
  const std::vector<GenerateRequest> requests = varied_requests();
  std::vector<std::vector<int32_t>> alone;
  for (const GenerateRequest& request : requests) {
    alone.push_back(run_all(model, {request}, 1)[0].ids());
  }
  for (const int64_t max_batch : {1, 2, 3, 8, 20}) {
    const std::vector<Text> texts = run_all(model, requests, max_batch);
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(texts[i].ids(), alone[i]) << i << " of " << max_batch;
    }
  }
}

/// As on a GPU: the ids of a step are read after the next step has been launched, so that it draws
/// an id in vain for each text that ends early, and a text that follows takes the row meanwhile.
TEST(Decoding, DrawsTheSameWhenIdsAreReadOneStepLate) {
  const nn::Transformer model = usual_model();
  std::vector<GenerateRequest> requests = varied_requests();
  const std::vector<Text> usual = run_all(model, requests, 3);
  std::vector<std::vector<int32_t>> expected, found(requests.size());
  Scheduler scheduler(3);
  for (size_t i = 0; i < requests.size(); ++i) {
    expected.push_back(usual[i].ids());
    if (i % 2 == 0) expected[i].resize(5);
    requests[i].emit = [&found, i](const DrawnToken& token) {
      found[i].push_back(token.id);
      return i % 2 != 0 || found[i].size() < 5;
    };
    scheduler.add(requests[i]);
  }
  const at::NoGradGuard no_grad;
  Decoding decoding(model, 3, 32, 50, false);
  std::optional<LaunchedStep> unread;
  int64_t drawn = 0, read = 0;
  do {
    scheduler.begin();
    for (const SequencePtr& sequence : scheduler.to_prefill()) decoding.prefill({sequence});
    const std::optional<LaunchedStep> before = std::exchange(unread, std::nullopt);
    if (const auto sequences = scheduler.to_decode(); !sequences.empty()) {
      unread = decoding.launch(sequences);
      drawn += static_cast<int64_t>(sequences.size());
    }
    for (size_t slot = 0; before && slot < before->sequences.size(); ++slot) {
      read += before->sequences[slot]->ended ? 0 : 1;
      scheduler.deliver(before->sequences[slot], before->token(static_cast<int64_t>(slot)));
    }
  } while (scheduler.running() + scheduler.waiting() > 0);
  EXPECT_EQ(found, expected);
  EXPECT_EQ(drawn - read, 4) << "one in vain for each text that ends early";
}

TEST(Generator, SettingsChangeTheText) {
  const nn::Transformer model = usual_model();
  const auto text = [&](auto change) {
    GenerateRequest request = sampled({7, 8}, 40, 1);
    change(request.settings);
    return run_all(model, {request}, 1)[0].ids();
  };
  const auto usual = text([](GenerateConfig&) {});
  EXPECT_EQ(usual, text([](GenerateConfig&) {}));
  EXPECT_NE(usual, text([](GenerateConfig& c) { c.seed = 2; }));
  EXPECT_EQ(text([](GenerateConfig& c) { c.top_k = 1; }),
            text([](GenerateConfig& c) { c.temperature = 0; }));
  EXPECT_EQ(text([](GenerateConfig& c) { c.min_p = 1; }),
            text([](GenerateConfig& c) { c.temperature = 0; }));
  auto unlike = text([](GenerateConfig& c) {
    c.temperature = 0;
    c.repetition_penalty = 1e6;
  });
  EXPECT_EQ(std::ranges::count(unlike, 7) + std::ranges::count(unlike, 8), 0);
  std::ranges::sort(unlike);
  EXPECT_EQ(std::ranges::unique(unlike).size(), 0u) << "an id was repeated";
}

TEST(Generator, EndsAtAStopIdAtTheCallersWishAndAtItsLength) {
  const nn::Transformer model = usual_model();
  const std::vector<int32_t> whole = run_all(model, {greedy({7}, 12)}, 1)[0].ids();
  GenerateRequest stops = greedy({7}, 12), refuses = greedy({7}, 12);
  stops.stop_ids = {49, whole[5]};
  int64_t seen = 0;
  refuses.emit = [&seen](const DrawnToken&) { return ++seen < 3; };
  const std::vector<Text> texts = run_all(model, {stops, refuses, greedy({7}, 2)}, 3);
  EXPECT_EQ(texts[0].finish(), Finish::kStop);
  const auto end = std::ranges::find_first_of(whole, stops.stop_ids);
  EXPECT_EQ(texts[0].ids(), std::vector<int32_t>(whole.begin(), end + 1));
  EXPECT_EQ(texts[1].finish(), Finish::kStop);
  EXPECT_EQ(texts[1].tokens.size(), 3u);
  EXPECT_EQ(texts[2].finish(), Finish::kLength);
  EXPECT_EQ(texts[2].tokens.size(), 2u);
}

TEST(Generator, FirstIdsBoundTheFirstDrawOnly) {
  const nn::Transformer model = usual_model();
  const auto ids = [&](std::vector<int32_t> first_ids) {
    GenerateRequest request = greedy({7, 3}, 6);
    request.first_ids = std::move(first_ids);
    return run_all(model, {greedy({1}, 9), request, greedy({2}, 3)}, 3)[1].ids();
  };
  const std::vector<int32_t> free = ids({});
  EXPECT_EQ(ids({free[0], 11}), free);
  const int32_t other = free[0] == 20 ? 21 : 20;
  const std::vector<int32_t> forced = ids({other});
  EXPECT_EQ(forced[0], other);
  const auto rest = run_all(model, {greedy({7, 3, other}, 5)}, 1)[0].ids();
  EXPECT_EQ(std::vector<int32_t>(forced.begin() + 1, forced.end()), rest);
}

TEST(Generator, CallbacksMayAddAndCancel) {
  const nn::Transformer model = usual_model();
  Generator generator(model, {.max_batch = 2, .capacity = 40});
  Text first, second, third, waiting;
  uint64_t cancelled = 0, never = 0;
  GenerateRequest adds = greedy({7}, 10), itself = greedy({9}, 30);
  adds.emit = [&](const DrawnToken&) {
    if (first.tokens.size() == 2) add_into(third, generator, greedy({7}, 10));
    if (first.tokens.size() == 4) generator.cancel(never);
    return true;
  };
  itself.emit = [&](const DrawnToken&) {
    if (second.tokens.size() == 5) generator.cancel(cancelled);
    return true;
  };
  add_into(first, generator, adds);
  cancelled = add_into(second, generator, itself);
  never = add_into(waiting, generator, greedy({4}, 5));
  EXPECT_EQ(generator.waiting(), 3);
  while (generator.step()) EXPECT_LE(generator.running(), 2);
  EXPECT_EQ(first.finish(), Finish::kLength);
  EXPECT_EQ(second.finish(), Finish::kCancelled);
  EXPECT_EQ(second.tokens.size(), 5u);
  EXPECT_EQ(waiting.finish(), Finish::kCancelled);
  EXPECT_TRUE(waiting.tokens.empty());
  EXPECT_EQ(third.finish(), Finish::kLength);
  EXPECT_EQ(third.ids(), first.ids()) << "in a row that another text has used";
  for (const Text* text : {&first, &second, &third, &waiting}) {
    EXPECT_EQ(text->outcomes.size(), 1u);
  }
  generator.cancel(cancelled);
  generator.cancel(1000);
  EXPECT_FALSE(generator.step());
}

TEST(Generator, NamesALogitThatIsNotFiniteAndContinuesTheOthers) {
  nn::Transformer model = usual_model();
  const std::vector<int32_t> healthy = run_all(model, {greedy({1, 2}, 12)}, 1)[0].ids();
  const std::vector<int32_t> ids = run_all(model, {greedy({7}, 12)}, 1)[0].ids();
  // An id of the second text that the first lacks.
  size_t at = 0;
  while (std::ranges::count(healthy, ids[at]) > 0) ASSERT_LT(++at, ids.size());
  const at::NoGradGuard no_grad;
  model->named_parameters()["embedding"][ids[at]].fill_(NAN);
  const std::vector<Text> texts = run_all(model, {greedy({7}, 12), greedy({1, 2}, 12)}, 2);
  EXPECT_EQ(texts[0].finish(), Finish::kNonFinite);
  EXPECT_EQ(texts[0].tokens.size(), at + 1);
  const std::string expected =
      "generated token " + std::to_string(at + 2) + ": the logit of id 0 is nan; ";
  EXPECT_EQ(texts[0].outcomes[0].error.substr(0, expected.size()), expected);
  EXPECT_EQ(texts[1].finish(), Finish::kLength);
  EXPECT_EQ(texts[1].ids(), healthy);
}

TEST(Generator, NeverDrawsAPaddingId) {
  nn::Transformer model = usual_model();
  const at::NoGradGuard no_grad;
  model->head_weight().narrow(0, 40, 10).copy_(model->head_weight().narrow(0, 0, 10) * 100);
  Generator generator(model, {.max_batch = 1, .capacity = 60, .vocab_size = 40});
  Text text;
  GenerateRequest request = sampled({45}, 50, 3);  // a prompt may have any id of the model
  request.logprobs = 50;
  add_into(text, generator, request);
  generator.run();
  EXPECT_LT(std::ranges::max(text.ids()), 40);
  EXPECT_EQ(text.tokens[0].top.size(), 40u);
  double sum = 0;
  for (const auto& [id, logprob] : text.tokens[0].top) sum += std::exp(logprob);
  EXPECT_NEAR(sum, 1, 1e-5);
}

TEST(Generator, AStopSignalInterruptsRun) {
  const nn::Transformer model = usual_model();
  Generator generator(model, {.max_batch = 1, .capacity = 30});
  Text text;
  GenerateRequest request = greedy({7}, 20);
  request.emit = [&](const DrawnToken&) {
    if (text.tokens.size() == 4) request_stop(15);
    return true;
  };
  add_into(text, generator, request);
  generator.run();
  EXPECT_EQ(text.tokens.size(), 4u);
  EXPECT_TRUE(text.outcomes.empty());
  EXPECT_EQ(generator.running(), 1);
  request_stop(0);
  generator.run();
  EXPECT_EQ(text.ids(), run_all(model, {greedy({7}, 20)}, 1)[0].ids());
}

TEST(Generator, RefusesOptionsAndRequestsOutsideTheirRanges) {
  const nn::Transformer model = usual_model();
  EXPECT_THROW(Generator(model, {.max_batch = 0, .capacity = 8}), ConfigError);
  EXPECT_THROW(Generator(model, {.max_batch = 1}), ConfigError);
  EXPECT_THROW(Generator(model, {.max_batch = 1, .capacity = 8, .vocab_size = 51}), ConfigError);
  ModelConfig literal = tiny_config(Position::kRope, true);
  literal.stable_mask.mask_length = {MaskLengthSpec::Kind::kSequence, 0};
  EXPECT_THROW(Generator(tiny_model(literal), {.max_batch = 1, .capacity = 8}), ConfigError);

  Generator generator(model, {.max_batch = 1, .capacity = 8, .vocab_size = 40});
  const auto refusal = [&](auto change) -> std::string {
    GenerateRequest request = greedy({7, 45, 3}, 5);
    change(request);
    try {
      generator.add(request);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal([](GenerateRequest&) {}), "");
  EXPECT_NE(refusal([](GenerateRequest& r) {
              r.prompt.push_back(1);
            }).find("a prompt of 4 tokens and max_tokens 5 are more than the capacity of 8"),
            std::string::npos);
  EXPECT_NE(refusal([](GenerateRequest& r) { r.prompt[0] = 50; }).find("id 50 of the prompt"),
            std::string::npos);
  EXPECT_NE(refusal([](GenerateRequest& r) { r.prompt[0] = -1; }), "");
  EXPECT_NE(refusal([](GenerateRequest& r) { r.prompt.clear(); }), "");
  EXPECT_NE(refusal([](GenerateRequest& r) { r.first_ids = {40}; }).find("first_ids"),
            std::string::npos);
  EXPECT_NE(refusal([](GenerateRequest& r) { r.stop_ids = {-1}; }).find("stop_ids"),
            std::string::npos);
  EXPECT_NE(refusal([](GenerateRequest& r) { r.logprobs = -2; }), "");
  EXPECT_NE(refusal([](GenerateRequest& r) { r.settings.max_tokens = 0; }), "");
  EXPECT_NE(refusal([](GenerateRequest& r) { r.settings.min_p = 1.5; }).find("min_p"),
            std::string::npos);
  EXPECT_NE(refusal([](GenerateRequest& r) {
              r.settings.repetition_penalty = 0;
            }).find("repetition_penalty"),
            std::string::npos);
  EXPECT_EQ(generator.waiting(), 1);
}

TEST(Scheduler, GivesRowsInOrderAndUsesThemAgain) {
  Scheduler scheduler(2);
  std::vector<uint64_t> ended;
  const auto add = [&](int64_t max_tokens) {
    GenerateRequest request = greedy({1}, max_tokens);
    const uint64_t number = ended.size() + 100;
    request.done = [&ended, number](const Outcome&) { ended.push_back(number); };
    return scheduler.add(std::move(request));
  };
  for (int64_t i = 0; i < 3; ++i) add(2);
  scheduler.begin();
  const std::vector<SequencePtr> running = scheduler.to_decode();
  ASSERT_EQ(running.size(), 2u);
  EXPECT_EQ(running[0]->number, 1u);
  EXPECT_NE(running[0]->row, running[1]->row);
  EXPECT_EQ(scheduler.waiting(), 1);
  running[0]->launched = 2;  // both of its ids are under way
  EXPECT_EQ(scheduler.to_decode(), std::vector<SequencePtr>{running[1]});
  scheduler.deliver(running[0], {5, 0, {}});
  EXPECT_EQ(running[0]->last, 5);
  EXPECT_TRUE(ended.empty());
  scheduler.deliver(running[0], {6, 0, {}});
  EXPECT_EQ(ended.size(), 1u);
  scheduler.deliver(running[0], {7, 0, {}});
  EXPECT_EQ(running[0]->last, 6) << "an id drawn after the end";
  scheduler.begin();
  EXPECT_EQ(scheduler.to_decode().back()->row, running[0]->row);
  EXPECT_EQ(scheduler.waiting(), 0);
}

}  // namespace
}  // namespace stablemask::infer
