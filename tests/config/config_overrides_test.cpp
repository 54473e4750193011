#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "tests/config/config_problems.h"

namespace stablemask {
namespace {

TEST(ConfigOverrides, AreTypedByTheTable) {
  const Config config = parse_config(
      R"({"train": {"steps": 7, "out": "x"}, "schedule": {"warmup_steps": 0}})", "c.json",
      {"train.steps=9", "train.steps=11", "optimizer.lr=3e-4", "model.position=alibi",
       "model.tied_head=true", "train.out=2024", "data.train=[\"a\",\"b c\"]", "data.valid=\"q\"",
       "model.stable_mask.gamma=slopes", "model.stable_mask.mask_length=sequence",
       "model.stable_mask.p_base=[0,1,2,3,4,5,6,7]", "data.tokenizer=a=b"});
  EXPECT_EQ(config.train.steps, 11);
  EXPECT_EQ(config.optimizer.lr, 3e-4);
  EXPECT_EQ(config.model.position, Position::kAlibi);
  EXPECT_TRUE(config.model.tied_head);
  EXPECT_EQ(config.train.out, "2024");
  EXPECT_EQ(config.data.train, (std::vector<TrainShard>{{"a"}, {"b c"}}));
  EXPECT_EQ(config.data.valid, "q");
  EXPECT_EQ(config.data.tokenizer, "a=b");
  EXPECT_EQ(config.model.stable_mask.mask_length.kind, MaskLengthSpec::Kind::kSequence);
  EXPECT_EQ(config.model.stable_mask.p_base.values.size(), 8u);
  EXPECT_EQ(parse_config("{}", "c", {"data.train=one.shard"}).data.train,
            std::vector<TrainShard>{{"one.shard"}});
}

TEST(ConfigOverrides, AreNamedInErrors) {
  const std::string steps = "/train/steps: expected an integer from 1 to 1000000000000, found ";
  const std::string shards =
      "a list of paths, or of objects {\"path\": \"…\", \"weight\": a number > 0}";
  const std::vector<Case> cases = {
      {"train.stps=1", "--set train.stps=1: /train/stps: unknown key; did you mean \"steps\"?"},
      {"trian.steps=1", "--set trian.steps=1: /trian: unknown key; did you mean \"train\"?"},
      {"lr=1", "--set lr=1: /lr: unknown key here; it belongs at /optimizer/lr"},
      {"train={}", "--set train={}: /train: is a section; set one of its fields, train.NAME=value"},
      {"model.stable_mask=maybe",
       "--set model.stable_mask=maybe: /model/stable_mask/enabled: expected true or false, found "
       "\"maybe\""},
      {"train.steps=", "--set train.steps=: " + steps + "\"\""},
      {"train.steps=1e3", "--set train.steps=1e3: " + steps + "1e3"},
      {"train.micro_batch=5",
       "--set train.micro_batch=5: /train/micro_batch: 5 does not divide train.batch, 32"},
      {"data.train=[1]", "--set data.train=[1]: /data/train: expected " + shards + ", found 1"},
      {"data.train=[\"a\",\"\"]",
       "--set data.train=[\"a\",\"\"]: /data/train: expected " + shards + ", found \"\""},
      {"version=1",
       "--set version=1: /version: is the format version of the file; it cannot be set"},
      {"", "--set \"\": expected path=value, such as train.steps=100"},
      {"=1", "--set =1: /: unknown key"},
  };
  for (const Case& test : cases) EXPECT_EQ(problems("{}", {test.text}), test.message) << test.text;
}

TEST(ConfigOverrides, MustBeUtf8) {
  EXPECT_EQ(problems("{}", {"train.out=caf\xE9"}),
            "--set train.out=caf\xEF\xBF\xBD: byte 14 (0xE9) is not UTF-8; pass the argument as "
            "UTF-8 text");
  EXPECT_EQ(
      problems("{}", {"train.st\xFFps=3"}),
      "--set train.st\xEF\xBF\xBDps=3: byte 9 (0xFF) is not UTF-8; pass the argument as UTF-8 "
      "text");
  EXPECT_EQ(parse_config("{}", "c", {"train.out=caf\xC3\xA9"}).train.out, "caf\xC3\xA9");
}

/// A position of the file is named only when a value of the file takes part.
TEST(ConfigOverrides, AreNamedInContradictionsBesideTheFile) {
  struct Mixed {
    std::string text;
    Strings overrides;
    std::string message;
  };
  const std::string micro = "/train/micro_batch: 4 does not divide train.batch, 30";
  const std::string channels = " is not a multiple of model.heads, ";
  const std::string advice = "; change one of them or set model.head_dim";
  const std::vector<Mixed> cases = {
      {R"({"train": {"micro_batch": 4}})",
       {"train.batch=30"},
       "--set train.batch=30 and c.json:1:27: " + micro},
      {R"({"train": {"batch": 30}})",
       {"train.micro_batch=4"},
       "--set train.micro_batch=4 and c.json:1:21: " + micro},
      {R"({"train": {"batch": 32, "micro_batch": 8}})",
       {"train.batch=30", "train.micro_batch=4"},
       "--set train.micro_batch=4 and --set train.batch=30: " + micro},
      {R"({"train": {"batch": 30, "micro_batch": 4}})", {}, "c.json:1:40: " + micro},
      {R"({"model": {"heads": 7}})",
       {"model.preset=160m"},
       "--set model.preset=160m and c.json:1:21: /model/channels: 768" + channels + "7" + advice},
      {R"({"model": {"preset": "160m"}})",
       {"model.heads=7"},
       "--set model.heads=7 and c.json:1:22: /model/channels: 768" + channels + "7" + advice},
      {R"({"eval": {"stride": 64}})",
       {"train.context=32"},
       "--set train.context=32 and c.json:1:21: /eval/stride: 64 is more than the window, 32: some "
       "tokens would not be scored; lower it"},
      {R"({"eval": {"stride": 64}, "train": {"context": 512}})",
       {"eval.window=32"},
       "--set eval.window=32 and c.json:1:21: /eval/stride: 64 is more than the window, 32: some "
       "tokens would not be scored; lower it"},
      {R"({"train": {"steps": 0}})", {"train.steps=1"}, ""},
      {R"({"model": {"head_dim": 33}})", {"model.head_dim=32"}, ""},
  };
  for (const Mixed& test : cases) {
    EXPECT_EQ(problems(test.text, test.overrides), test.message) << test.text;
  }
}

TEST(StatedFields, AreListedWithTheirPlace) {
  const std::string path = testing::TempDir() + "stated_fields_test.json";
  std::ofstream(path) << R"({"lr_unknown": 1, "train": {"steps": 3, "batch": 8},
"model": {"stable_mask": false}})";
  std::vector<std::string> lines;
  for (const StatedField& field : stated_fields(path, {"train.batch=4", "optimizer.lr=1"})) {
    lines.push_back(field.pointer + " " + field.place);
  }
  EXPECT_EQ(lines, (Strings{"/model/stable_mask/enabled " + path + ":2:26",
                            "/optimizer/lr --set optimizer.lr=1",
                            "/train/batch --set train.batch=4", "/train/steps " + path + ":1:38"}));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace stablemask
