// Text that the tokenizer and the preparation once failed on, through the program.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "stablemask/base/random.h"
#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::expect_refusal;
using testing::Outcome;
using testing::read_file;
using testing::write_file;

class TextCommands : public testing::PipelineTest {
 protected:
  static json shard_info(const std::string& shard) {
    return json::parse(succeed("data inspect " + shard + " --verify --json").out);
  }
  static std::string prepare(const std::string& input) {
    return "data prepare --tokenizer tok.model --output text.shard --input " + input;
  }
};

TEST_F(TextCommands, TokenizerTrainCutsUnbrokenRuns) {
  std::string blob;
  for (int i = 0; i < 40'000; ++i) blob += static_cast<char>('A' + i * i % 26);
  write_file(path("blob.txt"), read_file(path("text/wiki.valid.tokens")) + "data " + blob + "\n");
  const Outcome trained =
      succeed("tokenizer train --input blob.txt --output blob.model --vocab-size 500");
  EXPECT_NE(trained.err.find("words of more than 32768 characters were cut for the training: 1"),
            std::string::npos)
      << trained.err;
  write_file(path("ids.txt"),
             succeed("tokenizer encode --tokenizer blob.model --input blob.txt").out);
  EXPECT_EQ(succeed("tokenizer decode --tokenizer blob.model --input ids.txt").out,
            read_file(path("blob.txt")));
}

TEST_F(TextCommands, ATextWithoutSpacesGetsATokenizerForEveryText) {
  std::string genome;
  SplitMix64 random(1);
  for (int i = 0; i < 400; ++i) {
    for (int k = 0; k < 60; ++k) genome += "ACGT"[random.below(4)];
    genome += '\n';
  }
  write_file(path("genome.txt"), genome);
  write_file(path("spaces.txt"), " ACGT  and a text\n \n\u2581 \u6CB3\n");
  for (const std::string type : {"bpe", "unigram"}) {
    succeed("tokenizer train --input genome.txt --output genome.model --vocab-size 300 --type " +
            type);
    succeed("data prepare --tokenizer genome.model --input spaces.txt --output spaces.shard");
    EXPECT_EQ(shard_info("spaces.shard")["words"], 6);
  }
}

TEST_F(TextCommands, JsonLinesAreRecognised) {
  const std::string records = "{\"text\": \"A river .\"}\n{\"text\": \"A town .\"}\n";
  for (const std::string name : {"a.jsonl", "A.JSONL", "a.Ndjson", "a.json"}) {
    write_file(path(name), records);
    EXPECT_EQ(succeed(prepare(name)).err.find("warning"), std::string::npos);
    EXPECT_EQ(shard_info("text.shard")["documents"], 2) << name;
    EXPECT_EQ(shard_info("text.shard")["words"], 6) << name;
  }
  write_file(path("a.txt"), records);
  EXPECT_EQ(run(prepare("- <a.txt")).code, 0);
  EXPECT_EQ(shard_info("text.shard")["documents"], 2);
  const Outcome as_text = succeed(prepare("a.txt"));
  EXPECT_NE(as_text.err.find("a.txt: is read as text because of its name"), std::string::npos);
  EXPECT_EQ(shard_info("text.shard")["bytes"], records.size());
  EXPECT_EQ(succeed(prepare("a.jsonl --format text")).err.find("warning"), std::string::npos);
  EXPECT_EQ(shard_info("text.shard")["bytes"], records.size());
}

TEST_F(TextCommands, EvalReadsTheSameFormats) {
  const std::string document = read_file(path("text/wiki.valid.tokens"));
  write_file(path("page.txt"), document);
  write_file(path("page.records"), json{{"body", document}}.dump() + "\n");
  const auto nll = [](const std::string& data) {
    succeed("eval --checkpoint run --json eval.json --data " + data);
    return json::parse(read_file(path("eval.json")));
  };
  const json text = nll("page.txt");
  const json records = nll("page.records --format jsonl --field body");
  for (const char* field : {"nll", "tokens", "words", "lines", "word_perplexity"}) {
    ASSERT_TRUE(text.contains(field)) << field;
    EXPECT_EQ(text[field], records[field]) << field;
  }
}

TEST_F(TextCommands, SamplesArePreparedShownAndScored) {
  write_file(path("s.jsonl"),
             "{\"prompt\": \"A river\", \"completion\": \" in the town .\"}\n"
             "{\"prompt\": \"A town\", \"completion\": \" on the river .\"}\n");
  EXPECT_NE(succeed(prepare("s.jsonl")).out.find("samples    2, template \"prompt\"; "),
            std::string::npos);
  const json info = shard_info("text.shard");
  EXPECT_EQ(info["version"], 2);
  EXPECT_EQ(info["template"], "prompt");
  const std::string shown =
      succeed("data inspect text.shard --samples 9 --tokenizer tok.model --context 64").out;
  EXPECT_NE(shown.find("context 64: 2 samples in 1 sequence, "), std::string::npos) << shown;
  EXPECT_NE(shown.find("  masked  |A town|\n  trained | on the river .<end of text>|\n"),
            std::string::npos)
      << shown;
  expect_refusal(run("data inspect text.shard --samples 1"), 2, "--samples needs --tokenizer");
  expect_refusal(run("data inspect text.shard --context 8 --json"), 2, "--json prints the header");

  succeed("eval --checkpoint run --data text.shard --json eval.json");
  const json scored = json::parse(read_file(path("eval.json")));
  EXPECT_EQ(scored["tokens"], info["trained"]);
  EXPECT_EQ(scored["samples"], 2);
  EXPECT_TRUE(scored["word_perplexity"].is_null());
  EXPECT_GT(scored["token_perplexity"].get<double>(), 1);
  succeed("eval --checkpoint run --data s.jsonl --json again.json --convention token");
  EXPECT_EQ(json::parse(read_file(path("again.json")))["nll"], scored["nll"]);
  expect_refusal(run("eval --checkpoint run --data text.shard --convention word"), 2,
                 "text.shard: --convention word is defined for text, not for samples");
  write_file(path("t.txt"), "A text\n");
  succeed(prepare("t.txt"));
  expect_refusal(run("data inspect text.shard --context 8"), 3, "text.shard: is of text");
}

TEST_F(TextCommands, CompressedTextIsRefusedWithTheCommand) {
  write_file(path("c.txt.gz"), "\x1F\x8B\x08 and so on");
  expect_refusal(
      run(prepare("c.txt.gz")), 3,
      "c.txt.gz: is compressed with gzip, not UTF-8 text; pipe it in: gzip -dc c.txt.gz");
  expect_refusal(run("eval --checkpoint run --data c.txt.gz"), 3, "gzip -dc c.txt.gz");
  expect_refusal(run(prepare("- <c.txt.gz")), 3,
                 "standard input: is compressed with gzip, not UTF-8 text; pass it through");
  expect_refusal(run("tokenizer train --output x.model --input c.txt.gz"), 3, "gzip -dc c.txt.gz");
  expect_refusal(run("tokenizer encode --tokenizer tok.model --input c.txt.gz"), 3, "gzip -dc");
}

}  // namespace
}  // namespace stablemask
