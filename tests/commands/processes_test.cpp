#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/data/loader.h"
#include "stablemask/data/shards.h"
#include "stablemask/io/checkpoint.h"
#include "tests/commands/launch.h"

/// Several processes of the program on the CPU, started as torchrun starts them.
namespace stablemask::testing {
namespace {

using nlohmann::json;
using Arguments = Launch::Arguments;
using Codes = std::vector<int>;

class ProcessesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { corpus_ = new TinyCorpus(); }
  static void TearDownTestSuite() { delete corpus_; }

  /// A run of 200 steps of 12 x 16 tokens in the folder `out`, its paths relative to the folder of
  /// the test.
  void SetUp() override {
    for (const auto& [name, path] : {std::pair("train.shard", corpus_->train),
                                     {"valid.shard", corpus_->valid},
                                     {"tok.model", corpus_->tokenizer}}) {
      std::filesystem::copy_file(path, folder_ / name);
    }
    json config = tiny_json(*corpus_, "run");
    config["data"] = {
        {"train", {"train.shard"}}, {"valid", "valid.shard"}, {"tokenizer", "tok.model"}};
    config["train"].erase("micro_batch");
    config["train"].update({{"batch", 12}, {"steps", 200}});
    config["optimizer"]["lr"] = 0.003;
    config["schedule"] = {{"kind", "constant"}, {"warmup_steps", 2}};
    write_file(folder_ / "tiny.json", config.dump(2));
  }

  static Arguments pretrain(const std::vector<std::string>& sets) {
    Arguments arguments = {"pretrain", "tiny.json"};
    for (const std::string& set : sets) {
      arguments.push_back("--set");
      arguments.push_back(set);
    }
    return arguments;
  }

  void train(int size, const std::vector<std::string>& sets) const {
    Launch launch(folder_, size, pretrain(sets));
    EXPECT_EQ(launch.codes(), Codes(size, 0)) << launch.said();
    for (int rank = 1; rank < size; ++rank) {
      EXPECT_EQ(launch.out(rank) + launch.err(rank), "") << "process 0 alone prints";
    }
  }

  /// Steps of the complete checkpoints of a run.
  std::vector<int64_t> saved(const std::string& run) const {
    std::vector<int64_t> steps;
    if (!std::filesystem::exists(folder_ / (run + "/checkpoints"))) return steps;
    for (const auto& summary : list_checkpoints(folder_ / (run + "/checkpoints"))) {
      if (summary.complete) steps.push_back(summary.step);
    }
    return steps;
  }

  bool waits_for_lines(const std::string& run, size_t count) const {
    return wait_until([&] {
      const std::string text = read_file(folder_ / (run + "/metrics.jsonl"));
      return static_cast<size_t>(std::count(text.begin(), text.end(), '\n')) >= count;
    });
  }

  inline static TinyCorpus* corpus_ = nullptr;
  TemporaryFolder folder_;
};

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    largest = std::max(largest, std::fabs(a[i] - b[i]));
  }
  return largest;
}

TEST_F(ProcessesTest, TrainTheSameModelWhateverTheirNumber) {
  train(1, {"train.out=one"});
  const std::vector<double> alone = losses_of(folder_ / "one");
  ASSERT_EQ(alone.size(), 200u);
  EXPECT_LT(alone.back(), 0.7 * alone.front());
  const double valid = metrics_of(folder_ / "one").back()["valid_loss"];
  for (const auto& [out, size, micro_batch] :
       {std::tuple("two", 2, 0), {"three", 3, 2}, {"unsharded", 2, 3}}) {
    train(size,
          {std::string("train.out=") + out, "train.micro_batch=" + std::to_string(micro_batch),
           std::string("train.shard=") + (micro_batch == 3 ? "none" : "optimizer")});
    const std::vector<json> lines = metrics_of(folder_ / out);
    EXPECT_LT(largest_difference(losses_of(folder_ / out), alone), 1e-3) << out;
    EXPECT_NEAR(lines.back()["valid_loss"].get<double>(), valid, 1e-3) << out;
    EXPECT_EQ(lines.back()["tokens"], 200 * 12 * 16) << out;
    EXPECT_EQ(saved(out), (std::vector<int64_t>{200})) << out;
  }
}

