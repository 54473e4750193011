// The program from an invented corpus to generated text, and what it says to bad input.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "stablemask/data/shards.h"
#include "stablemask/io/checkpoint.h"
#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::base_config;
using testing::expect_refusal;
using testing::Outcome;
using testing::PipelineTest;
using testing::read_file;
using testing::write_file;

TEST_F(PipelineTest, PretrainingLearnsAndKeepsItsRun) {
  ASSERT_EQ(pipeline().trained.code, 0) << pipeline().trained.err;
  EXPECT_EQ(pipeline().trained.err, "");
  EXPECT_NE(pipeline().trained.out.find("step 20/40 | loss "), std::string::npos)
      << pipeline().trained.out;
  EXPECT_NE(pipeline().trained.out.find("valid loss"), std::string::npos) << pipeline().trained.out;
  const std::vector<json> lines = testing::metrics_of(path("run"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_LT(lines[1]["loss"].get<double>(), std::log(600.0) - 1);
  EXPECT_TRUE(exists("run/checkpoints/step-00000040/manifest.json"));
  // Runs again without anything to do.
  const Outcome again = succeed("pretrain tiny.json --quiet");
  EXPECT_EQ(again.out, "");
  EXPECT_EQ(testing::metrics_of(path("run")), lines);
}

TEST_F(PipelineTest, FinetuneAndGenerate) {
  json tuned = base_config();
  tuned.erase("model");
  tuned["train"]["out"] = "tuned";
  tuned["train"]["init_from"] = "run";
  tuned["train"]["steps"] = 5;
  tuned["train"]["log_every"] = 1;
  write_file(path("tune.json"), tuned.dump());
  succeed("finetune tune.json --set train.freeze_layers=1");
  const double before = testing::metrics_of(path("run")).back()["loss"];
  EXPECT_NEAR(testing::metrics_of(path("tuned")).front()["loss"].get<double>(), before, 0.5);

  const Outcome text = succeed("generate --checkpoint tuned --prompt 'The river' --seed 4");
  EXPECT_EQ(text.out.rfind("The river", 0), 0u) << text.out;
  EXPECT_GT(text.out.size(), std::string("The river\n").size());
  EXPECT_EQ(succeed("generate --checkpoint tuned --prompt 'The river' --seed 4").out, text.out);
  expect_refusal(run("pretrain tune.json"), 2, "stablemask finetune");
}

TEST_F(PipelineTest, FinetuneGoesOnWithoutItsSource) {
  json tuned = base_config();
  tuned.erase("model");
  tuned["train"]["out"] = "alone";
  tuned["train"]["init_from"] = "source";
  tuned["schedule"]["warmup_steps"] = 1;
  write_file(path("alone.json"), tuned.dump());
  expect_refusal(run("finetune alone.json --set train.steps=2"), 4, "source");
  std::filesystem::copy(path("run"), path("source"), std::filesystem::copy_options::recursive);
  succeed("finetune alone.json --set train.steps=2");
  std::filesystem::remove_all(path("source"));
  succeed("finetune alone.json --set train.steps=4 --dry-run");
  succeed("finetune alone.json --set train.steps=4");
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(path("alone"))).step, 4);
  expect_refusal(run("finetune alone.json --set model.channels=64"), 2, "/model/channels: 64 here");
  // From a checkpoint named, into a run of its own.
  succeed("finetune alone.json --set train.steps=6 --set train.out=moved --resume alone");
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(path("moved"))).step, 6);
}

TEST_F(PipelineTest, DryRunWritesNothing) {
  const auto before = snapshot();
  const Outcome report = succeed("pretrain tiny.json --set train.out=dry --dry-run");
  for (const char* piece :
       {"parameters", "FLOPs per token", "memory", "checkpoint", "steps", "epochs"}) {
    EXPECT_NE(report.out.find(piece), std::string::npos) << piece << " in\n" << report.out;
  }
  EXPECT_EQ(snapshot(), before);
}

