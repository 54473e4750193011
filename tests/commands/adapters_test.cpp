// Every command on the checkpoints of adapters, and on RUN/best.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/commands/launch.h"
#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_refusal;
using testing::Outcome;
using testing::PipelineTest;
using testing::read_file;
using testing::write_file;

/// `lora` has adapters of the run `base`, a copy of the pipeline's; `merged` is both in one.
class AdapterCommands : public PipelineTest {
 protected:
  static void SetUpTestSuite() {
    fs::copy(path("run"), path("base"), fs::copy_options::recursive);
    json config = testing::base_config();
    config.erase("model");
    config["train"].update({{"out", "lora"},
                            {"init_from", "base"},
                            {"steps", 6},
                            {"eval_every", 2},
                            {"keep_best", true}});
    config["lora"] = {{"rank", 2}};
    write_file(path("lora.json"), config.dump());
    write_file(path("lines.jsonl"), "{\"text\": \" The river of Harn is long . \\n\"}\n");
    succeed("finetune lora.json --quiet");
    succeed("checkpoint merge lora --out merged");
  }
  /// Standard output of a command about a checkpoint, with the same name for all checkpoints.
  static std::string said(const std::string& command, const std::string& checkpoint) {
    std::string out = succeed(command + " --checkpoint " + checkpoint).out;
    for (const char* name : {"lora/checkpoints/step-00000006", "lora/best", "merged", "lora"}) {
      for (size_t at = out.find(name); at != std::string::npos; at = out.find(name)) {
        out.replace(at, std::string(name).size(), "NAME");
      }
    }
    return out;
  }
};

const std::vector<std::string> kCommands = {"eval --data valid.shard", "score --data lines.jsonl",
                                            "generate --greedy --prompt ' The river'"};

TEST_F(AdapterCommands, AreThoseOfTheMergedModel) {
  for (const std::string& command : kCommands) {
    EXPECT_EQ(said(command, "lora"), said(command, "merged"));
  }
  EXPECT_NE(said("score --data lines.jsonl", "lora"), said("score --data lines.jsonl", "base"));
  for (const char* name : {"lora", "merged"}) {
    succeed(std::string("inspect --data valid.shard --windows 2 --out seen/") + name +
            " --checkpoint " + name);
  }
  json seen = json::parse(read_file(path("seen/lora/inspect.json")));
  const json expected = json::parse(read_file(path("seen/merged/inspect.json")));
  seen["checkpoint"] = expected["checkpoint"];
  EXPECT_EQ(seen, expected);
}

TEST_F(AdapterCommands, AreServed) {
  const pid_t server = testing::start_program(
      pipeline().folder, {"serve", "--checkpoint", "lora", "--device", "cpu", "--port", "0"});
  // Not the end of a line alone: until the server has opened it, the file is an earlier command's.
  const auto listens = [] {
    const std::string out = read_file(path("out.txt"));
    return out.find(" at http://") != std::string::npos && out.ends_with("\n");
  };
  EXPECT_TRUE(testing::wait_until(listens, 20)) << read_file(path("err.txt"));
  EXPECT_EQ(read_file(path("out.txt")).find("serving lora at http://"), 0U);
  ::kill(server, SIGTERM);
  EXPECT_EQ(testing::exit_code_of(server), 128 + SIGTERM);
}

TEST_F(AdapterCommands, AreExportedAsAdapters) {
  succeed("export --checkpoint lora --to peft");
  const json config = json::parse(read_file(path("peft/adapter_config.json")));
  EXPECT_EQ(config["r"], 2);
  EXPECT_TRUE(exists("peft/adapter_model.safetensors"));
  succeed("import --from peft --base base --out again");
  EXPECT_EQ(read_file(path("again/model.safetensors")),
            read_file(path("lora/checkpoints/step-00000006/model.safetensors")));
  succeed("export --checkpoint merged --to whole");
  EXPECT_TRUE(exists("whole/model.safetensors"));
}

TEST_F(AdapterCommands, ABestCheckpointIsNamedEverywhere) {
  std::string best = read_file(path("lora/checkpoints/BEST"));
  best.pop_back();
  for (const std::string& command : kCommands) {
    EXPECT_EQ(said(command, "lora/best"), said(command, "lora/checkpoints/" + best));
  }
  succeed("inspect --data valid.shard --windows 1 --out seen/best --checkpoint lora/best");
  succeed("export --checkpoint lora/best --to best-peft");
  succeed("checkpoint merge lora/best --out best-merged");
  succeed("checkpoint strip lora/best best-stripped");
  EXPECT_NE(succeed("checkpoint verify lora/best").out.find(best + ": sound\n"), std::string::npos);
  succeed(
      "finetune lora.json --quiet --set lora.rank=0 --set train.init_from=lora/best "
      "--set train.out=from-best --set train.steps=1");
  for (const std::string command : {"checkpoint verify", "eval --data valid.shard --checkpoint"}) {
    expect_refusal(run(command + " run/best"), 4, "run/best: the run has named no best checkpoint");
    expect_refusal(run(command + " nowhere/best"), 4, "nowhere/best: there is no such folder");
  }
}

TEST_F(AdapterCommands, WithoutTheirBaseAreRefusedInOneLine) {
  fs::rename(path("base"), path("away"));
  std::vector<std::string> commands = kCommands;
  for (const char* more :
       {"inspect --data valid.shard --out seen/none", "serve --port 0", "export --to none"}) {
    commands.emplace_back(more);
  }
  for (const std::string& command : commands) {
    expect_refusal(run(command + " --checkpoint lora"), 4, "the checkpoint that its adapters");
  }
  expect_refusal(run("checkpoint merge lora --out none"), 4,
                 "base/checkpoints/step-00000040 is gone");
  expect_refusal(run("finetune lora.json --set train.steps=8"), 4, "put it back");
  EXPECT_FALSE(exists("none"));
  EXPECT_FALSE(exists("seen/none/inspect.json"));
  // What does not need it.
  succeed("checkpoint verify lora");
  succeed("checkpoint strip lora adapters-alone");
  fs::rename(path("away"), path("base"));
  succeed("eval --data valid.shard --checkpoint adapters-alone");
}

}  // namespace
}  // namespace stablemask