TEST_F(ProcessesTest, RepeatTheirBits) {
  for (const int size : {2, 3}) {
    const std::string n = std::to_string(size);
    train(size, {"train.out=a" + n, "train.steps=40"});
    train(size, {"train.out=b" + n, "train.steps=40"});
    EXPECT_EQ(losses_of(folder_ / ("a" + n)), losses_of(folder_ / ("b" + n)));
    EXPECT_EQ(tensors_of(folder_ / ("a" + n)), tensors_of(folder_ / ("b" + n)));
  }
}

TEST_F(ProcessesTest, ResumeWithAnotherNumber) {
  train(1, {"train.out=straight", "train.steps=36"});
  train(2, {"train.steps=12"});
  train(3, {"train.steps=24"});
  train(1, {"train.steps=36"});
  EXPECT_LT(largest_difference(losses_of(folder_ / "run"), losses_of(folder_ / "straight")), 1e-4);
  EXPECT_EQ(saved("run").back(), 36);
}

TEST_F(ProcessesTest, EvaluateTheBitsOfOne) {
  train(1, {"train.steps=20"});
  for (const std::vector<std::string>& windows :
       {std::vector<std::string>{"--window", "24", "--stride", "5", "--batch", "3"},
        {"--lengths", "8,16,1000"}}) {
    Arguments arguments = {"eval", "--checkpoint", "run", "--data", "valid.shard", "--json", "-"};
    arguments.insert(arguments.end(), windows.begin(), windows.end());
    std::string alone;
    for (const int size : {1, 2, 3}) {
      Launch launch(folder_, size, arguments);
      EXPECT_EQ(launch.codes(), Codes(size, 0)) << launch.said();
      if (size == 1) alone = launch.out(0);
      EXPECT_EQ(launch.out(0), alone);
      EXPECT_NE(alone.find("nll"), std::string::npos) << alone;
      for (int rank = 1; rank < size; ++rank) EXPECT_EQ(launch.out(rank) + launch.err(rank), "");
    }
  }
}

TEST_F(ProcessesTest, FinetuneAndDrawSamplesOnce) {
  train(1, {"train.steps=4"});
  Arguments arguments =
      pretrain({"train.init_from=run", "train.out=tuned", "train.steps=6", "train.eval_every=3",
                "train.sample_prompts=[\"The river\"]", "generate.max_tokens=4"});
  arguments[0] = "finetune";
  Launch launch(folder_, 2, arguments);
  EXPECT_EQ(launch.codes(), Codes(2, 0)) << launch.said();
  EXPECT_EQ(launch.out(1) + launch.err(1), "");
  EXPECT_NE(launch.out(0).find("weights from run/checkpoints/step-00000004"), std::string::npos);
  const std::string samples = read_file(folder_ / "tuned/samples.jsonl");
  EXPECT_EQ(std::count(samples.begin(), samples.end(), '\n'), 2) << samples;
  EXPECT_EQ(losses_of(folder_ / "tuned").size(), 6u);
}

TEST_F(ProcessesTest, ALossThatIsNotFiniteEndsAllAlike) {
  Launch launch(folder_, 2, pretrain({"optimizer.lr=1e30", "schedule.warmup_steps=0"}));
  EXPECT_EQ(launch.codes(), Codes(2, static_cast<int>(ExitCode::kNonFinite))) << launch.said();
  EXPECT_NE(launch.err(0).find("gradient norm nan"), std::string::npos) << launch.err(0);
  const std::vector<int64_t> steps = saved("run");
  ASSERT_EQ(steps.size(), 1u) << launch.said();
  EXPECT_EQ(losses_of(folder_ / "run").size(), static_cast<size_t>(steps[0]));
}