/// The help of a command ("" is the program) and of those below it; the number of helps seen.
int expect_examples(const std::string& command) {
  const testing::TemporaryFolder folder;
  const Outcome help = testing::run_program(folder, command + " --help");
  EXPECT_EQ(help.code, 0) << command << help.err;
  EXPECT_NE(help.out.find("\n  stablemask" + command + " "), std::string::npos) << help.out;
  // What is no help, no run folder of the quickstart's, or meant for the eyes of CLI11.
  for (const char* piece : {" --help\n", "runs/quickstart ", "->0"}) {
    EXPECT_EQ((help.out + "\n").find(piece), std::string::npos) << piece << " in\n" << help.out;
  }
  int seen = 1;
  std::istringstream lines(help.out);
  std::string line, name;
  while (std::getline(lines, line) && line != "Subcommands:") continue;
  while (std::getline(lines, line) && std::istringstream(line) >> name) {
    seen += expect_examples(command + " " + name);
  }
  return seen;
}

TEST(Help, EveryCommandShowsAnExampleOfItself) { EXPECT_GE(expect_examples(""), 25); }

TEST_F(PipelineTest, ConfigCommands) {
  EXPECT_EQ(succeed("config check tiny.json").out, "tiny.json: valid\n");
  expect_refusal(run("config check tiny.json --set train.steps=0"), 2, "/train/steps");
  const std::string shown = succeed("config show tiny.json --set train.steps=7").out;
  EXPECT_EQ(json::parse(shown)["train"]["steps"], 7);
  EXPECT_EQ(json::parse(shown)["optimizer"]["lr"], 0.01);
  write_file(path("shown.json"), shown);
  EXPECT_EQ(succeed("config show shown.json").out, shown);
  const json schema = json::parse(succeed("config schema").out);
  EXPECT_TRUE(schema["properties"]["train"]["properties"].contains("init_from")) << schema.dump(2);
  EXPECT_NE(succeed("config reference").out.find("| `init_from` |"), std::string::npos);
}

TEST_F(PipelineTest, TokenizerCommandsGiveTheTextBack) {
  const Outcome trained = succeed(
      "tokenizer train --type unigram --threads 2 --max-lines 300 --vocab-size 400 --input "
      "text/wiki.valid.tokens --output unigram.model");
  EXPECT_EQ(trained.out.rfind("unigram.model: 400 pieces, sha256 ", 0), 0u) << trained.out;
  for (const std::string model : {"tok.model", "unigram.model"}) {
    const std::string tokenizer = " --tokenizer " + model + " --input ";
    write_file(path("ids.txt"),
               succeed("tokenizer encode" + tokenizer + "text/wiki.valid.tokens").out);
    EXPECT_EQ(succeed("tokenizer decode" + tokenizer + "ids.txt").out,
              read_file(path("text/wiki.valid.tokens")));
  }
  write_file(path("words.txt"), "1 2\n3 four\n");
  expect_refusal(run("tokenizer decode --tokenizer tok.model --input words.txt"), 3, "line 2");
}

TEST_F(PipelineTest, DataPrepareTakesAFieldOfJsonl) {
  write_file(path("pages.txt"),
             "{\"body\": \"A river .\\nA town .\", \"text\": \"not this\"}\n"
             "{\"body\": \"The sea .\"}\n");
  succeed(
      "data prepare --format jsonl --field body --input pages.txt --tokenizer tok.model "
      "--output pages.shard");
  const json said = json::parse(succeed("data inspect pages.shard --verify --json").out);
  EXPECT_EQ(said["verified"], true);
  EXPECT_EQ(said["documents"], 2);
  EXPECT_EQ(said["words"], 9);
  EXPECT_EQ(said["lines"], 3);
  const Outcome text = succeed("data inspect pages.shard --verify");
  EXPECT_NE(text.out.find("verified: the payload is intact"), std::string::npos) << text.out;
}

