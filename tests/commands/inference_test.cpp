// `stablemask eval` and `stablemask generate` as a user calls them.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "stablemask/base/utf8.h"
#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::Outcome;
using testing::PipelineTest;
using testing::read_file;
using testing::write_file;

TEST_F(PipelineTest, EvalOfTextAndShardAgreeWithValidation) {
  const Outcome text =
      succeed("eval --checkpoint run --data text/wiki.valid.tokens --json text.json");
  succeed(
      "eval --checkpoint run/checkpoints/step-00000040 --data valid.shard --batch 3 "
      "--unigram train.shard --json shard.json");
  const json of_text = json::parse(read_file(path("text.json")));
  const json of_shard = json::parse(read_file(path("shard.json")));
  const double nll = of_shard["nll"];
  EXPECT_NEAR(of_text["nll"].get<double>(), nll, 1e-6 * nll);
  EXPECT_EQ(of_text["word_count"], of_shard["word_count"]);
  const double valid_loss = testing::metrics_of(path("run")).back()["valid_loss"];
  EXPECT_NEAR(nll / of_shard["tokens"].get<double>(), valid_loss, 1e-6 * valid_loss);
  EXPECT_LT(of_shard["word_perplexity"], of_shard["unigram"]["word_perplexity"]);
  EXPECT_GT(of_shard["megatron_perplexity"], 1.0);
  EXPECT_NE(text.out.find("words + EOS"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("windows    64 tokens, not overlapping; mask length 64"),
            std::string::npos)
      << text.out;

  succeed(
      "eval --checkpoint run --data valid.shard --window 64 --stride 32 --convention word "
      "--json sliding.json");
  const json sliding = json::parse(read_file(path("sliding.json")));
  EXPECT_EQ(sliding["tokens"], of_shard["tokens"]);
  EXPECT_LT(sliding["nll"], of_shard["nll"]);
}

TEST_F(PipelineTest, GenerateStopsAtTheLineEnd) {
  const std::string generate = "generate --checkpoint run --prompt 'The' --max-tokens 200 --seed 2";
  const std::string whole = succeed(generate).out,
                    line = succeed(generate + " --stop-at-line-end").out;
  EXPECT_EQ(line, whole.substr(0, whole.find('\n') + 1) + "\n");
  EXPECT_LT(line.size(), whole.size());
}

TEST_F(PipelineTest, EvalTakesADtype) {
  std::map<std::string, double> nll;
  for (const std::string dtype : {"fp32", "bf16"}) {
    succeed("eval --checkpoint run --data valid.shard --json dtype.json --dtype " + dtype);
    nll[dtype] = json::parse(read_file(path("dtype.json")))["nll"];
  }
  EXPECT_NE(nll["bf16"], nll["fp32"]);
  EXPECT_NEAR(nll["bf16"], nll["fp32"], 0.01 * nll["fp32"]);
}

/// The JSON of `eval --json -` with these options, which is all of standard output.
json evaluated(const Outcome& outcome) {
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return json::parse(outcome.out);
}

TEST_F(PipelineTest, EvalTakesFromAConfigWhatTheFileStates) {
  const std::string eval = "eval --checkpoint run --data valid.shard --json - ";
  const json plain = evaluated(run(eval));
  EXPECT_EQ(plain["window"], 64) << "the checkpoint's context";
  write_file(path("stride.json"), R"({"eval": {"stride": 16}})");
  const Outcome outcome = run(eval + "--config stride.json");
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(evaluated(outcome)["window"], 64);
  EXPECT_EQ(evaluated(outcome)["stride"], 16);
  // --set goes before the file, a flag before --set; a new window forgets the stride.
  json said = evaluated(run(eval + "--config stride.json --set eval.window=48"));
  EXPECT_EQ(said["window"], 48);
  EXPECT_EQ(said["stride"], 48);
  said = evaluated(run(eval + "--config stride.json --set eval.stride=8 --window 24 --stride 12"));
  EXPECT_EQ(said["window"], 24);
  EXPECT_EQ(said["stride"], 12);
  EXPECT_EQ(evaluated(run(eval + "--window 0"))["nll"], plain["nll"]);
}

TEST_F(PipelineTest, OneWarningNamesTheSectionsThatEvalIgnores) {
  write_file(path("whole.json"),
             R"({"model": {"layers": 5}, "train": {"context": 128}, "eval": {"window": 32}})");
  const Outcome outcome =
      run("eval --checkpoint run --data valid.shard --json - --config whole.json");
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_NE(
      outcome.err.find("whole.json: only the section \"eval\" is used; ignored: model, train"),
      std::string::npos)
      << outcome.err;
  EXPECT_EQ(evaluated(outcome)["window"], 32);
}

TEST_F(PipelineTest, EvalWithAnotherMask) {
  const std::string eval = "eval --checkpoint run --data valid.shard --json - ";
  const json plain = evaluated(run(eval));
  const json causal = evaluated(run(eval + "--set model.stable_mask=false"));
  EXPECT_EQ(causal["mask"], "no mask");
  EXPECT_NE(causal["nll"], plain["nll"]);
  const double reference = evaluated(run(eval + "--set model.attention=reference"))["nll"];
  EXPECT_NEAR(reference, plain["nll"].get<double>(), 1e-4 * reference);
}

// The optimizer's file may be deleted to share the weights; a path need not be UTF-8.
TEST_F(PipelineTest, EvalOfWeightsAloneUnderANameThatIsNotUtf8) {
  const std::string name = "weights-\xE9";
  std::filesystem::copy(path("run/checkpoints/step-00000040"), path(name),
                        std::filesystem::copy_options::recursive);
  std::filesystem::remove(path(name + "/optimizer.safetensors"));
  const json said =
      evaluated(run("eval --checkpoint $'weights-\\xe9' --data valid.shard --json -"));
  EXPECT_EQ(said["checkpoint"], "weights-\uFFFD");
  succeed("generate --checkpoint $'weights-\\xe9' --prompt x");
  std::filesystem::remove_all(path(name));
}

TEST_F(PipelineTest, GenerateReadsItsPromptFromAFileOrStandardInput) {
  const std::string generate = "generate --checkpoint run --greedy ";
  const std::string text = succeed(generate + "--prompt 'The river'").out;
  write_file(path("prompt.txt"), "The river\n");
  EXPECT_EQ(succeed(generate + "--prompt-file prompt.txt").out, text);
  EXPECT_EQ(run(generate + "--prompt -", "cat prompt.txt |").out, text);
}

TEST_F(PipelineTest, GeneratedBytesThatAreNotUtf8AreReplacedUnlessRaw) {
  // A hot temperature draws byte pieces in any order.
  const std::string generate =
      "generate --checkpoint run --prompt x --temperature 100 --max-tokens 300 ";
  const std::string raw = succeed(generate + "--raw").out, shown = succeed(generate).out;
  EXPECT_NE(find_invalid_utf8(raw), std::string::npos);
  EXPECT_EQ(find_invalid_utf8(shown), std::string::npos);
  EXPECT_NE(shown.find("\uFFFD"), std::string::npos);
}

}  // namespace
}  // namespace stablemask