TEST_F(ProcessesTest, ASignalToOneStopsAllWithOneCheckpoint) {
  Launch launch(folder_, 3, pretrain({"train.steps=1000000", "train.save_minutes=0"}));
  ASSERT_TRUE(waits_for_lines("run", 5)) << launch.said();
  launch.send(1, SIGTERM);
  EXPECT_EQ(launch.codes(), Codes(3, 128 + SIGTERM)) << launch.said();
  const std::vector<int64_t> steps = saved("run");
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(metrics_of(folder_ / "run").back()["step"], steps[0]);
  EXPECT_NE(launch.err(0).find("stopped by SIGTERM while training, after step " +
                               std::to_string(steps[0]) + ";"),
            std::string::npos)
      << launch.err(0);
  EXPECT_EQ(launch.err(1) + launch.err(2), "");
  train(2, {"train.steps=" + std::to_string(steps[0] + 2), "train.save_minutes=0"});
}

/// Kills a process of three and goes on with two.
void expect_survivors_to_end(const TemporaryFolder& folder, Launch& launch, int victim) {
  const auto begin = std::chrono::steady_clock::now();
  launch.send(victim, SIGKILL);
  Codes expected(3, static_cast<int>(ExitCode::kPeerLost));
  expected[victim] = -SIGKILL;
  EXPECT_EQ(launch.codes(), expected) << launch.said();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(took.count(), 20) << "must: 30 s, goal: 10 s on an idle machine";
  for (int rank = 0; rank < 3; ++rank) {
    if (rank == victim) continue;
    const std::string said = launch.err(rank);
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
    const std::string lost =
        victim == 0 ? "the store at 127.0.0.1:" : "process " + std::to_string(victim) + " (";
    EXPECT_NE(said.find(lost), std::string::npos) << said;
    const std::string own = rank == 0 ? "" : "process " + std::to_string(rank) + ": ";
    EXPECT_EQ(said.find("stablemask: error: " + own), 0u) << said;
  }
  const auto newest = load_latest_checkpoint(folder / "run/checkpoints");
  ASSERT_TRUE(newest);
  EXPECT_EQ(newest->step % 3, 0) << "saved by train.save_every: nothing after the loss";
}

TEST_F(ProcessesTest, AKilledProcessEndsTheOthersAndTheRunGoesOn) {
  for (const int victim : {1, 0}) {
    Launch launch(folder_, 3, pretrain({"train.steps=1000000", "train.save_every=3"}));
    const int64_t before = saved("run").empty() ? 0 : saved("run").back();
    ASSERT_TRUE(wait_until([&] { return !saved("run").empty() && saved("run").back() > before; }))
        << launch.said();
    expect_survivors_to_end(folder_, launch, victim);
  }
  const int64_t next = saved("run").back() + 1;
  train(2, {"train.steps=" + std::to_string(next), "train.save_every=3"});
  EXPECT_EQ(saved("run").back(), next);
}

TEST_F(ProcessesTest, KeepTheBestCheckpointAndEndByPatience) {
  // The learning rate grows until the run worsens.
  std::vector<std::string> sets = {
      "optimizer.lr=10",      "schedule.warmup_steps=24", "train.steps=24",   "train.eval_every=2",
      "train.keep_best=true", "train.keep_last=1",        "train.patience=3", ""};
  std::vector<int64_t> best;
  for (const int size : {1, 2}) {
    const std::string out = "run" + std::to_string(size);
    sets.back() = "train.out=" + out;
    train(size, sets);
    best.push_back(load_checkpoint(resolve_checkpoint(folder_ / (out + "/best"))).step);
    ASSERT_EQ(saved(out), (std::vector<int64_t>{best.back(), best.back() + 3 * 2}));
    const json last = metrics_of(folder_ / out).back();
    EXPECT_EQ(last["step"], best.back() + 3 * 2) << "no process trained on";
  }
  EXPECT_EQ(best[1], best[0]);
  // A larger patience continues it, with another number of processes.
  sets[6] = "train.patience=5";
  train(1, sets);
  EXPECT_EQ(saved("run2"), (std::vector<int64_t>{best[1], best[1] + 5 * 2}));
  EXPECT_EQ(
      read_file(folder_ / "run2/checkpoints/BEST"),
      std::filesystem::path(resolve_checkpoint(folder_ / "run2/best")).filename().string() + "\n");
}