TEST_F(PipelineTest, SigtermSavesAndTheSameCommandGoesOn) {
  const std::vector<const char*> arguments = {
      "pretrain", "tiny.json",          "--set", "train.out=long",
      "--set",    "train.steps=100000", "--set", "train.log_every=1"};
  const pid_t child = testing::start_program(pipeline().folder, arguments);
  while (!exists("long/metrics.jsonl") || testing::read_file(path("long/metrics.jsonl")).empty()) {
    ASSERT_EQ(::waitpid(child, nullptr, WNOHANG), 0) << read_file(path("err.txt"));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ::kill(child, SIGTERM);
  EXPECT_EQ(testing::exit_code_of(child), 128 + SIGTERM);
  const std::string said = read_file(path("err.txt"));
  EXPECT_NE(said.find("stopped by SIGTERM while training, after step"), std::string::npos) << said;

  const int64_t step = load_checkpoint(resolve_checkpoint(path("long"))).step;
  EXPECT_GT(step, 0);
  EXPECT_LT(step, 100000);
  const std::string steps = std::to_string(step + 2);
  succeed("pretrain tiny.json --set train.out=long --set train.steps=" + steps);
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(path("long"))).step, step + 2);
}

// Each refusal: one line on standard error, the documented exit code, not one file touched.
class RefusalTest : public PipelineTest {
 protected:
  void SetUp() override { before_ = snapshot(); }
  void TearDown() override { EXPECT_EQ(snapshot(), before_) << "a file was written or lost"; }
  /// A file for the test to go wrong on; not one of those that must stay as they are.
  std::string given(const std::string& name, const std::string& content) {
    write_file(path(name), content);
    before_ = snapshot();
    return name;
  }
  std::string given_config(const std::string& name, const json& config) {
    return given(name, config.dump(2));
  }

  std::map<std::string, size_t> before_;
};

TEST_F(RefusalTest, MisspeltKey) {
  json config = base_config();
  config["train"]["out"] = "refused";
  config["train"]["stepz"] = 3;
  expect_refusal(run("pretrain " + given_config("bad.json", config)), 2, "steps");
}

TEST_F(RefusalTest, WrongType) {
  json config = base_config();
  config["train"]["out"] = "refused";
  config["model"]["heads"] = "two";
  expect_refusal(run("pretrain " + given_config("bad.json", config)), 2, "/model/heads");
  expect_refusal(run("pretrain tiny.json --set train.out=refused --set train.steps=many"), 2,
                 "steps");
}

TEST_F(RefusalTest, MissingFiles) {
  expect_refusal(run("pretrain nowhere.json"), 2, "nowhere.json");
  expect_refusal(run("pretrain tiny.json --set train.out=refused --set data.valid=nowhere.shard"),
                 3, "nowhere.shard");
  expect_refusal(run("eval --checkpoint run --data nowhere.txt"), 3, "nowhere.txt");
  expect_refusal(run("eval --checkpoint nowhere --data valid.shard"), 4, "nowhere");
  expect_refusal(run("data prepare --input nowhere.txt --tokenizer tok.model --output x.shard"), 3,
                 "nowhere.txt");
}

TEST_F(RefusalTest, OutputsThatWouldReplaceAnInput) {
  const std::string text = given("mine.txt", read_file(path("text/wiki.valid.tokens")));
  std::filesystem::create_symlink(path(text), path("linked.txt"));
  before_ = snapshot();
  const std::string train = "tokenizer train --vocab-size 300 --input ";
  const std::string prepare = "data prepare --tokenizer tok.model ";
  for (const std::string& command : {
           prepare + "--input mine.txt --output mine.txt",
           prepare + "--input mine.txt --output linked.txt",
           prepare + "--input - --output mine.txt <mine.txt",
           prepare + "--input mine.txt --output tok.model",
           train + "text/wiki.train.tokens mine.txt --output mine.txt",
           std::string("eval --checkpoint run --data mine.txt --json ./mine.txt"),
       }) {
    expect_refusal(run(command), 2, "is the file that is read as");
  }
  expect_refusal(run("data synth --output text --megabytes 0.1"), 2, "--force");
}

TEST_F(RefusalTest, TruncatedShard) {
  const std::string whole = read_file(path("train.shard"));
  given("short.shard", whole.substr(0, whole.size() / 2));
  expect_refusal(
      run("pretrain tiny.json --set train.out=refused --set 'data.train=[\\\"short.shard\\\"]'"), 3,
      "short.shard");
  expect_refusal(run("eval --checkpoint run --data short.shard"), 3, "short.shard");
}

