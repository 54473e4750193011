// `stablemask generate` as a user calls it: prompts, stop texts, many prompts, figures.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "stablemask/io/checkpoint.h"
#include "tests/commands/launch.h"
#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::expect_refusal;
using testing::Outcome;
using testing::PipelineTest;
using testing::read_file;
using testing::write_file;

class GenerateTest : public PipelineTest {
 protected:
  static std::string text(const std::string& options) {
    const std::string out = succeed("generate --checkpoint run " + options).out;
    EXPECT_TRUE(out.ends_with('\n')) << out;
    return out.substr(0, out.size() - 1);
  }
  /// The report of `--json -`.
  static json report(const std::string& options) {
    return json::parse(succeed("generate --checkpoint run --json - " + options).out);
  }
  static std::vector<json> lines(const std::string& text) {
    std::vector<json> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
    return lines;
  }
  /// The results of these lines of JSON.
  static std::vector<json> results(const std::string& prompts, const std::string& options = "") {
    write_file(path("prompts.jsonl"), prompts);
    return lines(
        succeed("generate --checkpoint run --prompts prompts.jsonl --out - " + options).out);
  }
};

// Some 40 steps of training are enough for words to begin with a space.
TEST_F(GenerateTest, ATrailingSpaceGivesTheTextOfThePromptWithoutIt) {
  const std::string greedy = " --greedy --max-tokens 8";
  const std::string without = text("--no-heal --prompt 'The river'" + greedy);
  ASSERT_TRUE(without.starts_with("The river ")) << without;
  const std::string with = text("--prompt 'The river '" + greedy);
  EXPECT_TRUE(without.starts_with(with) || with.starts_with(without)) << with << "\n" << without;
  EXPECT_NE(text("--no-heal --prompt 'The river '" + greedy), with);
  // The prompt is printed once, also where a word is completed.
  EXPECT_TRUE(text("--prompt 'The riv' --seed 5").starts_with("The riv"));
  const json said = report("--prompt 'The river '" + greedy);
  EXPECT_EQ("The river " + said["samples"][0]["text"].get<std::string>(), with);
  EXPECT_EQ(said["prompt"], "The river ");
}

TEST_F(GenerateTest, PromptsOfAnySizeComeFromPipes) {
  const std::string generate =
      "generate --checkpoint run --max-tokens 2 --greedy --attention-window 32 ";
  std::string long_text = read_file(path("text/wiki.train.tokens"));
  ASSERT_GT(long_text.size(), 80000U);
  long_text.resize(long_text.rfind('\n', 80000));
  write_file(path("long.txt"), long_text);
  const std::string from_file = succeed(generate + "--prompt-file long.txt").out;
  EXPECT_TRUE(from_file.starts_with(long_text));
  EXPECT_EQ(run(generate + "--prompt -", "cat long.txt |").out, from_file);
  EXPECT_EQ(run(generate + "--prompt-file fifo", "mkfifo fifo; cat long.txt >fifo &").out,
            from_file);
  expect_refusal(run("generate --checkpoint run --prompt abc --max-tokens 1000000000"), 7,
                 "--prompt: 3 bytes (");
}

/// 7 letters and spaces of the text, from `begin` or as soon as possible after it.
std::string plain_part(const std::string& text, size_t begin) {
  constexpr size_t kSize = 7;
  for (; begin + kSize <= text.size(); ++begin) {
    const std::string part = text.substr(begin, kSize);
    const auto is_plain = [](unsigned char c) { return std::isalpha(c) != 0 || c == ' '; };
    if (std::ranges::all_of(part, is_plain)) return part;
  }
  ADD_FAILURE() << "no such part in " << text;
  return "x";
}

TEST_F(GenerateTest, AStopTextEndsTheTextBeforeItWhateverItsTokens) {
  const std::string options = "--prompt 'The' --max-tokens 60 --seed 4 ";
  const std::string whole = text(options).substr(3);
  for (const size_t begin : {3U, 20U, 40U}) {
    const std::string stop = plain_part(whole, begin);
    EXPECT_EQ(text(options + "--stop 'not there' --stop '" + stop + "'"),
              "The" + whole.substr(0, whole.find(stop)));
    const json sample = report(options + "--stop '" + stop + "'")["samples"][0];
    EXPECT_EQ(sample["finish_reason"], "stop");
    EXPECT_EQ(sample["text"], whole.substr(0, whole.find(stop)));
    EXPECT_LT(sample["tokens"], 60);
  }
  EXPECT_EQ(report(options)["samples"][0]["finish_reason"], "length");
  ASSERT_NE(whole.find('\n'), std::string::npos);
  EXPECT_EQ(text(options + "--stop $'\\n'"), "The" + whole.substr(0, whole.find('\n')));
}

