#include "src/train/summary.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>

#include "src/train/run_inputs.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/report/terminal_text.h"
#include "tests/train/tiny_run.h"

namespace stablemask {
namespace {

using testing::quiet_options;
using testing::TemporaryFolder;
using testing::tiny_config;
using testing::TinyCorpus;

constexpr size_t kColumns = 79;

Config config_of(const std::string& text) {
  Config config = parse_config(text, "test");
  config.model.vocab_size = 1000;
  return config;
}

SequenceCounts of_text(int64_t sequences) {
  SequenceCounts counts;
  counts.text = sequences;
  return counts;
}

const RunFacts& cpu_facts() {
  static const RunFacts facts = {
      1'000'001, 5000, "cpu", false, 2, 1, {{of_text(1'000'000 / 256), 0}}};
  return facts;
}

std::string text_of(const Config& config, const RunFacts& facts = cpu_facts()) {
  return aligned(run_summary(config, facts), kColumns);
}

TEST(Summary, StatesWhatARunIs) {
  const Config config = config_of(R"({
    "model": {"layers": 4, "channels": 192, "heads": 6, "ffn_hidden": 512},
    "data": {"train": ["runs/mine/train.shard"], "tokenizer": "t"},
    "train": {"out": "runs/mine/model", "context": 256, "batch": 4, "steps": 3000}
  })");
  EXPECT_EQ(nn::parameter_count(config.model), 2'155'200);
  EXPECT_EQ(text_of(config),
            "model   4 layers x 192 channels, 6 heads, RoPE, 2,155,200 parameters\n"
            "mask    StableMask, gamma 1, p_base 0, N 256, beyond N infinite\n"
            "tokens  4 x 256 = 1,024 a step, 3,000 steps = 3,072,000, 3.07 epochs\n"
            "data    runs/mine/train.shard, 1,000,001 tokens, validation 5,000 tokens\n"
            "device  cpu, fp32, 2 CPU threads\n"
            "output  runs/mine/model, checkpoints every 15 minutes, last 2 kept");
}

TEST(Summary, WarnsOfAVocabularyThatNoPaddingExplains) {
  Config config = config_of(R"({"model": {"channels": 512, "heads": 8}})");
  const auto warning = [&](int64_t rows, int64_t tokens) {
    config.model.vocab_size = rows;
    return vocabulary_warning(config, tokens);
  };
  EXPECT_EQ(warning(2000, 2000), "");
  EXPECT_EQ(warning(2048, 2000), "") << "to a multiple of 128";
  EXPECT_EQ(warning(50304, 50257), "");
  EXPECT_NE(warning(2049, 2000), "");
  EXPECT_NE(warning(2049, 2048), "");
  // 48,257 rows of 512 channels twice, with weight, gradient and two moments of 4 bytes.
  EXPECT_NE(warning(50257, 2000)
                .find("model.vocab_size 50,257 is far more than the tokenizer's "
                      "2,000: rows that no token uses take 790.6 MB in training"),
            std::string::npos)
      << warning(50257, 2000);
  config.model.tied_head = true;
  EXPECT_NE(warning(50257, 2000).find(" 395.3 MB "), std::string::npos);
}

TEST(Summary, NamesEveryKindOfMask) {
  const auto mask = [](const std::string& model) {
    const Config config =
        config_of(R"({"model": {"heads": 2, )" + model + R"(}, "train": {"context": 512}})");
    return run_summary(config, cpu_facts())[1].text;
  };
  EXPECT_EQ(mask(R"("stable_mask": {"enabled": false})"), "causal");
  EXPECT_EQ(mask(R"("window": 128, "stable_mask": {"enabled": false})"), "causal, window 128");
  EXPECT_EQ(mask(R"("position": "alibi")"),
            "StableMask, gamma slopes, p_base 0, N 512, beyond N infinite");
  EXPECT_EQ(mask(R"("stable_mask": {"mask_length": 2048, "beyond": "none", "p_base": -1.5,
                     "gamma": [0.25, 2], "learnable": true})"),
            "StableMask, gamma 0.25 to 2 by head, p_base -1.5 (both learned), N 2,048, beyond N "
            "none");
  EXPECT_EQ(mask(R"("window": 64, "stable_mask": {"mask_length": "infinite"})"),
            "StableMask, gamma 1, p_base 0, N infinite, window 64");
  EXPECT_EQ(mask(R"("stable_mask": {"mask_length": "sequence"})"),
            "StableMask, gamma 1, p_base 0, N of each sequence");
}

TEST(Summary, SaysHowProcessesShareTheWork) {
  RunFacts facts = cpu_facts();
  facts.processes = 4;
  const auto row = [&](const std::string& train) {
    return run_summary(config_of(R"({"train": {"batch": 32)" + train + "}}"), facts)[5];
  };
  EXPECT_EQ(row("").label, "group");
  EXPECT_EQ(row("").text, "4 processes, 1 micro-batch of 8 each, optimizer state sharded");
  EXPECT_EQ(row(R"(, "micro_batch": 2, "shard": "none", "reduce_dtype": "bf16")").text,
            "4 processes, 4 micro-batches of 2 each, optimizer state on every process, gradients "
            "summed in bf16");
}