/// Ends of processes of which one has an error of its own.
void expect_one_faulty(Launch& launch, int faulty, ExitCode code, const std::string& reason) {
  const Codes codes = launch.codes();
  for (int rank = 0; rank < static_cast<int>(codes.size()); ++rank) {
    const std::string said = launch.err(rank);
    EXPECT_EQ(codes[rank], static_cast<int>(rank == faulty ? code : ExitCode::kPeerLost)) << said;
    EXPECT_NE(said.find(reason), std::string::npos) << said;
    if (rank == faulty) continue;
    const std::string name = "process " + std::to_string(faulty) + " (";
    EXPECT_NE(said.find(name), std::string::npos) << said;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  }
}

/// A token of sequence `sequence` gets an id that the vocabulary lacks.
void damage(const std::string& shard, int64_t sequence) {
  std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(256 + 2 * (sequence * 16 + 3));
  file.write("\xFF\xFF", 2);
}

TEST_F(ProcessesTest, ABadShardSavesTheStepBeforeEverywhere) {
  // Step 5 is the first that reads the damage, in the share of process 1: rows 6 to 11.
  const int64_t sequences = (Shard::open(folder_ / "train.shard").size() - 1) / 16;
  damage(folder_ / "train.shard", Loader::sequence_at(1337, 0, 4 * 12 + 8, sequences));
  Launch launch(folder_, 2, pretrain({"data.verify=headers", "data.prefetch=0"}));
  expect_one_faulty(launch, 1, ExitCode::kData, "train.shard");
  EXPECT_EQ(saved("run"), (std::vector<int64_t>{4})) << launch.said();
}

TEST_F(ProcessesTest, AFullDiskEndsAllAndKeepsTheOlderCheckpoint) {
  train(2, {"train.steps=4"});
  Launch launch(
      folder_, 2, [](int) { return pretrain({"train.save_every=8"}); },
      [](int rank) {
        if (rank != 0) return;
        const rlimit limit = {8192, 8192};
        ::setrlimit(RLIMIT_FSIZE, &limit);
      });
  expect_one_faulty(launch, 0, ExitCode::kCheckpoint, "step-00000008");
  EXPECT_EQ(saved("run"), (std::vector<int64_t>{4})) << launch.said();
}