TEST_F(RefusalTest, DamagedShardPayload) {
  std::string bytes = read_file(path("train.shard"));
  bytes[bytes.size() / 2] ^= 1;
  given("flipped.shard", bytes);
  expect_refusal(
      run("pretrain tiny.json --set train.out=refused --set 'data.train=[\\\"flipped.shard\\\"]'"),
      3, "flipped.shard");
  expect_refusal(run("data inspect flipped.shard --verify"), 3, "flipped.shard");
}

TEST_F(RefusalTest, ShardOfAnotherTokenizer) {
  succeed("tokenizer train --input text/wiki.valid.tokens --output other.model --vocab-size 500");
  succeed(
      "data prepare --input text/wiki.valid.tokens --tokenizer other.model --output other.shard");
  before_ = snapshot();
  expect_refusal(run("pretrain tiny.json --set train.out=refused --set data.valid=other.shard"), 3,
                 "other.shard");
  expect_refusal(run("eval --checkpoint run --data other.shard"), 3, "other.shard");
}

TEST_F(RefusalTest, CorruptedCheckpointByte) {
  std::filesystem::copy(path("run/checkpoints/step-00000040"), path("flipped"),
                        std::filesystem::copy_options::recursive);
  std::string bytes = read_file(path("flipped/model.safetensors"));
  bytes[bytes.size() - 5] ^= 8;
  given("flipped/model.safetensors", bytes);
  expect_refusal(run("eval --checkpoint flipped --data valid.shard"), 4, "model.safetensors");
  expect_refusal(run("generate --checkpoint flipped --prompt x"), 4, "model.safetensors");
  expect_refusal(run("pretrain tiny.json --set train.out=refused --resume flipped"), 4,
                 "model.safetensors");
}

TEST_F(RefusalTest, TextThatIsNotUtf8) {
  given("latin1.txt", "A caf\xe9 by the river .\n");
  expect_refusal(run("data prepare --input latin1.txt --tokenizer tok.model --output x.shard"), 3,
                 "latin1.txt");
  expect_refusal(run("eval --checkpoint run --data latin1.txt"), 3, "latin1.txt");
}

TEST_F(RefusalTest, EmptyCorpus) {
  given("empty.txt", "");
  expect_refusal(run("data prepare --input empty.txt --tokenizer tok.model --output x.shard"), 3,
                 "empty.txt");
  expect_refusal(run("tokenizer train --input empty.txt --output x.model"), 3, "empty.txt");
  expect_refusal(run("eval --checkpoint run --data empty.txt"), 3, "empty.txt");
}

TEST_F(RefusalTest, CudaWithoutAGpu) {
  const std::string no_gpu = "CUDA_VISIBLE_DEVICES=";
  expect_refusal(run("pretrain tiny.json --set train.out=refused --set train.device=cuda", no_gpu),
                 2, "cuda");
  expect_refusal(run("eval --checkpoint run --data valid.shard --device cuda", no_gpu), 2, "cuda");
}

TEST_F(RefusalTest, BatchThatDoesNotFit) {
  // One activation of 42 GB; the limit on the address space refuses it where the memory would not.
  const std::string limit = "ulimit -v 40000000 &&";
  const std::string pretrain =
      "pretrain tiny.json --set train.batch=5000 --set model.ffn_hidden=16384 "
      "--set data.prefetch=0 --set train.out=";
  expect_refusal(run(pretrain + "refused", limit), 7, "lower train.micro_batch");
  EXPECT_FALSE(exists("refused"));
  // Nor does it leave or touch anything in a folder that was there.
  std::filesystem::create_directory(path("mine"));
  given("mine/metrics.jsonl", "{\"step\": 1}\n");
  expect_refusal(run(pretrain + "mine", limit), 7, "lower train.micro_batch");
}

TEST_F(RefusalTest, GeneratedTextThatDoesNotFit) {
  expect_refusal(
      run("generate --checkpoint run --prompt x --max-tokens 1000000000", "ulimit -v 40000000 &&"),
      7, "lower --max-tokens or shorten the prompt");
}

