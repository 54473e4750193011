#include "stablemask/io/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "src/io/manifest.h"
#include "stablemask/base/error.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

std::string save(const std::string& root, int64_t step, Retention retention = {100, 0}) {
  return save_checkpoint(root, TinyCheckpoint(step).content(), retention);
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

using Names = std::vector<std::string>;

void flip_bit(const std::string& path, size_t byte) {
  std::string bytes = read_bytes(path);
  bytes.at(byte) ^= 0x10;
  write_bytes(path, bytes);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Checkpoint, LoadsWhatWasSaved) {
  const Scratch scratch;
  const std::string folder = save(scratch / "a/b", 2000);
  EXPECT_EQ(folder, scratch / "a/b/step-00002000");
  EXPECT_EQ(names_in(folder), (Names{"config.json", "manifest.json", "model.safetensors",
                                     "optimizer.safetensors", "state.json", "tokenizer.model"}));
  EXPECT_EQ(names_in(scratch / "a/b"), (Names{"LATEST", "step-00002000"}));
  EXPECT_EQ(read_bytes(scratch / "a/b/LATEST"), "step-00002000\n");
  EXPECT_TRUE(verify_checkpoint(folder).empty());
  const Checkpoint loaded = load_checkpoint(folder);
  EXPECT_EQ(loaded.folder, folder);
  EXPECT_EQ(loaded.step, 2000);
  EXPECT_TRUE(is_tiny_checkpoint(loaded));
}

TEST(Checkpoint, WeightsAloneAreACheckpoint) {
  const Scratch scratch;
  TinyCheckpoint tiny(3);
  tiny.content().optimizer.clear();
  tiny.content().tokenizer_model.clear();
  const Checkpoint loaded =
      load_checkpoint(save_checkpoint(scratch.path(), tiny.content(), Retention{}));
  EXPECT_FALSE(loaded.optimizer);
  EXPECT_EQ(loaded.tokenizer_model, "");
  EXPECT_TRUE(same_tensors(loaded.model.tensors(), tiny.content().model));
}

TEST(Checkpoint, ATokenizerKeepsItsKindAndTheFilesBesideIt) {
  const Scratch scratch;
  TinyCheckpoint tiny(3);
  for (const bool json : {false, true}) {
    CheckpointContent& content = tiny.content();
    content.tokenizer_model = json ? "{}" : "\npieces";
    content.tokenizer_companions = {{"tokenizer_config.json", "{\"eos_token\": 1}"},
                                    {"chat_template.jinja", "{{ messages }}"}};
    if (!json) content.tokenizer_companions["tokenizer.json"] = "{ }";
    const std::string folder = save_checkpoint(scratch.path(), content, Retention{});
    EXPECT_TRUE(verify_checkpoint(folder).empty());
    EXPECT_EQ(fs::exists(folder + "/tokenizer.model"), !json);
    EXPECT_EQ(read_bytes(folder + "/tokenizer.json"), json ? "{}" : "{ }");
    const std::string stripped = scratch / (json ? "json" : "model");
    strip_checkpoint(folder, stripped);
    for (const std::string& from : {folder, stripped}) {
      const Checkpoint loaded = load_checkpoint(from);
      EXPECT_EQ(loaded.tokenizer_model, content.tokenizer_model);
      EXPECT_EQ(loaded.tokenizer_companions, content.tokenizer_companions);
    }
  }
}

TEST(Checkpoint, OptimizerCanBeLeftAlone) {
  const Scratch scratch;
  const std::string folder = save(scratch.path(), 3);
  flip_bit(folder + "/optimizer.safetensors", 200);
  EXPECT_FALSE(load_checkpoint(folder, CheckpointParts::kWithoutOptimizer).optimizer);
  EXPECT_THROW(load_checkpoint(folder), CheckpointError);
  fs::remove(folder + "/optimizer.safetensors");
  const Checkpoint loaded = load_checkpoint(folder, CheckpointParts::kWithoutOptimizer);
  EXPECT_FALSE(loaded.optimizer);
  EXPECT_TRUE(same_tensors(loaded.model.tensors(), TinyCheckpoint(3).content().model));
  EXPECT_EQ(load_latest_checkpoint(scratch.path(), CheckpointParts::kWithoutOptimizer)->step, 3);
  EXPECT_TRUE(contains(message_of<CheckpointError>([&] { load_checkpoint(folder); }),
                       "optimizer.safetensors: cannot be opened"));
}

TEST(Checkpoint, ANewerVersionIsRefusedByNameAndNotSkipped) {
  const Scratch scratch;
  save(scratch.path(), 1);
  const std::string manifest = save(scratch.path(), 2) + "/manifest.json";
  std::string text = read_bytes(manifest);
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  const std::string expected = manifest +
                               ": was written by a newer version of the program (manifest version "
                               "2; this program reads 1); update the program";
  for (const std::string& newer :
       {text, std::string(R"({"format": "stablemask-checkpoint", "version": 2, "parts": []})")}) {
    write_bytes(manifest, newer);
    EXPECT_EQ(message_of<CheckpointError>([&] { load_checkpoint(scratch / "step-00000002"); }),
              expected);
    EXPECT_EQ(message_of<CheckpointError>([&] { load_latest_checkpoint(scratch.path()); }),
              expected);
    EXPECT_EQ(verify_checkpoint(scratch / "step-00000002"), Names{expected});
  }
}

TEST(Checkpoint, ConfigIsReadWithoutTheOtherFiles) {
  const Scratch scratch;
  const std::string folder = save(scratch.path(), 3);
  std::filesystem::remove(folder + "/model.safetensors");
  EXPECT_EQ(read_checkpoint_config(folder), TinyCheckpoint(3).content().config_json);
  write_bytes(folder + "/config.json", "{}");
  EXPECT_NE(
      message_of<CheckpointError>([&] { read_checkpoint_config(folder); }).find("config.json"),
      std::string::npos);
}

TEST(Checkpoint, RetentionKeepsTheLastAndTheMultiples) {
  const Scratch scratch;
  for (int64_t step = 10; step <= 70; step += 10) save(scratch.path(), step, {2, 30});
  EXPECT_EQ(names_in(scratch.path()),
            (Names{"LATEST", "step-00000030", "step-00000060", "step-00000070"}));
  save(scratch.path(), 80, {1, 0});
  EXPECT_EQ(names_in(scratch.path()), (Names{"LATEST", "step-00000080"}));
}

TEST(Checkpoint, RetentionCountsCompleteOnesOnly) {
  const Scratch scratch;
  save(scratch.path(), 1);
  for (const char* name : {"step-00000008", "step-00000009"}) fs::create_directory(scratch / name);
  save(scratch.path(), 2, {1, 0});
  EXPECT_EQ(names_in(scratch.path()),
            (Names{"LATEST", "step-00000002", "step-00000008", "step-00000009"}));
  // An earlier step than what is there: both the newest and the new one stay.
  save(scratch.path(), 1, {1, 0});
  EXPECT_EQ(names_in(scratch.path()),
            (Names{"LATEST", "step-00000001", "step-00000002", "step-00000008", "step-00000009"}));
}

TEST(Checkpoint, RemovalsByTheNextSaveAreForetold) {
  for (const Retention retention : {Retention{1, 0}, {2, 0}, {3, 0}, {6, 0}, {1, 20}, {2, 30}}) {
    const Scratch scratch;
    EXPECT_EQ(removed_by_next_save(scratch.path(), retention), Names());
    for (const int64_t step : {10, 20, 30, 40, 50}) save(scratch.path(), step);
    std::filesystem::remove(scratch / "step-00000030/manifest.json");  // not complete
    const Names foretold = removed_by_next_save(scratch.path(), retention);
    Names expected = names_in(scratch.path());
    for (const std::string& name : foretold) std::erase(expected, name);
    save(scratch.path(), 60, retention);
    expected.push_back("step-00000060");
    EXPECT_EQ(names_in(scratch.path()), expected) << retention.keep_last;
  }
}

TEST(Checkpoint, HashingReportsTheBytesOfTheManifest) {
  const Scratch scratch;
  const std::string folder = save(scratch.path(), 1);
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename() != "manifest.json") bytes += entry.file_size();
  }
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  const auto progress = [&](uint64_t done, uint64_t total) { seen.emplace_back(done, total); };
  const std::pair<uint64_t, uint64_t> all(bytes, bytes);
  verify_checkpoint(folder, progress);
  EXPECT_EQ(seen.back(), all);
  seen.clear();
  load_latest_checkpoint(scratch.path(), CheckpointParts::kAll, progress);
  EXPECT_EQ(seen.back(), all);
}

