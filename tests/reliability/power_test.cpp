// Power failures. strace records what a command does to the disk; after every call a model of the
// disk (disk_model.h) loses what no fsync has confirmed, in several ways, and the folder that is
// left must hold everything that the command had said was done.
//
// STABLEMASK_FAULTS=all tries more ways and the commands of the program itself.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/data/prepare.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/report/jsonl.h"
#include "stablemask/report/tensorboard.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"
#include "tests/reliability/disk_model.h"
#include "tests/reliability/storage_state.h"
#include "tests/reliability/strace.h"
#include "tests/reliability/totals.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

auto* const totals =
    static_cast<Totals*>(testing::AddGlobalTestEnvironment(new Totals("power failures")));

using Change = DiskModel::Change;
using Fates = std::function<Fate(const Change&)>;

bool is_data(const Change& change) { return change.entries.empty(); }

/// What may become of the `count` unconfirmed changes. The random ones: names survive up to some
/// moment, as with a journal, or each for itself; bytes each for itself.
std::vector<Fates> ways_to_fail(size_t count, std::mt19937& random, int random_ways) {
  std::vector<Fates> ways = {
      [](const Change&) { return Fate::kLost; },
      [](const Change&) { return Fate::kKept; },
      [](const Change& change) { return is_data(change) ? Fate::kLost : Fate::kKept; },
      [](const Change& change) { return is_data(change) ? Fate::kSizeOnly : Fate::kKept; },
      [](const Change& change) { return is_data(change) ? Fate::kKept : Fate::kLost; },
  };
  for (int k = 0; k < random_ways && count > 1; ++k) {
    const bool journal = k % 2 == 0;
    ways.push_back([&random, journal, left = random() % (count + 1)](const Change& change) mutable {
      const bool before = left > 0;
      left -= before;
      if (is_data(change)) return static_cast<Fate>(random() % 4);
      return (journal ? before : random() % 2 == 0) ? Fate::kKept : Fate::kLost;
    });
  }
  return ways;
}

std::string key_of(const DiskImage& image, const std::string& said) {
  Sha256 hash;
  const auto add = [&](const std::string& text) {
    const std::string size = std::to_string(text.size()) + " ";
    hash.update(size.data(), size.size());
    hash.update(text.data(), text.size());
  };
  add(said);
  for (const auto& [path, bytes] : image) {
    add(path);
    add(bytes ? *bytes : "/");
  }
  return hash.hex();
}

/// The lines of steps up to `last`.
std::string lines_until(const std::string& lines, int64_t last) {
  std::string kept;
  std::istringstream stream(lines);
  for (std::string line; std::getline(stream, line);) {
    const size_t at = line.find("\"step\":");
    if (at != std::string::npos && std::atoll(line.c_str() + at + 7) <= last) kept += line + "\n";
  }
  return kept;
}

class Power : public testing::Test {
 protected:
  void SetUp() override {
    const std::string problem = strace_problem(scratch_ / "errors");
    if (!problem.empty()) GTEST_SKIP() << problem;
    fs::create_directory(root());
    share_terminal(1, false);  // no warnings of torn records
  }
  void TearDown() override { share_terminal(0, true); }

  /// Everything that the commands write is below.
  std::string root() const { return scratch_ / "root"; }
  std::string failed() const { return scratch_ / "failed"; }

  /// What is wrong with the folder failed() when the command had said `said`, or ended; "":
  /// nothing.
  using Check = std::function<std::string(const std::string& said, bool ended)>;