TEST_F(RefusalTest, CommandLineThatMakesNoSense) {
  expect_refusal(run("frobnicate"), 2, "\"frobnicate\"; choose one of tokenizer, data, config");
  expect_refusal(run("evl --help"), 2, "did you mean \"eval\"? (see stablemask --help)");
  expect_refusal(run("data inspcet x"), 2, "\"inspect\"? (see stablemask data --help)");
  const std::string eval = "eval --checkpoint run --data valid.shard ";
  expect_refusal(run(eval + "--window -1"), 2,
                 "--window: must be an integer from 0 to 16777216, not \"-1\" ");
  expect_refusal(run(eval + "--window abc"), 2,
                 "--window: must be an integer from 0 to 16777216, not \"abc\" ");
  expect_refusal(run(eval + "--device gpu"), 2,
                 "--device: must be one of auto, cpu, cuda, not \"gpu\" ");
  const std::string generate = "generate --checkpoint run --prompt ";
  expect_refusal(run(generate + "x --temperature -1"), 2, "--temperature: expected a number");
  expect_refusal(run(generate + "x --top-p 0"), 2, "--top-p: expected a number");
  expect_refusal(run(generate + "x --prompt-file tiny.json"), 2, "one of --prompt TEXT");
  expect_refusal(run("generate --checkpoint run"), 2, "one of --prompt TEXT");
  expect_refusal(run("generate --checkpoint run --prompt-file nowhere.txt"), 3, "nowhere.txt");
  expect_refusal(run("generate --checkpoint run --prompt-file text"), 3, "text: is a folder");
  expect_refusal(run(generate + "$'caf\\xe9'"), 2,
                 "argument 5, --prompt \"caf\uFFFD\": byte 4 (0xE9) is not UTF-8");
}

// Work that succeeded and cannot be told is no success.
TEST_F(RefusalTest, StandardOutputThatCannotBeWritten) {
  for (const std::string arguments :
       {"--help", "config show tiny.json", "data inspect valid.shard", "checkpoint ls run",
        "pretrain tiny.json --dry-run", "tokenizer encode --tokenizer tok.model --input tiny.json",
        "eval --checkpoint run --data valid.shard", "generate --checkpoint run --prompt x"}) {
    SCOPED_TRACE(arguments);
    expect_refusal(run(arguments, "", "/dev/full"), 1, "standard output: cannot be written");
  }
}

TEST_F(RefusalTest, WordFiguresOfTokensThatAreNotTheText) {
  const Shard shard = Shard::open(path("valid.shard"));
  ShardWriter writer(path("forged.shard"), shard.info().vocab_size, shard.info().tokenizer_sha256);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < shard.size(); ++i) tokens.push_back(shard.token(i));
  writer.append(tokens);
  ShardInfo counts = shard.info();
  counts.text_sha256 = counts.payload_sha256;
  writer.finish(counts);
  before_ = snapshot();
  expect_refusal(run("eval --checkpoint run --data forged.shard"), 3, "do not decode to the text");
}

TEST_F(RefusalTest, ResumeWithAnotherModel) {
  expect_refusal(run("pretrain tiny.json --set model.layers=2"), 2, "/model/layers: 1 -> 2");
  expect_refusal(run("pretrain tiny.json --resume never"), 4, "run");
}

TEST_F(RefusalTest, ListsOfLengthsThatMakeNoSense) {
  const std::string eval = "eval --checkpoint run --data valid.shard --lengths ";
  for (const std::string list : {"64,", "64,,128", "abc", "0", "16777217", "''"}) {
    expect_refusal(run(eval + list), 2,
                   "--lengths: must be window lengths from 1 to 16777216 with commas between them");
  }
  expect_refusal(run(eval + "64,128,64"), 2, "--lengths: names 64 twice");
  expect_refusal(run(eval + "64,128 --window 64"), 2,
                 "--lengths 64,128 cannot be combined with --window: ");
  expect_refusal(run(eval + "64 --stride 8"), 2, "cannot be combined with --stride: ");
  expect_refusal(run(eval + "64 --set eval.stride=8"), 2, "cannot be combined with eval.stride: ");
  given("window.json", R"({"eval": {"window": 32}})");
  expect_refusal(run(eval + "64 --config window.json"), 2, "cannot be combined with eval.window: ");
}