TEST(Checkpoint, LeftoversOfTheDeadGoThoseOfTheLivingStay) {
  const Scratch scratch;
  const std::string dead = scratch / "step-00000005.tmp-1-deadbeef";
  const std::string living = scratch / "step-00000006.tmp-1-deadbeef";
  const std::string foreign = scratch / "notes.tmp-1-deadbeef";
  for (const std::string& folder : {dead, living, foreign}) fs::create_directory(folder);
  write_bytes(dead + "/model.safetensors", "half");
  write_bytes(scratch / "LATEST.tmp-1-deadbeef", "step");
  const int lock = ::open(living.c_str(), O_RDONLY);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);

  ASSERT_EQ(list_checkpoints(scratch.path()).size(), 1u);
  EXPECT_EQ(list_checkpoints(scratch.path())[0].folder, dead);
  EXPECT_FALSE(list_checkpoints(scratch.path())[0].complete);
  EXPECT_FALSE(load_latest_checkpoint(scratch.path()));

  save(scratch.path(), 7);
  EXPECT_EQ(names_in(scratch.path()), (Names{"LATEST", "notes.tmp-1-deadbeef",
                                             "step-00000006.tmp-1-deadbeef", "step-00000007"}));
  ::close(lock);
}

TEST(Checkpoint, ListIsAscendingWithSizes) {
  const Scratch scratch;
  EXPECT_TRUE(list_checkpoints(scratch / "none").empty());
  for (const int64_t step : {100000000, 20, 3}) save(scratch.path(), step);
  fs::create_directory(scratch / "step-4");  // not our spelling
  const std::vector<CheckpointSummary> found = list_checkpoints(scratch.path());
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].step, 3);
  EXPECT_EQ(found[2].step, 100000000);
  EXPECT_EQ(found[2].folder, scratch / "step-100000000");
  uint64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(found[0].folder)) bytes += file.file_size();
  EXPECT_EQ(found[0].bytes, bytes);
  EXPECT_TRUE(found[0].complete);
}