  /// Records the command, which ends well, and checks what is left of root() after failures.
  void fail_everywhere(const std::string& command, const Check& check) {
    failures_ = lost_ = 0;
    DiskModel disk(root());
    const std::string log = scratch_ / "log";
    const Outcome outcome = run_command(
        "strace -o " + log + " " + kRecordCalls + " " + command + " >" + (scratch_ / "said"),
        scratch_ / "errors");
    ASSERT_EQ(outcome.status, 0) << outcome.errors;
    end_ = read_image(root());
    std::mt19937 random(1);
    const int random_ways = tries_all_faults() ? 40 : 4;
    try_failures(disk, random, random_ways, check);
    for (const TracedCall& call : traced_calls(read_bytes(log))) {
      if (!disk.replay(call)) continue;
      if (call.name.starts_with("rename")) note_checkpoints(disk.live());
      try_failures(disk, random, random_ways, check);
    }
    seen_.clear();
    try_failures(disk, random, random_ways,
                 [&](const std::string& said, bool) { return check(said, true); });
    totals->add(failures_, lost_);
    EXPECT_EQ(disk.live(), end_) << "the model misses a call";
    std::printf("%s: %d power failures, %d lost\n",
                testing::UnitTest::GetInstance()->current_test_info()->name(), failures_, lost_);
  }

  void try_failures(const DiskModel& disk, std::mt19937& random, int random_ways,
                    const Check& check) {
    for (const Fates& way : ways_to_fail(disk.unconfirmed().size(), random, random_ways)) {
      const DiskImage image = disk.after_failure(way);
      if (!seen_.insert(key_of(image, disk.said())).second) continue;
      write_image(image, failed());
      ++failures_;
      const std::string problem = check(disk.said(), false);
      if (problem.empty()) continue;
      ++lost_;
      if (lost_ <= 5) ADD_FAILURE() << problem << "\nafter it said: " << disk.said();
    }
  }

  /// The manifests of all checkpoints that ever had their final name: they hold the hashes of all
  /// bytes.
  void note_checkpoints(const DiskImage& image) {
    static const std::regex manifest(".*step-([0-9]{8})/manifest\\.json");
    for (const auto& [path, bytes] : image) {
      std::smatch match;
      if (std::regex_match(path, match, manifest)) manifests_.insert(*bytes);
    }
  }

  /// What is wrong with a run folder below failed(): after "saved …/step-N" its checkpoint is at
  /// least that of step N, with the bits that it had, and each record until then is there.
  std::string run_problem(const std::string& run, const std::string& said, int64_t at_least) {
    static const std::regex saved("saved [^\n]*/step-([0-9]{8})");
    for (std::sregex_iterator at(said.begin(), said.end(), saved), end; at != end; ++at) {
      at_least = std::max<int64_t>(at_least, std::stoll((*at)[1]));
    }
    const std::string folder = failed() + "/" + run;
    int64_t newest = 0;
    const auto has_known_bits = [&](const Checkpoint& checkpoint) {
      return manifests_.count(read_bytes(checkpoint.folder + "/manifest.json")) > 0;
    };
    const std::string problem =
        checkpoint_problem(folder + "/checkpoints", at_least, newest, has_known_bits);
    if (!problem.empty() || newest == 0) return problem;
    for (const std::string name : {"metrics.jsonl", "samples.jsonl"}) {
      const auto whole = end_.find(run + "/" + name);
      if (whole == end_.end()) continue;
      JsonlMetrics(folder + "/" + name).cut_after(newest);
      if (read_bytes(folder + "/" + name) != lines_until(*whole->second, newest)) {
        return name + " is not the one that step " + std::to_string(newest) + " had";
      }
    }
    if (end_.count(run + "/tensorboard") == 0) return "";
    TensorboardMetrics(folder + "/tensorboard", "{}").cut_after(newest);
    const std::vector<int64_t> steps = steps_of_events(folder + "/tensorboard");
    for (int64_t step = 1; step <= newest; ++step) {
      if (steps.size() < static_cast<size_t>(newest) || steps[step - 1] != step) {
        return "an event is missing";
      }
    }
    return "";
  }

  /// What is wrong with a file below failed() that is replaced: `before` (nullopt: there was none)
  /// or what the command wrote, and that once it has said so.
  std::string file_problem(const std::string& path, const std::optional<std::string>& before,
                           bool done) const {
    const bool is_there = fs::exists(failed() + "/" + path);
    const std::string bytes = read_bytes(failed() + "/" + path);
    if (is_there && bytes == end_.at(path)) return "";
    if (done) return path + " is lost";
    return is_there == before.has_value() && bytes == before.value_or("") ? ""
                                                                          : path + " is incomplete";
  }

