// Finetuning on instruction data: the loss is that of completions alone.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "stablemask/base/log.h"
#include "stablemask/base/random.h"
#include "stablemask/data/packed_samples.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/generate.h"
#include "stablemask/infer/load.h"
#include "stablemask/infer/perplexity.h"
#include "stablemask/ops/device.h"
#include "stablemask/train/trainer.h"
#include "tests/data/fixtures.h"
#include "tests/train/steps.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using testing::metrics_of;
using testing::TemporaryFolder;
using testing::TinyCorpus;
using testing_steps::TinyTraining;

/// The prompt is six random letters, the completion its last one in upper case, three times.
std::string puzzles(uint64_t seed, int count, const char* form) {
  std::string lines;
  for (int i = 0; i < count; ++i) {
    std::string prompt;
    for (uint64_t k = 0; k < 6; ++k) {
      prompt += static_cast<char>('a' + mix64(seed + static_cast<uint64_t>(i) * 8 + k) % 8);
    }
    const char answer = static_cast<char>(prompt.back() - 'a' + 'A');
    lines += format(form, prompt.c_str(), answer, answer, answer);
  }
  return lines;
}

constexpr const char* kSample = "{\"prompt\": \"%s\", \"completion\": \"%c%c%c\"}\n";
constexpr const char* kDocument = "{\"text\": \"%s%c%c%c\"}\n";

std::string prepared(const TinyCorpus& corpus, const TemporaryFolder& folder, const char* name,
                     const std::string& jsonl) {
  const std::string path = folder / name;
  testing::write_file(path + ".jsonl", jsonl);
  prepare_shard(path + ".jsonl", path, Tokenizer::load(corpus.tokenizer), {});
  return path;
}

Config puzzle_config(const TinyCorpus& corpus, const std::string& train, const std::string& valid,
                     const std::string& out) {
  nlohmann::json json = testing::tiny_json(corpus, out);
  json["data"]["train"] = {train};
  json["data"]["valid"] = valid;
  json["train"]["context"] = 32;
  json["train"]["steps"] = 80;
  json["optimizer"]["lr"] = 0.02;
  return parse_config(json.dump(), "puzzles");
}

TEST(Instruction, CompletionsAreLearnedAndPromptsAreNot) {
  const TinyCorpus corpus;
  const TemporaryFolder folder;
  const std::string train = prepared(corpus, folder, "train", puzzles(1, 400, kSample));
  const std::string valid = prepared(corpus, folder, "valid", puzzles(1 << 20, 40, kSample));
  const Config config = puzzle_config(corpus, train, valid, folder / "run");
  const RunResult result = testing::train(config);
  EXPECT_LT(result.last_loss, 0.05);
  EXPECT_LT(result.valid_loss, 0.05);
  const auto last = metrics_of(folder / "run").back();
  EXPECT_FALSE(last.contains("valid_word_ppl"));
  // Three letters and end-of-text of each sample, which has at least as many other positions.
  const auto targets = last["tokens"].get<int64_t>();
  EXPECT_EQ(targets % 4, 0);
  EXPECT_LT(targets, 80 * 8 * 32 / 2);
  // The run is recorded as one with document masks.
  EXPECT_NE(testing::read_file(folder / "run/config.json").find("\"document_mask\": true"),
            std::string::npos);

  // It answers and stops.
  LoadedModel loaded = load_model(folder / "run", {.device = DeviceKind::kCpu});
  GenerateConfig greedy;
  greedy.temperature = 0;
  const int32_t end = loaded.tokenizer.end_of_text_id();
  const std::vector<int32_t> ids =
      generate(loaded.model, prompt_ids(loaded.tokenizer, "gabbcf", "prompt"), greedy,
               {.vocab_size = loaded.tokenizer.vocab_size(), .stop_id = end});
  EXPECT_EQ(loaded.tokenizer.decode(ids), "FFF");
  EXPECT_EQ(ids.back(), end);

  // The same letters as documents: the random ones cost ln 8 each, which no training removes.
  const std::string documents = prepared(corpus, folder, "text", puzzles(1, 400, kDocument));
  const RunResult whole =
      testing::train(puzzle_config(corpus, documents, documents, folder / "whole"));
  EXPECT_GT(whole.last_loss, 0.5);
}

