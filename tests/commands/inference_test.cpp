// `stablemask eval` and `stablemask generate` as a user calls them.
#include <gtest/gtest.h>

#include <filesystem>
#include <iomanip>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "stablemask/base/utf8.h"
#include "stablemask/io/checkpoint.h"
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
  EXPECT_NE(
      text.out.find(
          "windows    64 tokens, not overlapping\n"
          "model      RoPE, theta 10000; rows see all tokens before them; trained on 64 tokens\n"
          "mask       StableMask, gamma 1, p_base 0, mask length 64, beyond it the mass of an "
          "infinite one\n"),
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
  // A context that the file states or has by default is not the checkpoint's.
  write_file(path("context.json"), R"({"train": {"context": 128}, "eval": {"stride": 16}})");
  EXPECT_EQ(evaluated(run(eval + "--config context.json"))["nll"], evaluated(outcome)["nll"]);
  // --set goes before the file, a flag before --set; a new window forgets the stride.
  json said = evaluated(run(eval + "--config stride.json --set eval.window=48"));
  EXPECT_EQ(said["window"], 48);
  EXPECT_EQ(said["stride"], 48);
  said = evaluated(run(eval + "--config stride.json --set eval.stride=8 --window 24 --stride 12"));
  EXPECT_EQ(said["window"], 24);
  EXPECT_EQ(said["stride"], 12);
  EXPECT_EQ(evaluated(run(eval + "--window 0"))["nll"], plain["nll"]);
}

TEST_F(PipelineTest, OneWarningNamesTheSectionsThatAreIgnored) {
  write_file(path("whole.json"),
             R"({"model": {"layers": 5}, "train": {"context": 128}, "eval": {"window": 32},
                 "generate": {"max_tokens": 3}})");
  Outcome outcome = run("eval --checkpoint run --data valid.shard --json - --config whole.json");
  EXPECT_EQ(outcome.err,
            "stablemask: warning: whole.json: only the section \"eval\" is used; ignored: model, "
            "train, generate (the checkpoint's apply; see --set)\n");
  EXPECT_EQ(evaluated(outcome)["window"], 32);
  outcome = run("generate --checkpoint run --prompt x --seed 3 --config whole.json");
  EXPECT_EQ(outcome.err,
            "stablemask: warning: whole.json: only the section \"generate\" is used; ignored: "
            "model, train, eval (the checkpoint's apply; see --set)\n");
  EXPECT_EQ(outcome.out,
            succeed("generate --checkpoint run --prompt x --seed 3 --max-tokens 3").out);
}

TEST_F(PipelineTest, EvalWithAnotherMask) {
  const std::string eval = "eval --checkpoint run --data valid.shard --json - ";
  const json plain = evaluated(run(eval));
  const json causal = evaluated(run(eval + "--set model.stable_mask=false"));
  EXPECT_EQ(causal["mask"]["enabled"], false);
  EXPECT_NE(causal["nll"], plain["nll"]);
  const double reference = evaluated(run(eval + "--set model.attention=reference"))["nll"];
  EXPECT_NEAR(reference, plain["nll"].get<double>(), 1e-4 * reference);
}