TEST(Checkpoint, SavingAStepAgainReplacesIt) {
  const Scratch scratch;
  const std::string folder = save(scratch.path(), 5);
  flip_bit(folder + "/state.json", 3);
  write_bytes(folder + "/stray", "x");
  ASSERT_FALSE(verify_checkpoint(folder).empty());
  save(scratch.path(), 5);
  EXPECT_TRUE(is_tiny_checkpoint(load_checkpoint(folder)));
  EXPECT_FALSE(fs::exists(folder + "/stray"));
  EXPECT_EQ(names_in(scratch.path()), (Names{"LATEST", "step-00000005"}));
}

TEST(Checkpoint, TextsThatAreTooLongAreNotReadAtAll) {
  const Scratch scratch;
  for (const bool state : {true, false}) {
    TinyCheckpoint tiny(1);
    (state ? tiny.content().state_json : tiny.content().config_json) =
        std::string((size_t{1} << 20) + 1, ' ');
    const std::string folder = save_checkpoint(scratch.path(), tiny.content(), {});
    EXPECT_EQ(message_of<CheckpointError>([&] { load_checkpoint(folder); }),
              folder + (state ? "/state.json" : "/config.json") +
                  ": is 1048577 bytes long; at most 1048576 are read");
  }
}

TEST(Checkpoint, LatestFallsBackWithAWarning) {
  const Scratch scratch;
  for (const int64_t step : {1, 2, 3}) save(scratch.path(), step);
  flip_bit(scratch / "step-00000003/model.safetensors", 250);
  fs::remove(scratch / "step-00000002/manifest.json");
  testing::internal::CaptureStderr();
  const std::optional<Checkpoint> loaded = load_latest_checkpoint(scratch.path());
  const std::string warnings = testing::internal::GetCapturedStderr();
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->step, 1);
  EXPECT_TRUE(is_tiny_checkpoint(*loaded));
  EXPECT_TRUE(contains(warnings, "step-00000003/model.safetensors: is damaged")) << warnings;
  EXPECT_TRUE(contains(warnings, "step-00000002/manifest.json: cannot be opened")) << warnings;

  flip_bit(scratch / "step-00000001/config.json", 0);
  testing::internal::CaptureStderr();
  EXPECT_TRUE(contains(message_of<CheckpointError>([&] { load_latest_checkpoint(scratch.path()); }),
                       "none of the 3"));
  testing::internal::GetCapturedStderr();
}