TEST(InstructionGpu, CompletionsAreScoredAsOnTheCpu) {
  if (ops::gpu_count() < 1) GTEST_SKIP() << "needs a GPU";
  const TinyCorpus corpus;
  const TemporaryFolder folder;
  const std::string train = prepared(corpus, folder, "train", puzzles(1, 400, kSample));
  const std::string valid = prepared(corpus, folder, "valid", puzzles(1 << 20, 40, kSample));
  Config config = puzzle_config(corpus, train, valid, folder / "run");
  config.train.steps = 15;
  const RunResult result = testing::train(config);
  LoadedModel loaded = load_model(folder / "run", {.device = DeviceKind::kCuda});
  const Perplexity scored =
      evaluate(loaded.model, Shard::open(valid), eval_options(loaded.config, loaded.tokenizer));
  EXPECT_NEAR(scored.nll / static_cast<double>(scored.tokens), result.valid_loss,
              0.02 * result.valid_loss + 0.01);
}

TEST(Instruction, PackingDoesNotChangeTheLikelihoodOfASample) {
  const TinyCorpus corpus;
  const TemporaryFolder folder;
  const std::string path = prepared(corpus, folder, "some", puzzles(5, 7, kSample));
  const Shard shard = Shard::open(path);
  Config config = puzzle_config(corpus, path, path, folder / "run");
  config.model.vocab_size = 400;
  resolve(config);
  nn::Transformer model = testing_models::tiny_model(config.model);
  model->eval();
  EvalOptions options = eval_options(config, 0);
  const Perplexity packed = evaluate(model, shard, options);
  EXPECT_EQ(packed.tokens, shard.info().trained);
  EXPECT_EQ(packed.samples.samples, 7);
  options.batch = 1;
  EXPECT_EQ(evaluate(model, shard, options).nll, packed.nll);

  // Each sample alone, by the logits.
  double nll = 0;
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < 7; ++i) {
    const int64_t begin = shard.document_starts()[i];
    const int64_t end = i < 6 ? shard.document_starts()[i + 1] : shard.size();
    std::vector<int64_t> ids(static_cast<size_t>(end - begin));
    shard.read(begin, end - begin, ids.data());
    const std::vector<bool> trained = shard.read_trained(begin, end - begin);
    const at::Tensor logits =
        model->logits(at::tensor(ids, at::kLong).view({1, -1})).to(at::kDouble).log_softmax(-1)[0];
    for (size_t k = 1; k < ids.size(); ++k) {
      if (trained[k]) nll -= logits[static_cast<int64_t>(k) - 1][ids[k]].item<double>();
    }
  }
  EXPECT_NEAR(packed.nll, nll, 1e-5 * nll);

  EXPECT_TRUE(std::isnan(packed.word()) && std::isnan(packed.bits_per_byte()));
  const std::string report = perplexity_report(packed);
  EXPECT_NE(report.find("tokens of completions\ntoken "), std::string::npos) << report;
  EXPECT_EQ(report.find("words"), std::string::npos) << report;
  options.window = options.stride = 2;
  EXPECT_THROW(evaluate(model, shard, options), DataError);
}

/// NLL of the targets in the first `rows` packed rows, each sample alone, and their number.
std::pair<double, uint64_t> likelihood_of_rows(nn::Transformer& model, const Shard& shard,
                                               int64_t T, int64_t rows) {
  at::NoGradGuard no_grad;
  const PackedSamples packed({&shard}, T);
  double nll = 0;
  uint64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) {
    Batch batch;
    batch.rows = 1;
    batch.columns = T;
    for (auto* values : {&batch.tokens, &batch.targets, &batch.document_start}) values->resize(T);
    packed.fill(row, 0, batch);
    for (int64_t begin = 0, end = 0; begin < T; begin = end) {
      while (end < T && batch.document_start[end] == begin) ++end;
      const std::vector<int64_t> ids(batch.tokens.begin() + begin, batch.tokens.begin() + end);
      const at::Tensor scores = model->logits(at::tensor(ids, at::kLong).view({1, -1}))
                                    .to(at::kDouble)
                                    .log_softmax(-1)[0];
      for (int64_t k = begin; k < end; ++k) {
        if (batch.targets[k] == kIgnoreTarget) continue;
        nll -= scores[k - begin][batch.targets[k]].item<double>();
        ++count;
      }
    }
  }
  return {nll, count};
}