TEST_F(RefusalTest, MaskLengthsAndAttentionWindowsThatMakeNoSense) {
  const std::string eval = "eval --checkpoint run --data valid.shard ";
  const std::string generate = "generate --checkpoint run --prompt x ";
  for (const std::string length : {"0", "64.5", "sequence", "''"}) {
    expect_refusal(run(eval + "--mask-length " + length), 2,
                   "--mask-length: must be infinite, trained or a number of positions");
  }
  expect_refusal(run(generate + "--mask-length -1"), 2, "--mask-length: must be infinite");
  expect_refusal(run(generate + "--attention-window -1"), 2, "--attention-window: expected an");
  expect_refusal(run(eval + "--mask-length 32 --set model.stable_mask=false"), 2,
                 "--mask-length 32: the model of run/checkpoints/step-00000040 has no StableMask");
}

TEST_F(RefusalTest, EvaluationThatMakesNoSense) {
  expect_refusal(run("eval --checkpoint run --data valid.shard --window 8 --stride 9"), 2,
                 "stride");
  expect_refusal(run("eval --checkpoint run --data valid.shard --convention words"), 2,
                 "convention");
  expect_refusal(run("eval --checkpoint run --data valid.shard --json nowhere/x.json"), 2,
                 "nowhere");
  expect_refusal(run("eval --checkpoint run --data valid.shard --json text"), 2, "is a folder");
  expect_refusal(run("eval --checkpoint run --data valid.shard --set model.layers=2"), 2,
                 "--set model.layers: ");
  expect_refusal(run("generate --checkpoint run --prompt x --set model.wndow=2"), 2, "window");
  given("window.json", R"({"eval": {"window": -3}})");
  expect_refusal(run("eval --checkpoint run --data valid.shard --config window.json"), 2,
                 "window.json:1:21: /eval/window");
}

// A disk that fills up: the checkpoint before stays, and nothing half-written.
class FullDiskTest : public PipelineTest {
 protected:
  /// Step 5 is saved; then, with what `prefix` limits, the run goes on to step 10.
  void go_on_with(const std::string& prefix, const std::string& run_folder,
                  const std::string& reason) {
    const std::string set = " --set train.out=" + run_folder;
    succeed("pretrain tiny.json --set train.steps=5" + set);
    const Outcome outcome = run("pretrain tiny.json --quiet --set train.steps=10" + set, prefix);
    expect_refusal(outcome, 4, reason);
    std::vector<std::string> left;
    for (const auto& entry :
         std::filesystem::directory_iterator(path(run_folder + "/checkpoints"))) {
      left.push_back(entry.path().filename());
    }
    std::sort(left.begin(), left.end());
    EXPECT_EQ(left, (std::vector<std::string>{"LATEST", "step-00000005"}));
    EXPECT_EQ(load_checkpoint(resolve_checkpoint(path(run_folder))).step, 5);
    // With space again the same command ends well.
    succeed("pretrain tiny.json --set train.steps=10" + set);
  }
};

TEST_F(FullDiskTest, FileSizeLimit) {
  go_on_with("ulimit -f 64;", "limited", "the file size limit (ulimit -f) is too small");
}

/// A small file system of its own, gone at the end.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& path) : path_(path) {
    ::mkdir(path.c_str(), 0755);
    mounted_ = ::mount("tmpfs", path.c_str(), "tmpfs", 0, "size=4m") == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

TEST_F(FullDiskTest, FullFileSystem) {
  const SmallDisk disk(path("small"));
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a small file system here";
  const std::string pretrain = "pretrain tiny.json --quiet --set train.out=small/run";
  succeed(pretrain + " --set train.steps=5");
  const auto space = std::filesystem::space(path("small")).available;
  write_file(path("small/filler"), std::string(space - 200 * 1024, 'x'));
  expect_refusal(run(pretrain + " --set train.steps=10"), 4, "space");
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(path("small/run"))).step, 5);
  std::filesystem::remove(path("small/filler"));
  succeed(pretrain + " --set train.steps=10");
}

}  // namespace
}  // namespace stablemask