  Scratch scratch_;
  DiskImage end_;  ///< when the command has ended
  std::set<std::string> manifests_, seen_;
  int failures_ = 0, lost_ = 0;
  int64_t first_saved_ = 0;  ///< the checkpoint that there was at the start
};

TEST_F(Power, Save) {
  for (const int64_t step : {1, 2}) {
    save_checkpoint(root() + "/checkpoints", TinyCheckpoint(step).content(), {2, 0});
  }
  note_checkpoints(read_image(root()));
  fail_everywhere(STORAGE_WORK " save " + root() + " 3 1",
                  [&](const std::string& said, bool) { return run_problem("", said, 2); });
}

TEST_F(Power, Replace) {
  for (const int64_t step : {1, 2, 3}) {
    save_checkpoint(root() + "/checkpoints", TinyCheckpoint(step).content(), {3, 0});
  }
  note_checkpoints(read_image(root()));
  fail_everywhere(STORAGE_WORK " save " + root() + " 3 3",
                  [&](const std::string& said, bool) { return run_problem("", said, 3); });
}

TEST_F(Power, SaveBest) {
  for (const int64_t step : {1, 2}) {
    save_checkpoint(root() + "/checkpoints", TinyCheckpoint(step).content(), {2, 0, 1});
  }
  note_checkpoints(read_image(root()));
  fail_everywhere(STORAGE_WORK " best " + root() + " 3 1", [&](const std::string& said, bool) {
    const std::string problem = run_problem("", said, 2);
    if (!problem.empty()) return problem;
    return best_problem(failed(), said.empty() ? std::set<int64_t>{1, 3} : std::set<int64_t>{3});
  });
}

TEST_F(Power, Run) {
  fs::create_directory(root() + "/run");
  fail_everywhere(STORAGE_WORK " train " + root() + "/run 8",
                  [&](const std::string& said, bool) { return run_problem("run", said, 0); });
}

/// The run folder and the one that it is in are new, too.
TEST_F(Power, SaveInNewFolders) {
  fail_everywhere(STORAGE_WORK " save " + root() + "/new/run 3 1",
                  [&](const std::string& said, bool) { return run_problem("new/run", said, 0); });
}

TEST_F(Power, Resume) {
  const std::string work = STORAGE_WORK " train " + root();
  ASSERT_EQ(std::system((work + " 7 >/dev/null 2>&1").c_str()), 0);
  fs::remove_all(root() + "/checkpoints/step-00000006");
  note_checkpoints(read_image(root()));
  fail_everywhere(work + " 10",
                  [&](const std::string& said, bool) { return run_problem("", said, 4); });
}

/// A shard and a tokenizer, written anew and over older ones.
class PowerMaking : public Power,
                    public testing::WithParamInterface<std::tuple<const char*, bool>> {
 protected:
  void write_text(int lines) const {
    std::ostringstream text;
    for (int k = 0; k < lines; ++k) text << "The river has " << k * k << " bridges.\n";
    write_bytes(root() + "/text", text.str());
  }
};

TEST_P(PowerMaking, LosesNothing) {
  const auto [work, replaces] = GetParam();
  const std::string command = STORAGE_WORK " " + std::string(work) + " " + root();
  write_text(40);
  Tokenizer::train({root() + "/text"}, root() + "/tokenizer.model", {.vocab_size = 320});
  std::optional<std::string> before;
  if (replaces) {
    ASSERT_EQ(std::system((command + " >/dev/null").c_str()), 0);
    before = read_bytes(root() + "/output");
    write_text(60);
  }
  fail_everywhere(command, [&](const std::string& said, bool ended) {
    return file_problem("output", before, ended || said.find("wrote") != std::string::npos);
  });
}

INSTANTIATE_TEST_SUITE_P(Files, PowerMaking,
                         testing::Combine(testing::Values("prepare", "tokenizer"), testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "_over_another" : "_anew");
                         });