TEST_F(PipelineTest, EvalReportsTheModelAsFields) {
  const std::string eval = "eval --checkpoint run --data valid.shard --json - ";
  const json plain = evaluated(run(eval));
  EXPECT_EQ(plain["mask"], (json{{"enabled", true},
                                 {"gamma", 1.0},
                                 {"p_base", 0.0},
                                 {"mask_length", 64},
                                 {"beyond", "infinite"},
                                 {"learnable", false}}));
  EXPECT_EQ(plain["attention_window"], 0);
  EXPECT_EQ(plain["position"], "rope");
  EXPECT_EQ(plain["rope_theta"], 10000.0);
  EXPECT_EQ(plain["rope_scaling"], 1.0);
  EXPECT_EQ(plain["context"], 64);
  EXPECT_EQ(plain["rows_beyond_mask"], false);
  const std::string flags =
      "--window 128 --mask-length 48 --attention-window 32 --set model.stable_mask.gamma=slopes "
      "--set 'model.stable_mask.p_base=[0,-1]' --set model.rope_theta=500 "
      "--set model.rope_scaling=2 --set model.stable_mask.beyond=none ";
  const json changed = evaluated(run(eval + flags));
  EXPECT_EQ(changed["mask"], (json{{"enabled", true},
                                   {"gamma", "slopes"},
                                   {"p_base", {0.0, -1.0}},
                                   {"mask_length", 48},
                                   {"beyond", "none"},
                                   {"learnable", false}}));
  EXPECT_EQ(changed["attention_window"], 32);
  EXPECT_EQ(changed["rope_theta"], 500.0);
  EXPECT_EQ(changed["rope_scaling"], 2.0);
  EXPECT_EQ(changed["context"], 64);
  EXPECT_EQ(changed["rows_beyond_mask"], true);
  const std::string text = succeed("eval --checkpoint run --data valid.shard " + flags).out;
  EXPECT_NE(text.find("model      RoPE, theta 500, positions divided by 2; rows see the last 32 "
                      "tokens; trained on 64 tokens\n"
                      "mask       StableMask, gamma slopes, p_base [0 -1], mask length 48, beyond "
                      "it no pseudo mass\n"),
            std::string::npos)
      << text;
}

TEST_F(PipelineTest, MaskLengthAndAttentionWindowStandForFields) {
  const std::string eval = "eval --checkpoint run --data valid.shard --json - ";
  const auto nll = [&](const std::string& flags) {
    return evaluated(run(eval + flags))["nll"].get<double>();
  };
  const std::string length = "--set model.stable_mask.mask_length=", window = "--set model.window=";
  const double plain = nll("");
  const double shorter = nll(length + "32");
  EXPECT_NE(shorter, plain);
  EXPECT_EQ(nll("--mask-length infinite"), nll(length + "infinite"));
  EXPECT_EQ(nll("--attention-window 8"), nll(window + "8"));
  // The flag goes before --set, in either order.
  EXPECT_EQ(nll("--mask-length 32 " + length + "16"), shorter);
  EXPECT_EQ(nll(length + "16 --mask-length trained"), plain);
  EXPECT_EQ(nll(window + "8 --attention-window 0"), plain);

  const std::string generate = "generate --checkpoint run --prompt 'The river' --greedy ";
  EXPECT_EQ(succeed(generate + "--mask-length 16 --attention-window 4").out,
            succeed(generate + length + "16 " + window + "4").out);
}

// An old checkpoint: mask length 32, beyond "none".
TEST_F(PipelineTest, RowsThatLoseTheirPseudoMassAreWarnedOfOnce) {
  const std::string fixture = STABLEMASK_SOURCE_DIR "/tests/fixtures/checkpoint-v0";
  const std::string eval =
      "eval --checkpoint " + fixture + " --data " + fixture + "-data/valid.shard ";
  const std::string warning =
      "stablemask: warning: rows from 32 on, the mask length, lose their pseudo mass: the "
      "checkpoint's config has model.stable_mask.beyond \"none\", as all older versions of the "
      "program; --set model.stable_mask.beyond=infinite or --mask-length infinite keeps it\n";
  EXPECT_EQ(succeed(eval).err, "");
  EXPECT_EQ(succeed(eval + "--window 33").err, warning);
  EXPECT_EQ(succeed(eval + "--lengths 16,32,64,128").err, warning);
  for (const std::string choice :
       {"--mask-length infinite", "--set model.stable_mask.beyond=infinite",
        "--set model.stable_mask.beyond=none"}) {
    EXPECT_EQ(succeed(eval + "--window 33 " + choice).err, "") << choice;
  }
  const std::string generate = "generate --checkpoint " + fixture + " --prompt x --max-tokens ";
  EXPECT_EQ(succeed(generate + "4").err, "");
  EXPECT_EQ(succeed(generate + "40").err, warning);
  // The run of the pipeline, which is new, keeps the mass.
  EXPECT_EQ(succeed("eval --checkpoint run --data valid.shard --window 128").err, "");
  const auto nll = [&](const std::string& beyond) {
    return evaluated(
               run(eval + "--json - --window 64 --set model.stable_mask.beyond=" + beyond))["nll"]
        .get<double>();
  };
  EXPECT_NE(nll("infinite"), nll("none"));
}