TEST_F(GenerateTest, SamplesAreTheTextsOfTheirSeeds) {
  const std::string options = "--prompt 'The river' --max-tokens 20 ";
  std::string all, alone;
  for (int i = 0; i < 3; ++i) {
    const std::string seed = std::to_string(7 + i);
    alone += "--- sample " + std::to_string(i + 1) + " of 3, seed " + seed + "\n" +
             text(options + "--seed " + seed) + "\n";
  }
  EXPECT_EQ(text(options + "--seed 7 --n 3") + "\n", alone);
  EXPECT_EQ(text(options + "--seed 7 --n 3 --batch 1") + "\n", alone);
  const json samples = report(options + "--seed 7 --n 3")["samples"];
  ASSERT_EQ(samples.size(), 3U);
  EXPECT_EQ(samples[2]["seed"], 9);
}

TEST_F(GenerateTest, LogProbabilitiesAreThoseOfTheTokens) {
  const json said = report("--prompt 'The river' --greedy --max-tokens 6 --logprobs 3");
  const json tokens = said["samples"][0]["logprobs"];
  ASSERT_EQ(tokens.size(), 6U);
  for (const json& token : tokens) {
    ASSERT_EQ(token["top"].size(), 3U);
    EXPECT_EQ(token["top"][0]["id"], token["id"]) << "greedy";
    EXPECT_EQ(token["top"][0]["logprob"], token["logprob"]);
    EXPECT_GE(token["top"][0]["logprob"], token["top"][1]["logprob"]);
    EXPECT_LE(token["logprob"].get<double>(), 0.0);
  }
  EXPECT_EQ(said["settings"]["logprobs"], 3);
  EXPECT_FALSE(report("--prompt x")["samples"][0].contains("logprobs"));
}

TEST_F(GenerateTest, ManyPromptsGiveTheTextsOfSinglePromptsInTheirOrder) {
  const std::string prompts =
      "{\"prompt\": \"The river \", \"max_tokens\": 30}\n"
      "\n"
      "{\"id\": \"b\", \"prompt\": \"\", \"temperature\": 0, \"max_tokens\": 3}\n"
      "{\"prompt\": \" = Arn\", \"seed\": 9, \"top_k\": 5, \"stop\": [\" town\", \" .\"]}\n"
      "{\"prompt\": \"x\", \"id\": 1.5, \"min_p\": 0.1, \"repetition_penalty\": 1.2, \"top_p\": "
      "0.9}";
  const std::string single[] = {"--prompt 'The river ' --max-tokens 30",
                                "--prompt '' --greedy --max-tokens 3",
                                "--prompt ' = Arn' --seed 9 --top-k 5 --stop ' town' --stop ' .'",
                                "--prompt x --min-p 0.1 --repetition-penalty 1.2 --top-p 0.9"};
  const json ids[] = {1, "b", 4, 1.5};
  std::vector<json> expected;
  for (size_t i = 0; i < 4; ++i) {
    json one = report(single[i])["samples"][0];
    one["id"] = ids[i];
    expected.push_back(one);
  }
  for (const std::string batch : {"", "--batch 1", "--batch 3"}) {
    EXPECT_EQ(results(prompts, batch), expected) << batch;
  }
  const std::vector<json> twice = results(prompts, "--n 2");
  ASSERT_EQ(twice.size(), 8U);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(twice[i]["id"], ids[i / 2]);
    EXPECT_EQ(twice[i]["sample"], i % 2);
    EXPECT_EQ(twice[i]["seed"], expected[i / 2]["seed"].get<int>() + static_cast<int>(i % 2));
    if (i % 2 == 1) continue;
    EXPECT_EQ(twice[i]["text"], expected[i / 2]["text"]);
  }
  // From standard input into a file.
  const Outcome piped =
      run("generate --checkpoint run --prompts - --out texts.jsonl", "cat prompts.jsonl |");
  EXPECT_EQ(piped.code, 0) << piped.err;
  EXPECT_EQ(lines(read_file(path("texts.jsonl"))), expected);
  EXPECT_FALSE(exists("texts.jsonl.partial"));
  EXPECT_TRUE(piped.out.starts_with("texts.jsonl: 4 texts")) << piped.out;
}