TEST_F(ProcessesTest, DifferentRunsAreRefusedBeforeTheFirstStep) {
  std::filesystem::create_directory(folder_ / "other");
  const TinyCorpus other("One more line .");
  const auto refused = [&](const std::string& what, const std::function<Arguments(int)>& arguments,
                           const std::vector<std::pair<std::string, std::string>>& files) {
    for (const auto& name : {"train.shard", "valid.shard", "tok.model", "tiny.json"}) {
      std::filesystem::copy_file(folder_ / name, folder_ / "other/" + name,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    for (const auto& [name, path] : files) {
      std::filesystem::copy_file(path, folder_ / "other/" + name,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    Launch launch(folder_, 3, arguments, [](int rank) {
      if (rank == 2 && ::chdir("other") != 0) ::_exit(99);
    });
    EXPECT_EQ(launch.codes(), Codes(3, static_cast<int>(ExitCode::kConfig))) << launch.said();
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_NE(launch.err(rank).find("process 2 ("), std::string::npos) << launch.err(rank);
      EXPECT_NE(launch.err(rank).find(what), std::string::npos) << launch.err(rank);
    }
    EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
  };
  const auto same = [](int) { return pretrain({}); };
  refused("/optimizer/lr 0.02 instead of 0.003",
          [](int rank) { return pretrain({rank == 2 ? "optimizer.lr=0.02" : "train.seed=1337"}); },
          {});
  refused(
      "SHA-256 of data.tokenizer", same,
      {{"train.shard", other.train}, {"valid.shard", other.valid}, {"tok.model", other.tokenizer}});
  refused("SHA-256 of train.shard", same, {{"train.shard", corpus_->valid}});
}

TEST_F(ProcessesTest, AConfigThatOneCannotReadEndsAll) {
  Launch launch(folder_, 3, [](int rank) {
    return pretrain(rank == 1 ? std::vector<std::string>{"train.stepz=3"} : Arguments{});
  });
  expect_one_faulty(launch, 1, ExitCode::kConfig, "train.stepz");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));

  Launch all(folder_, 2, pretrain({"train.stepz=3"}));
  EXPECT_EQ(all.codes(), Codes(2, static_cast<int>(ExitCode::kConfig))) << all.said();
}

TEST_F(ProcessesTest, ALockedRunFolderEndsAll) {
  Launch first(folder_, 1, pretrain({"train.steps=1000000"}));
  ASSERT_TRUE(waits_for_lines("run", 1)) << first.said();
  TemporaryFolder output;
  Launch second(
      output, 2, [](int) { return pretrain({}); },
      [&](int) {
        if (::chdir((folder_ / ".").c_str()) != 0) ::_exit(99);
      });
  expect_one_faulty(second, 0, ExitCode::kConfig, "another process trains in this run folder");
  first.send(0, SIGTERM);
  EXPECT_EQ(first.codes(), Codes{128 + SIGTERM});
}

TEST_F(ProcessesTest, ABatchThatCannotBeSplitIsRefused) {
  Launch launch(folder_, 2, pretrain({"train.batch=9"}));
  EXPECT_EQ(launch.codes(), Codes(2, static_cast<int>(ExitCode::kConfig))) << launch.said();
  EXPECT_NE(launch.err(0).find("use train.batch 8 or train.batch 10"), std::string::npos)
      << launch.err(0);
  EXPECT_EQ(launch.err(1).find("stablemask: error: process 1: "), 0u) << launch.err(1);
}

TEST_F(ProcessesTest, ADryRunIsPrintedOnce) {
  Arguments arguments = pretrain({});
  arguments.push_back("--dry-run");
  Launch launch(folder_, 2, arguments);
  EXPECT_EQ(launch.codes(), Codes(2, 0)) << launch.said();
  EXPECT_NE(launch.out(0).find("2   1 x 6 of the 12 sequences of a step each"), std::string::npos)
      << launch.out(0);
  EXPECT_EQ(launch.out(1), "");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
}

TEST_F(ProcessesTest, TorchrunStartsAndStopsThem) {
  const std::string torchrun = STABLEMASK_TORCHRUN;
  if (torchrun.empty()) GTEST_SKIP() << "no torchrun beside this LibTorch";
  const std::string command = "cd '" + folder_ / "." + "' && OMP_NUM_THREADS=1 '" + torchrun +
                              "' --standalone --no-python --nproc-per-node 2 '" STABLEMASK_BINARY
                              "' pretrain tiny.json --set train.steps=";
  const std::string output = " >torchrun.txt 2>&1";
  EXPECT_EQ(std::system((command + "30" + output).c_str()), 0)
      << read_file(folder_ / "torchrun.txt");
  EXPECT_EQ(saved("run"), (std::vector<int64_t>{30}));

  // torchrun passes a signal on to all processes, which save together.
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl("/bin/sh", "sh", "-c",
            (command.substr(0, command.find("OMP")) + "OMP_NUM_THREADS=1 exec" +
             command.substr(command.find("OMP_NUM_THREADS=1") + 17) + "1000000" + output)
                .c_str(),
            nullptr);
    ::_exit(98);
  }
  EXPECT_TRUE(waits_for_lines("run", 40)) << read_file(folder_ / "torchrun.txt");
  ::kill(child, SIGTERM);
  EXPECT_NE(exit_code_of(child), 0);
  const std::string said = read_file(folder_ / "torchrun.txt");
  EXPECT_NE(said.find("stopped by SIGTERM while training, after step "), std::string::npos) << said;
  EXPECT_EQ(saved("run").size(), 2u) << said;
}

}  // namespace
}  // namespace stablemask::testing