TEST_F(PipelineTest, TheTableOfLengthsEqualsSingleEvaluations) {
  const std::string eval =
      "eval --checkpoint run --data valid.shard --unigram train.shard --attention-window 24 ";
  const Outcome table = succeed(eval + "--lengths 256,32,64 --json table.json");
  const json all = json::parse(read_file(path("table.json")));
  EXPECT_EQ(table.err, "");
  ASSERT_EQ(all["lengths"].size(), 3u);
  size_t row = 0;
  for (const std::string length : {"256", "32", "64"}) {
    json one = all["lengths"][row++];
    const json single = evaluated(run(eval + "--json - --window " + length));
    EXPECT_EQ(one["training_context"], length == "64") << length;
    EXPECT_EQ(one["rows_beyond_mask"], length == "256") << length;
    one.erase("training_context");
    for (const auto& [field, value] : one.items()) EXPECT_EQ(value, single.at(field)) << field;
    // What is not a figure of the length stands beside the list.
    for (const auto& [field, value] : single.items()) {
      EXPECT_EQ(value, one.contains(field) ? one[field] : all.at(field)) << field;
    }
    const std::string mark = length == "64" ? " *" : "  ";
    std::ostringstream line;
    line << std::fixed << std::setprecision(4) << std::setw(10) << length << mark << std::setw(11)
         << single["nll"].get<double>() / single["tokens"].get<double>() << std::setw(13)
         << single["token_perplexity"].get<double>() << std::setw(13)
         << single["word_perplexity"].get<double>() << (length == "256" ? "   yes\n" : "   no\n");
    EXPECT_NE(table.out.find(line.str()), std::string::npos) << line.str() << table.out;
  }
  EXPECT_NE(table.out.find("* the training context; token: exp(NLL / "), std::string::npos)
      << table.out;
  EXPECT_NE(table.out.find("unigram with add-one smoothing"), std::string::npos) << table.out;
  EXPECT_EQ(run(eval + "--lengths 256,32,64 --json -").out, read_file(path("table.json")));
}

TEST_F(PipelineTest, TheTableOfLengthsTakesAConvention) {
  const std::string eval = "eval --checkpoint run --data valid.shard --lengths 96 --convention ";
  for (const auto& [convention, title] :
       std::map<std::string, std::string>{{"megatron", "megatron"}, {"bpb", "bits/byte"}}) {
    const std::string out = succeed(eval + convention + " --json c.json").out;
    const json one = json::parse(read_file(path("c.json")))["lengths"][0];
    const std::string field = convention == "bpb" ? "bits_per_byte" : "megatron_perplexity";
    EXPECT_NE(out.find(title), std::string::npos) << out;
    std::ostringstream figure;
    figure << std::fixed << std::setprecision(4) << one[field].get<double>();
    EXPECT_NE(out.find(" " + figure.str() + "   yes\n"), std::string::npos) << out;
    EXPECT_EQ(out.find("* the training context"), std::string::npos) << "is not in the list";
  }
  EXPECT_EQ(succeed(eval + "token").out.find("word"), std::string::npos);
}

// The optimizer's file may be deleted to share the weights.
TEST_F(PipelineTest, EvalOfWeightsAlone) {
  const std::string name = "weights-\u00E9";
  std::filesystem::copy(path("run/checkpoints/step-00000040"), path(name),
                        std::filesystem::copy_options::recursive);
  std::filesystem::remove(path(name + "/optimizer.safetensors"));
  const json said = evaluated(run("eval --checkpoint " + name + " --data valid.shard --json -"));
  EXPECT_EQ(said["checkpoint"], name);
  succeed("generate --checkpoint " + name + " --prompt x");
  std::filesystem::remove_all(path(name));
}

TEST_F(PipelineTest, AStrippedCheckpointIsEnoughForAllButResuming) {
  succeed("checkpoint strip run shared");
  EXPECT_FALSE(exists("shared/optimizer.safetensors"));
  const std::string eval = "eval --data valid.shard --json - --checkpoint ";
  EXPECT_EQ(evaluated(run(eval + "shared"))["nll"], evaluated(run(eval + "run"))["nll"]);
  EXPECT_NE(succeed("generate --prompt 'The river' --greedy --checkpoint shared").out,
            "The river\n");
  const Outcome tuned = succeed(
      "finetune tiny.json --set train.init_from=shared --set train.out=tuned --set train.steps=1");
  EXPECT_NE(tuned.out.find("weights from shared\n"), std::string::npos) << tuned.out;
  testing::expect_refusal(run("pretrain tiny.json --quiet --resume shared --set train.out=resumed"),
                          4, "shared: has weights but no optimizer state");
  for (const char* name : {"shared", "tuned"}) std::filesystem::remove_all(path(name));
}