TEST(Summary, SaysWhatPackingMakesOfSamples) {
  SequenceCounts sequences;
  EXPECT_EQ(samples_text(sequences, 256), "");
  sequences.packed = 120;
  sequences.fill_rate = 0.9714;
  sequences.samples = {1000, 0, 0, 29'843, 12'345};
  const std::string all = "1,000 in 120 sequences, 97.1 % filled, 12,345 training targets";
  EXPECT_EQ(samples_text(sequences, 256), all);
  sequences.samples.truncated = 3;
  sequences.samples.dropped = 1;
  EXPECT_EQ(samples_text(sequences, 256),
            all + ", 3 truncated to 257 tokens, 1 dropped because the targets are cut off");
  RunFacts facts = cpu_facts();
  facts.sets = {{sequences, 0}};
  EXPECT_EQ(run_summary(config_of("{}"), facts)[4].label, "samples");
}

TEST(Summary, FitsItsColumnsAlsoForALargeRun) {
  Config config = config_of(R"({
    "model": {"preset": "1.4b", "kv_heads": 4, "window": 4096,
              "stable_mask": {"gamma": 0.0123456, "p_base": -12.3456, "learnable": true}},
    "data": {"train": ["data/enwiki/a.shard", "data/enwiki/b.shard", "data/enwiki/c.shard"],
             "tokenizer": "t", "valid": "v"},
    "train": {"out": "runs/enwiki/alibi-stablemask", "context": 8192, "batch": 1024,
              "steps": 1000000, "save_every": 10000, "keep_last": 10, "keep_every": 100000}
  })");
  const RunFacts facts = {123'456'789'012,
                          std::nullopt,
                          "NVIDIA H100 80GB HBM3",
                          true,
                          16,
                          64,
                          {{of_text(123'456'789'011 / 8192), 0}}};
  std::istringstream lines(text_of(config, facts));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) EXPECT_LE(line.size(), kColumns);
  EXPECT_LE(count, 13);
  std::string text;
  for (const LabelledText& row : run_summary(config, facts)) text += row.text + "\n";
  for (const char* piece :
       {"(4 for keys and values)", "8,388,608 a step", "8,388,608,000,000, 67.9 epochs",
        "data/enwiki/a.shard and 2 more, 123,456,789,012 tokens, no validation",
        "NVIDIA H100 80GB HBM3, bf16 with fp32 master weights, 16 CPU threads each",
        "64 processes, 1 micro-batch of 16 each, optimizer state sharded",
        ("checkpoints every 10,000 steps and every 15 minutes, last 10 kept and multiples of "
         "100,000\n")}) {
    EXPECT_NE(text.find(piece), std::string::npos) << piece << "\n" << text;
  }
}

TEST(Summary, NamesThePrecisionOfProducts) {
  const TinyCorpus corpus;
  Config config = tiny_config(corpus, "run");
  RunFacts facts;
  facts.device = "CPU";
  facts.train_tokens = 1000;
  facts.threads = 2;
  const auto text = [&](Precision precision, bool bf16) {
    config.train.precision = precision;
    facts.bf16 = bf16;
    return text_of(config, facts);
  };
  EXPECT_NE(text(Precision::kDtype, false).find("CPU, fp32, 2 CPU threads"), std::string::npos);
  EXPECT_NE(text(Precision::kBf16, false).find("CPU, fp32, bf16 products, 2 CPU threads"),
            std::string::npos);
  facts.bf16_instructions = false;
  EXPECT_NE(text(Precision::kBf16, false).find("bf16 products, slow without instructions for them"),
            std::string::npos);
  EXPECT_EQ(text(Precision::kBf16, true), text(Precision::kDtype, true));
  EXPECT_NE(text(Precision::kFp8, true).find("master weights, fp8 products, 2 CPU threads"),
            std::string::npos);
}

TEST(Summary, CountsOfTheRun) {
  TrainConfig train;
  train.context = 16;
  train.batch = 8;
  train.steps = 12;
  RunSize size = run_size(train, 2);
  EXPECT_EQ(size.step_tokens, 128);
  EXPECT_EQ(size.run_tokens, 1536);
  EXPECT_EQ(size.sequences, 2);
  EXPECT_EQ(size.epochs, 48);
  size = run_size(train, 0);
  EXPECT_EQ(size.sequences, 0);
  EXPECT_FALSE(size.epochs);
  EXPECT_EQ(large_count(1536), "1,536");
  EXPECT_EQ(large_count(1e18), "1e+18");
}

TEST(Summary, BeginsARunAndAResumedRunUnlessItIsQuiet) {
  const TinyCorpus corpus;
  const TemporaryFolder folder;
  const Config config = tiny_config(corpus, folder / "run");
  const auto said = [&](const RunOptions& options) {
    ::testing::internal::CaptureStdout();
    Trainer(config, options).run();
    return ::testing::internal::GetCapturedStdout();
  };
  const std::string start = "model   2 layers x 16 channels, 2 heads, RoPE, ";
  const std::string first = said({});
  EXPECT_TRUE(first.starts_with(start)) << first;
  EXPECT_NE(first.find("\ndevice  cpu, fp32, 1 CPU thread\n"), std::string::npos) << first;
  const std::string again = said({});
  EXPECT_TRUE(again.starts_with(start)) << again;
  EXPECT_NE(again.find("\nresumed from " + config.train.out +
                       "/checkpoints/step-00000012: 12 of 12 steps done\n"),
            std::string::npos)
      << again;
  EXPECT_EQ(said(quiet_options()), "");
}

}  // namespace
}  // namespace stablemask
