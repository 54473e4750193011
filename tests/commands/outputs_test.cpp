// Where the results of commands go: files, links, pipes, devices, standard output; their names.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/data/shards.h"
#include "tests/commands/launch.h"
#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::base_config;
using testing::expect_refusal;
using testing::read_file;
using testing::wait_until;
using testing::write_file;

constexpr const char* kEval = "eval --checkpoint run --data valid.shard --json ";
constexpr const char* kPrepare =
    "data prepare --tokenizer tok.model --input text/wiki.valid.tokens --output ";
constexpr const char* kTrain =
    "tokenizer train --input text/wiki.valid.tokens --vocab-size 400 --output ";

bool is_null_device(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISCHR(status.st_mode) &&
         status.st_rdev == ::makedev(1, 3);
}

class OutputsTest : public testing::PipelineTest {
 protected:
  static json json_in(const std::string& name) { return json::parse(read_file(path(name))); }

  /// A node of the null device to write to. Root could replace the system's own, so root takes
  /// another one; "" where there can be none.
  static std::string null_device() {
    if (::geteuid() != 0) return "/dev/null";
    ::mknod(path("null").c_str(), S_IFCHR | 0666, ::makedev(1, 3));
    const int fd = ::open(path("null").c_str(), O_WRONLY);
    ::close(fd);
    return fd < 0 ? "" : path("null");
  }

  static std::vector<std::string> names_in(const std::string& folder, const std::string& prefix) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path(folder))) {
      const std::string name = entry.path().filename();
      if (name.starts_with(prefix)) names.push_back(name);
    }
    return names;
  }
};

TEST_F(OutputsTest, JsonGoesWhereverTheShellPutsIt) {
  const std::string eval = kEval;
  const json expected = json::parse(succeed(eval + "/dev/stdout").out);
  EXPECT_GT(expected["nll"].get<double>(), 0);

  succeed(eval + ">(cat >part.json; mv part.json substituted.json)");
  EXPECT_TRUE(wait_until([] { return exists("substituted.json"); }, 10));
  EXPECT_EQ(json_in("substituted.json"), expected);

  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  const pid_t child = testing::start_program(
      pipeline().folder,
      {"eval", "--checkpoint", "run", "--data", "valid.shard", "--json", "pipe"});
  EXPECT_EQ(json_in("pipe"), expected);
  EXPECT_EQ(testing::exit_code_of(child), 0) << read_file(path("err.txt"));
  EXPECT_TRUE(fs::is_fifo(path("pipe")));

  fs::create_directory(path("disk"));
  fs::create_symlink("disk/linked.json", path("link.json"));
  succeed(eval + "link.json");
  EXPECT_TRUE(fs::is_symlink(path("link.json")));
  EXPECT_EQ(json_in("disk/linked.json"), expected);
}

TEST_F(OutputsTest, ShardsAndTokenizersFollowLinksAndKeepDevices) {
  const std::string prepare = kPrepare, train = kTrain;
  fs::create_directory(path("far"));
  for (const std::string name : {"x.shard", "x.model"}) {
    fs::create_symlink("far/" + name, path(name));
  }
  succeed(prepare + "x.shard");
  succeed(train + "x.model");
  EXPECT_TRUE(fs::is_symlink(path("x.shard")) && fs::is_symlink(path("x.model")));
  Shard::open(path("far/x.shard")).verify();
  succeed(train + "/dev/fd/3 3>piped.model");
  EXPECT_EQ(read_file(path("piped.model")), read_file(path("far/x.model")));

  const std::string null = null_device();
  if (null.empty()) GTEST_SKIP() << "no device node can be made and opened here";
  succeed(prepare + null);
  EXPECT_TRUE(is_null_device(null));
}

TEST_F(OutputsTest, NothingIsReplacedThatHoldsSomethingElse) {
  fs::create_directory(path("kept"));
  write_file(path("kept/maps.json"), "A river .\n");
  write_file(path("kept/config.json"), base_config().dump());
  const auto before = snapshot();
  const std::string eval = kEval;
  expect_refusal(run(eval + "run/checkpoints/step-00000040/config.json"), 2,
                 "is the file that is read as");
  expect_refusal(run("inspect --checkpoint run --data kept/maps.json --out kept"), 2,
                 "kept/maps.json: is the file that is read as");
  expect_refusal(run(eval + "same.json", "", "same.json"), 2,
                 "same.json: is where standard output goes");
  write_file(path("same.ids"), "5 6 7\n");  // with >> it would grow for ever
  expect_refusal(run("tokenizer decode --tokenizer tok.model --input same.ids", "", "same.ids"), 2,
                 "standard output: is the file that is read as same.ids; send it elsewhere");
  expect_refusal(run(std::string(kPrepare) + ">(cat)"), 3, "is an open descriptor");
  expect_refusal(run("pretrain kept/config.json --set train.out=kept"), 2,
                 "kept/config.json: is the file that is read as");
  for (const char* name : {"same.json", "same.ids"}) fs::remove(path(name));
  EXPECT_EQ(snapshot(), before);
  succeed("pretrain run/config.json --quiet");  // which the program wrote
}

// The shard that eval makes of a text. That TMPDIR is not UTF-8 does not matter.
TEST_F(OutputsTest, TheNextEvaluationRemovesWhatAKilledOneLeft) {
  ASSERT_EQ(::mkfifo(path("text.pipe").c_str(), 0600), 0);
  const std::string folder = "tmp-\xE9";
  fs::create_directory(path(folder));
  ::setenv("TMPDIR", path(folder).c_str(), 1);
  const auto left = [&] { return names_in(folder, "stablemask-text-").size(); };
  const pid_t killed = testing::start_program(
      pipeline().folder, {"eval", "--checkpoint", "run", "--data", "text.pipe"});
  EXPECT_TRUE(wait_until([&] { return left() == 1; }));
  const std::string eval = "eval --checkpoint run --data text/wiki.valid.tokens";
  succeed(eval);
  EXPECT_EQ(left(), 1U) << "that of a living process stays";
  ::kill(killed, SIGKILL);
  EXPECT_EQ(testing::exit_code_of(killed), -SIGKILL);
  succeed(eval);
  EXPECT_EQ(left(), 0U);
  ::unsetenv("TMPDIR");
}

TEST_F(OutputsTest, ClosedStandardStreamsReceiveNoFile) {
  const std::string closed = "closed() { \\$@ <&- >&- 2>&-; }; closed";
  run("pretrain tiny.json --set train.out=closed --set train.log_every=1 --set train.steps=3 "
      "--set data.valid=",
      closed);
  EXPECT_TRUE(exists("closed/checkpoints/step-00000003/manifest.json"));
  EXPECT_EQ(testing::metrics_of(path("closed")).size(), 3U);
  EXPECT_EQ(read_file(path("closed/.lock")), "");  // opened second: it would be standard output
  EXPECT_EQ(run("config show tiny.json", closed).code, 1) << "the text is lost";
}

TEST_F(OutputsTest, ArgumentsThatAreNotUtf8AreRefusedAtOnce) {
  const auto before = snapshot();
  for (const std::string command : {kEval, "pretrain tiny.json --set train.out="}) {
    expect_refusal(run(command + "$'caf\\xe9'"), 2, "(0xE9) is not UTF-8");
  }
  EXPECT_EQ(snapshot(), before);
}

}  // namespace
}  // namespace stablemask