TEST_F(PipelineTest, WeightsThatAreNotFiniteEndEveryCommandWithFive) {
  const Checkpoint sound = load_checkpoint(path("run/checkpoints/step-00000040"));
  CheckpointContent content;
  content.step = sound.step;
  content.model = sound.model.tensors();
  content.state_json = sound.state_json;
  content.config_json = sound.config_json;
  content.tokenizer_model = sound.tokenizer_model;
  const std::vector<float> norm(32, std::numeric_limits<float>::quiet_NaN());
  content.model.at("norm.weight").data = norm.data();
  save_checkpoint(path("bad"), content, {});
  for (const std::string command :
       {"eval --checkpoint bad --data valid.shard", "generate --checkpoint bad --prompt x",
        "inspect --checkpoint bad --data valid.shard --out look",
        "finetune tiny.json --quiet --set train.init_from=bad --set train.out=tuned",
        "checkpoint strip bad shared"}) {
    testing::expect_refusal(run(command), 5, ": norm.weight holds values that are not finite");
  }
  const Outcome verified = run("checkpoint verify bad");
  EXPECT_EQ(verified.code, 5) << verified.err;
  EXPECT_NE(verified.out.find("norm.weight holds values that are not finite"), std::string::npos);
  for (const char* name : {"bad", "look"}) std::filesystem::remove_all(path(name));
}

// 600 pieces in a model with 2,048 rows.
TEST_F(PipelineTest, PaddingOfTheVocabularyIsNeverDrawnAndTooMuchIsWarnedOf) {
  // 1,448 rows of 32 numbers in embedding and head, 16 bytes each.
  EXPECT_EQ(
      succeed("pretrain tiny.json --quiet --set train.steps=1 --set schedule.warmup_steps=0 "
              "--set data.valid= --set model.vocab_size=2048 --set train.out=large")
          .err,
      "stablemask: warning: model.vocab_size 2,048 is far more than the tokenizer's 600: rows "
      "that no token uses take 1.5 MB in training; set model.vocab_size to 0, which takes the "
      "tokenizer's size\n");
  // Hardly trained, so that most of the likelihood is the padding's.
  const std::string generate =
      "generate --checkpoint large --prompt x --max-tokens 200 --attention-window 64 ";
  for (const char* sampling : {"--greedy", "--temperature 100"}) {
    EXPECT_EQ(succeed(generate + sampling).err, "") << sampling;
  }
  std::filesystem::remove_all(path("large"));
}

// tests/commands/validators_test.cpp has the numbers.
TEST_F(PipelineTest, IntegersOutOfRangeAreRefused) {
  testing::expect_refusal(
      run("eval --checkpoint run --data valid.shard --batch 99999999999999999999"), 2,
      "--batch: expected an integer from 0 to 1048576");
  testing::expect_refusal(run("data synth --output none --seed 99999999999999999999"), 2,
                          "--seed: must be at most 9223372036854775807");
  testing::expect_refusal(
      run("tokenizer train --input text/wiki.valid.tokens --output t.model --vocab-size 299"), 2,
      "--vocab-size: must be an integer from 300 to 1000000");
  EXPECT_FALSE(exists("none"));
}

TEST_F(PipelineTest, AFigureThatATextHasNotIsADash) {
  write_file(path("word.txt"), "word");
  write_file(path("spaces.txt"), "  ");
  for (const std::string options :
       {"word.txt", "word.txt --lengths 4 --convention megatron", "spaces.txt --convention word"}) {
    const std::string out = succeed("eval --checkpoint run --data " + options).out;
    EXPECT_EQ(out.find("nan"), std::string::npos) << out;
    EXPECT_NE(out.find(" -  "), std::string::npos) << out;
    EXPECT_NE(out.find("undefined for so few words"), std::string::npos) << out;
  }
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