/// The commands of the program. A second takes each to start.
class PowerProgram : public Power {
 protected:
  void SetUp() override {
    if (!tries_all_faults()) GTEST_SKIP() << "STABLEMASK_FAULTS=all tries the program's commands";
    Power::SetUp();
    std::string text;
    for (int k = 0; k < 80; ++k) text += "The river has " + std::to_string(k * k) + " bridges.\n";
    write_bytes(root() + "/text", text);
    Tokenizer::train({root() + "/text"}, tokenizer(), {.vocab_size = 320});
    prepare_shard(root() + "/text", root() + "/shard", Tokenizer::load(tokenizer()), {});
    write_bytes(root() + "/config.json", R"({
      "model": {"layers": 1, "channels": 8, "heads": 2, "ffn_hidden": 16},
      "data": {"train": ["shard"], "valid": "shard", "tokenizer": "tokenizer.model"},
      "train": {"out": "new/run", "context": 16, "batch": 2, "device": "cpu", "log_every": 1,
        "eval_every": 3, "save_every": 2, "tensorboard": true, "sample_prompts": ["The river"]},
      "generate": {"max_tokens": 4}})");
  }
  std::string tokenizer() const { return root() + "/tokenizer.model"; }
  std::string program(const std::string& arguments) const {
    return "env -C " + root() + " OMP_NUM_THREADS=1 " STABLEMASK_BINARY " " + arguments;
  }
};

TEST_F(PowerProgram, PretrainAndResume) {
  const Check check = [&](const std::string& said, bool) {
    return run_problem("new/run", said, first_saved_);
  };
  const std::string out = " --set train.out=" + root() + "/new/run";
  fail_everywhere(program("pretrain config.json --set train.steps=6" + out), check);
  first_saved_ = 6;
  fail_everywhere(program("pretrain config.json --set train.steps=10" + out), check);
}

TEST_F(PowerProgram, Files) {
  const auto replaces = [&](const std::string& path, const std::string& arguments) {
    const std::string before = "before";
    write_bytes(root() + "/" + path, before);
    fail_everywhere(
        program(arguments + " " + root() + "/" + path),
        [&](const std::string&, bool ended) { return file_problem(path, before, ended); });
  };
  replaces("output", "data prepare --input text --tokenizer tokenizer.model --output");
  replaces("model", "tokenizer train --input text --vocab-size 310 --output");
  const std::string run = program("pretrain config.json --set train.steps=2 --quiet");
  ASSERT_EQ(std::system((run + " >/dev/null 2>&1").c_str()), 0);
  replaces("report.json", "eval --checkpoint new/run --data text --json");
}

/// What must be noticed: a file that is renamed before it is flushed, a folder that is not.
TEST_F(Power, TheModelLosesWhatIsNotFlushed) {
  const auto lost_after = [&](const std::vector<TracedCall>& calls) {
    fs::remove_all(root());
    fs::create_directory(root());
    write_bytes(root() + "/file", "old");
    DiskModel disk(root());
    for (const TracedCall& call : calls) disk.replay(call);
    std::set<std::string> contents;
    std::mt19937 random(1);
    for (const Fates& way : ways_to_fail(disk.unconfirmed().size(), random, 20)) {
      const DiskImage image = disk.after_failure(way);
      contents.insert(image.count("file") > 0 ? *image.at("file") : "none");
    }
    return contents;
  };
  using Contents = std::set<std::string>;
  const TracedCall open = {"openat", {"AT_FDCWD", root() + "/new", "O_WRONLY|O_CREAT", "0666"}, 3};
  const TracedCall folder = {"openat", {"AT_FDCWD", root() + "/.", "O_RDONLY"}, 4};
  const TracedCall write = {"write", {"3", "new", "3"}, 3};
  const TracedCall sync = {"fsync", {"3"}, 0}, sync_folder = {"fsync", {"4"}, 0};
  const TracedCall rename = {"rename", {root() + "/new", root() + "/file"}, 0};
  EXPECT_EQ(lost_after({open, write, sync, rename, folder, sync_folder}), Contents({"new"}));
  EXPECT_EQ(lost_after({open, write, sync, rename}), Contents({"old", "new"}));
  const Contents torn = lost_after({open, write, rename, folder, sync_folder});
  EXPECT_GT(torn.count(""), 0U);
  EXPECT_GT(torn.count(std::string(3, '\0')), 0U);
}

}  // namespace
}  // namespace stablemask