TEST(Instruction, APartOfTheSamplesIsTheirFirstPackedWindows) {
  const TinyCorpus corpus;
  const TemporaryFolder folder;
  const std::string path = prepared(corpus, folder, "some", puzzles(5, 40, kSample));
  const Shard shard = Shard::open(path);
  Config config = puzzle_config(corpus, path, path, folder / "run");
  config.train.steps = 4;
  config.train.eval_every = 2;
  config.eval.tokens = 33;  // of 32 a window
  testing::train(config);
  LoadedModel loaded = load_model(folder / "run", {.device = DeviceKind::kCpu});
  EvalOptions options = eval_options(loaded.config, loaded.tokenizer);
  options.tokens = 33;
  const Perplexity part = evaluate(loaded.model, shard, options);
  const auto [nll, targets] = likelihood_of_rows(loaded.model, shard, 32, 2);
  EXPECT_EQ(part.tokens, targets);
  EXPECT_NEAR(part.nll, nll, 1e-5 * nll);
  options.batch = 1;
  EXPECT_EQ(evaluate(loaded.model, shard, options).nll, part.nll);
  options.tokens = 1 << 20;
  EXPECT_EQ(evaluate(loaded.model, shard, options).tokens, shard.info().trained);

  // During the run, and all of them after its last step.
  std::vector<uint64_t> scored;
  for (const auto& line : metrics_of(folder / "run")) {
    if (line.contains("valid_loss")) scored.push_back(line["valid_tokens"]);
  }
  EXPECT_EQ(scored, (std::vector<uint64_t>{part.tokens, shard.info().trained}));
}

/// A row of sample 0: tokens 0 … 5, of which 1 to 3 are targets, so that 4 and 5 come after the
/// last one, and of sample 1.
Batch row_with_an_untrained_end(const Scratch& folder, bool all_trained) {
  const bool last = all_trained;
  const auto shard = test::make_samples(folder / "shard", {{0, 1, 2, 3, 4, 5}, {6, 7, 8}},
                                        {{0, 1, 1, 1, last, last}, {0, 0, 1}});
  const PackedSamples packed({shard.get()}, 12);
  Batch batch;
  batch.rows = 1;
  batch.columns = 12;
  for (auto* values : {&batch.tokens, &batch.targets, &batch.document_start}) values->resize(12);
  packed.fill(0, 0, batch);
  return batch;
}

Config step_config_of(int64_t columns) {
  Config config;
  config.model = testing_models::tiny_config(Position::kRope, true, columns);
  config.train.context = columns;
  config.data.document_mask = true;
  return config;
}

// What reaches the embedding of a token that no trained target follows in its sample.
TEST(Instruction, UntrainedTargetsHaveNoGradient) {
  const Scratch folder;
  for (const bool all_trained : {false, true}) {
    const Batch batch = row_with_an_untrained_end(folder, all_trained);
    nn::Transformer model = testing_models::tiny_model(step_config_of(12).model);
    const auto tensor = [&](const std::vector<int64_t>& values) {
      return testing_steps::tensor_of(batch, values);
    };
    nn::LossOptions options;
    options.document_start = tensor(batch.document_start);
    model->loss(tensor(batch.tokens), tensor(batch.targets), 1.0, options).backward();
    const at::Tensor rows =
        model->named_parameters()["embedding"].grad().abs().sum(1).to(at::kDouble);
    EXPECT_GT(rows[2].item<double>(), 0);
    EXPECT_GT(rows[6].item<double>(), 0) << "an untrained prompt, read for a target";
    EXPECT_EQ(rows[3].item<double>() > 0, all_trained) << "the last target is not an input of one";
    EXPECT_EQ(rows[4].item<double>() > 0, all_trained);
  }
}

TEST(Instruction, AMicroBatchWithoutTargetsAddsNothing) {
  const Scratch folder;
  Config config = step_config_of(12);
  const Batch batch = row_with_an_untrained_end(folder, false);
  Batch none = batch;
  std::ranges::fill(none.targets, kIgnoreTarget);
  none.valid_targets = 0;
  TinyTraining alone(config, at::kCPU, at::kFloat), both(config, at::kCPU, at::kFloat);
  const StepProgram::Result one = alone.step({batch}), two = both.step({none, batch});
  EXPECT_EQ(one.valid_targets, 4);
  EXPECT_EQ(two.valid_targets, 4);
  EXPECT_NEAR(two.loss, one.loss, 1e-6 * one.loss);
  EXPECT_NEAR(two.grad_norm, one.grad_norm, 1e-5 * one.grad_norm);
  EXPECT_TRUE(both.step({none, none}).updated);
}

TEST(Instruction, AMaskOfTheSequencesLengthIsRefused) {
  const TinyCorpus corpus;
  const TemporaryFolder folder;
  const std::string train = prepared(corpus, folder, "train", puzzles(1, 20, kSample));
  Config config = puzzle_config(corpus, train, "", folder / "run");
  config.model.stable_mask.mask_length = {MaskLengthSpec::Kind::kSequence, 0};
  EXPECT_THROW(testing::train(config), ConfigError);
  EXPECT_THROW(dry_run_report(config, 1), ConfigError);
  config.model.stable_mask.mask_length = {MaskLengthSpec::Kind::kFixed, 32};
  const std::string report = dry_run_report(config, 1);
  EXPECT_NE(report.find("20 in "), std::string::npos) << report;
}

}  // namespace
}  // namespace stablemask