TEST(Checkpoint, NoCheckpointIsNotAnError) {
  const Scratch scratch;
  EXPECT_FALSE(load_latest_checkpoint(scratch.path()));
  EXPECT_FALSE(load_latest_checkpoint(scratch / "missing"));
}

TEST(Checkpoint, VerifyNamesEveryProblem) {
  const Scratch scratch;
  const std::string folder = save(scratch.path(), 5);
  flip_bit(folder + "/model.safetensors", 250);
  fs::remove(folder + "/config.json");
  fs::resize_file(folder + "/tokenizer.model", 7);
  const std::vector<std::string> problems = verify_checkpoint(folder);
  ASSERT_EQ(problems.size(), 3u);
  EXPECT_TRUE(contains(problems[0], "/config.json: cannot be opened: No such file")) << problems[0];
  EXPECT_TRUE(contains(problems[1], "/model.safetensors: is damaged: its SHA-256")) << problems[1];
  EXPECT_TRUE(contains(problems[2], "/tokenizer.model: is damaged: 7 bytes instead of the 8"))
      << problems[2];
  const std::string message = message_of<CheckpointError>([&] { load_checkpoint(folder); });
  EXPECT_TRUE(contains(message, "/config.json") && contains(message, "and 2 more")) << message;
}

TEST(Checkpoint, ManifestAllowsOneSpelling) {
  const std::string hash(64, 'a');
  Manifest manifest;
  manifest.step = 5;
  manifest.files = {{kModelFile, {1, hash}}, {kStateFile, {2, hash}}, {kConfigFile, {3, hash}}};
  const std::string text = render_manifest(manifest);
  EXPECT_EQ(render_manifest(parse_manifest(text, "m")), text);

  const auto refusal = [](const std::string& bad) {
    return message_of<CheckpointError>([&] { parse_manifest(bad, "m"); });
  };
  EXPECT_TRUE(contains(refusal(text + " "), "its hash differs"));
  std::string other_step = text;
  other_step.replace(other_step.find("\"step\": 5"), 9, "\"step\": 6");
  EXPECT_TRUE(contains(refusal(other_step), "its hash differs"));
  EXPECT_TRUE(contains(refusal("{}"), "damaged"));
  EXPECT_TRUE(contains(refusal("[]"), "damaged"));
  EXPECT_TRUE(contains(refusal(""), "damaged"));
  std::string newer = text;
  newer.replace(newer.find("\"version\": 1"), 12, "\"version\": 2");
  EXPECT_TRUE(contains(refusal(newer), "newer version of the program (manifest version 2"));

  for (const std::string field : {"\"step\": 5", "\"bytes\": 1", "\"version\": 1"}) {
    std::string fraction = text;
    fraction.insert(fraction.find(field) + field.size(), "e300");
    EXPECT_TRUE(contains(refusal(fraction), "is not an integer")) << field;
  }

  Manifest outside = manifest;
  outside.files["../state.json"] = {1, hash};
  EXPECT_TRUE(
      contains(refusal(render_manifest(outside)), "\"../state.json\" that no checkpoint has"));
  Manifest lacking = manifest;
  lacking.files.erase(kStateFile);
  EXPECT_TRUE(contains(refusal(render_manifest(lacking)), "lists no state.json"));
}

TEST(Checkpoint, TheFoldersNameMustNotLie) {
  const Scratch scratch;
  fs::rename(save(scratch.path(), 5), scratch / "step-00000006");
  EXPECT_TRUE(contains(
      message_of<CheckpointError>([&] { load_checkpoint(scratch / "step-00000006/"); }), "step 5"));
  fs::rename(scratch / "step-00000006", scratch / "best");
  EXPECT_EQ(load_checkpoint(scratch / "best").step, 5);
}

TEST(Checkpoint, ResolvesRunsRootsAndCheckpoints) {
  const Scratch scratch;
  const std::string root = scratch / "run/checkpoints";
  save(root, 1);
  const std::string newest = save(root, 2);
  fs::create_directory(root + "/step-00000003");
  for (const std::string& path : {scratch / "run", scratch / "run/", root, newest}) {
    EXPECT_TRUE(fs::equivalent(resolve_checkpoint(path), newest)) << path;
  }
  const auto message = [](const std::string& path) {
    return message_of<CheckpointError>([&] { resolve_checkpoint(path); });
  };
  EXPECT_TRUE(contains(message(scratch / "missing"), "there is no such folder"));
  EXPECT_EQ(message(scratch.path()), scratch.path() + ": holds runs, name one: run");
  save(scratch / "b/checkpoints", 1);
  save(scratch / "another", 1);
  fs::create_directory(scratch / "empty");
  EXPECT_EQ(message(scratch.path()), scratch.path() + ": holds runs, name one: another, b, run");
  EXPECT_TRUE(contains(message(scratch / "empty"), "holds no complete checkpoint"));
  EXPECT_TRUE(contains(message(root + "/step-00000003"), "holds no complete checkpoint"));
}