TEST_F(GenerateTest, AnInterruptedFileOfPromptsIsContinued) {
  std::string prompts;
  for (int i = 0; i < 30; ++i) {
    prompts += "{\"prompt\": \"The river\", \"seed\": " + std::to_string(i) + "}\n";
  }
  const std::vector<json> expected = results(prompts, "--max-tokens 100 --attention-window 32");
  std::vector<const char*> command = {"generate",
                                      "--checkpoint",
                                      "run",
                                      "--prompts",
                                      "prompts.jsonl",
                                      "--out",
                                      "cut.jsonl",
                                      "--max-tokens",
                                      "100",
                                      "--attention-window",
                                      "32",
                                      "--batch",
                                      "1"};
  const pid_t process = testing::start_program(pipeline().folder, command);
  const auto whole_lines = [] {
    const std::string left = read_file(path("cut.jsonl.partial"));
    return std::count(left.begin(), left.end(), '\n');
  };
  EXPECT_TRUE(testing::wait_until([&] { return whole_lines() >= 3; }));
  ::kill(process, SIGTERM);
  ASSERT_EQ(testing::exit_code_of(process), 128 + SIGTERM) << read_file(path("err.txt"));
  const std::string said = read_file(path("err.txt"));
  EXPECT_NE(said.find(" of 30 texts are written to cut.jsonl.partial; the same command goes on"),
            std::string::npos)
      << said;
  const std::string left = read_file(path("cut.jsonl.partial"));

  const std::string again =
      "generate --checkpoint run --prompts prompts.jsonl --out cut.jsonl --attention-window 32 ";
  expect_refusal(run(again + "--max-tokens 99"), 2,
                 "cut.jsonl.partial: was begun with max_tokens 100, now it is 99; call the");
  expect_refusal(run(again + "--max-tokens 100 --mask-length 7"), 2,
                 "was begun with model.stable_mask.mask_length 64, now it is 7");
  write_file(path("prompts.jsonl"), "{\"prompt\": \"The sea\"}\n" + prompts);
  expect_refusal(run(again + "--max-tokens 100"), 2,
                 "prompts.jsonl: line 1 is not what cut.jsonl.partial was begun with");
  write_file(path("prompts.jsonl"), prompts);
  // As if killed while it wrote a line.
  write_file(path("cut.jsonl.partial"), left.substr(0, left.size() - 9));
  const Outcome outcome = run(again + "--max-tokens 100");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.err.find("of 30 texts are there; going on"), std::string::npos) << outcome.err;
  EXPECT_EQ(lines(read_file(path("cut.jsonl"))), expected);
}

TEST_F(GenerateTest, LinesThatAreNoPromptsAreRefusedByNumber) {
  const std::pair<std::string, std::string> cases[] = {
      {"{\"prompt\": \"x\"", "bad.jsonl: line 2: column 15: not valid JSON: "},
      {"{\"prompt\": 3}", "line 2: field \"prompt\" must be a text, not 3"},
      {"{\"promt\": \"x\"}", "line 2: field \"promt\" is not known; did you mean \"prompt\"?"},
      {"{\"prompt\": \"x\", \"top_p\": 0}", "line 2: field \"top_p\" expected a number > 0"},
      {"{\"prompt\": \"x\", \"stop\": [\"\"]}", "line 2: field \"stop\" must be a text or a list"}};
  for (const auto& [line, message] : cases) {
    write_file(path("bad.jsonl"), "{\"prompt\": \"fine\"}\n" + line + "\n");
    expect_refusal(run("generate --checkpoint run --prompts bad.jsonl --out none.jsonl"), 3,
                   message);
  }
  write_file(path("bad.jsonl"), " \n\n");
  expect_refusal(run("generate --checkpoint run --prompts bad.jsonl --out none.jsonl"), 3,
                 "bad.jsonl: has no prompts");
  EXPECT_FALSE(exists("none.jsonl"));
  EXPECT_FALSE(exists("none.jsonl.partial"));
  write_file(path("bad.jsonl"), "{\"prompt\": \"x\", \"max_tokens\": 1000000000}\n");
  expect_refusal(run("generate --checkpoint run --prompts bad.jsonl --out none.jsonl"), 7,
                 "bad.jsonl: line 1: 1 bytes (2 tokens) and max_tokens 1,000,000,000 would take ");
}