TEST(Checkpoint, LackOfSpaceIsFoundBeforeAnythingIsWritten) {
  const Scratch scratch;
  save(scratch.path(), 1);
  TinyCheckpoint tiny(2);
  tiny.content().model["huge"] = {ElementType::kF32, {int64_t{1} << 55}, &tiny};
  const std::string message = message_of<CheckpointError>(
      [&] { save_checkpoint(scratch.path(), tiny.content(), Retention{}); });
  EXPECT_TRUE(contains(message, "not enough space")) << message;
  EXPECT_EQ(names_in(scratch.path()), (Names{"LATEST", "step-00000001"}));
}

TEST(Checkpoint, ARefusedTensorLeavesNothingBehind) {
  const Scratch scratch;
  TinyCheckpoint tiny(2);
  tiny.content().optimizer["bad\nname"] = tiny.content().optimizer["m.embedding"];
  EXPECT_THROW(save_checkpoint(scratch.path(), tiny.content(), Retention{}), CheckpointError);
  EXPECT_TRUE(names_in(scratch.path()).empty());
}

/// Runs `action` in a process of its own and returns the message of its CheckpointError.
std::string message_in_child(const std::function<void()>& restrict,
                             const std::function<void()>& action) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    restrict();
    const std::string message = message_of<CheckpointError>(action);
    const ssize_t written = ::write(ends[1], message.data(), message.size());
    ::_exit(written == static_cast<ssize_t>(message.size()) ? 0 : 1);
  }
  ::close(ends[1]);
  std::string message;
  char buffer[512];
  for (ssize_t count = 0; (count = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    message.append(buffer, static_cast<size_t>(count));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return status == 0 ? message : "the child ended badly: " + message;
}

TEST(CheckpointFailure, FileSizeLimitKeepsTheOlderOnes) {
  const Scratch scratch;
  save(scratch.path(), 1);
  for (const rlim_t limit : {0, 100, 200, 330}) {
    const std::string message = message_in_child(
        [&] {
          ::signal(SIGXFSZ, SIG_IGN);
          const rlimit size = {limit, limit};
          ::setrlimit(RLIMIT_FSIZE, &size);
        },
        [&] {
          save(scratch.path(), 2, {1, 0});
        });
    EXPECT_TRUE(contains(message, "File too large; the file size limit")) << limit << message;
    EXPECT_EQ(names_in(scratch.path()), (Names{"LATEST", "step-00000001"})) << limit;
    EXPECT_TRUE(is_tiny_checkpoint(*load_latest_checkpoint(scratch.path())));
  }
}

TEST(CheckpointFailure, ReadOnlyFolderIsNamed) {
  const Scratch scratch;
  save(scratch.path(), 1);
  const auto become_nobody = [] {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0 && ::setuid(kNobody) != 0) ::_exit(2);
  };
  ::chmod(scratch.path().c_str(), 0555);
  const std::string message = message_in_child(become_nobody, [&] {
    save(scratch.path(), 2, {1, 0});
  });
  ::chmod(scratch.path().c_str(), 0755);
  EXPECT_TRUE(contains(message, "cannot be created: Permission denied; check the permissions"))
      << message;
  EXPECT_TRUE(contains(message, scratch / "step-00000002")) << message;
  EXPECT_EQ(names_in(scratch.path()), (Names{"LATEST", "step-00000001"}));
}

TEST(CheckpointFailure, RootThatIsAFile) {
  const Scratch scratch;
  write_bytes(scratch / "file", "x");
  EXPECT_TRUE(
      contains(message_of<CheckpointError>([&] { save(scratch / "file", 1); }), scratch / "file"));
  EXPECT_TRUE(contains(message_of<CheckpointError>([&] { save(scratch / "file/below", 1); }),
                       "Not a directory"));
}

}  // namespace
}  // namespace stablemask