TEST_F(GenerateTest, OptionsThatContradictEachOtherAreRefused) {
  const std::string generate = "generate --checkpoint run ";
  const std::pair<std::string, std::string> cases[] = {
      {"--prompts p.jsonl --prompt x --out o.jsonl", "one of --prompt TEXT"},
      {"--prompts p.jsonl", "--prompts needs --out"},
      {"--prompts p.jsonl --out p.jsonl", "p.jsonl"},
      {"--prompt x --out o.jsonl", "--out is for --prompts"},
      {"--prompt x --logprobs 2", "--logprobs needs --json"},
      {"--prompt x --n -1", "--n: must be an integer from 1"},
      {"--prompt x --threads 0", "--threads: must be an integer from 1 to 4096"},
      {"--prompt x --stop ''", "--stop: must not be empty"},
      {"--prompt x --min-p 2", "--min-p: expected a number from 0 to 1"},
      {"--prompt x --repetition-penalty 0", "--repetition-penalty: expected a number > 0"}};
  write_file(path("p.jsonl"), "{\"prompt\": \"x\"}\n");
  for (const auto& [options, message] : cases) expect_refusal(run(generate + options), 2, message);
  EXPECT_EQ(read_file(path("p.jsonl")), "{\"prompt\": \"x\"}\n");
  expect_refusal(run(generate + "--prompts nowhere.jsonl --out o.jsonl"), 3, "nowhere.jsonl");
}

/// Weights so large that every logit overflows.
TEST_F(GenerateTest, LogitsThatAreNotFiniteEndWithFiveAndNameTheLine) {
  const Checkpoint sound = load_checkpoint(path("run/checkpoints/step-00000040"));
  CheckpointContent content;
  content.step = sound.step;
  content.model = sound.model.tensors();
  content.state_json = sound.state_json;
  content.config_json = sound.config_json;
  content.tokenizer_model = sound.tokenizer_model;
  const std::vector<float> norm(32, 3e38F);
  std::vector<float> head(600 * 32, 1e5F);
  content.model.at("norm.weight").data = norm.data();
  content.model.at("head").data = head.data();
  save_checkpoint(path("large"), content, {});
  expect_refusal(run("generate --checkpoint large --prompt x"), 5,
                 "--prompt: generated token 1: the logit of id ");
  write_file(path("p.jsonl"), "\n{\"prompt\": \"x\"}\n{\"prompt\": \"y\"}\n");
  expect_refusal(run("generate --checkpoint large --prompts p.jsonl --out o.jsonl"), 5,
                 "p.jsonl: line 2: generated token 1: the logit of id ");
  EXPECT_FALSE(exists("o.jsonl.partial"));
  std::filesystem::remove_all(path("large"));
}

TEST_F(GenerateTest, ATextPastTheTrainingLengthIsWarnedOfOnce) {
  const std::string generate = "generate --checkpoint run --prompt 'The river' --max-tokens ";
  EXPECT_EQ(succeed(generate + "40").err, "");
  EXPECT_EQ(succeed(generate + "80 --attention-window 64").err, "");
  const std::string warned = succeed(generate + "80").err;
  EXPECT_TRUE(warned.starts_with("stablemask: warning: the text can reach ")) << warned;
  EXPECT_NE(warned.find("but the model was trained on 64 "), std::string::npos) << warned;
  EXPECT_EQ(std::count(warned.begin(), warned.end(), '\n'), 1) << warned;
}

TEST_F(GenerateTest, TheNumberOfThreadsDoesNotChangeAShortText) {
  const std::string options = "--prompt 'The river' --greedy --threads ";
  EXPECT_EQ(text(options + "1"), text(options + "2"));
  succeed("eval --checkpoint run --data text/wiki.valid.tokens --threads 1");
  succeed("inspect --checkpoint run --data valid.shard --threads 2 --windows 1 --out look");
  std::filesystem::remove_all(path("look"));
}

}  // namespace
}  // namespace stablemask
