#include "stablemask/config/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/spelling.h"

namespace stablemask {
namespace {

using Strings = std::vector<std::string>;

/// The message of the ConfigError that the text gives; "" when it is sound.
std::string problems(const std::string& text, const Strings& overrides = {}) {
  try {
    parse_config(text, "c.json", overrides);
    return "";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    return error.what();
  }
}

TEST(Config, EmptyObjectGivesDefaultsWithReferencesResolved) {
  const Config config = parse_config("{}", "c.json");
  EXPECT_EQ(config.model.layers, ModelConfig().layers);
  EXPECT_EQ(config.train.micro_batch, config.train.batch);
  EXPECT_EQ(config.eval.window, config.train.context);
  EXPECT_EQ(config.model.stable_mask.mask_length.kind, MaskLengthSpec::Kind::kFixed);
  EXPECT_EQ(config.model.stable_mask.mask_length.length, config.train.context);
}

TEST(Config, ReadsEveryFormOfAValue) {
  const Config config = parse_config(R"({
    "model": {"heads": 2, "position": "alibi", "norm_eps": 1,
      "stable_mask": {"gamma": [0.5, 0], "p_base": -1.5, "mask_length": "infinite", "enabled": false}},
    "data": {"train": ["a", "b"], "document_mask": true},
    "schedule": {"kind": "wsd", "decay_steps": 10}})",
                                     "c.json");
  EXPECT_EQ(config.model.heads, 2);
  EXPECT_EQ(config.model.position, Position::kAlibi);
  EXPECT_EQ(config.model.norm_eps, 1.0);
  EXPECT_FALSE(config.model.stable_mask.enabled);
  EXPECT_FALSE(config.model.stable_mask.gamma.slopes);
  EXPECT_EQ(config.model.stable_mask.gamma.value.values, (std::vector<double>{0.5, 0}));
  EXPECT_EQ(config.model.stable_mask.p_base.values, std::vector<double>{-1.5});
  EXPECT_EQ(config.model.stable_mask.mask_length.kind, MaskLengthSpec::Kind::kInfinite);
  EXPECT_EQ(config.data.train, (Strings{"a", "b"}));
  EXPECT_TRUE(config.data.document_mask);
  EXPECT_EQ(config.schedule.kind, ScheduleKind::kWsd);
}

TEST(Config, MaskLengthForms) {
  const auto length = [](const std::string& value) {
    return parse_config(R"({"train": {"context": 96},
                            "model": {"stable_mask": {"mask_length": )" +
                            value + "}}}",
                        "c.json")
        .model.stable_mask.mask_length;
  };
  EXPECT_EQ(length("\"context\"").length, 96);
  EXPECT_EQ(length("512").length, 512);
  EXPECT_EQ(length("512").kind, MaskLengthSpec::Kind::kFixed);
  EXPECT_EQ(length("\"sequence\"").kind, MaskLengthSpec::Kind::kSequence);
}

TEST(Config, StableMaskMayBeOnOff) {
  EXPECT_FALSE(parse_config(R"({"model": {"stable_mask": false}})", "c").model.stable_mask.enabled);
  EXPECT_TRUE(parse_config(R"({"model": {"stable_mask": true}})", "c").model.stable_mask.enabled);
  const Config config = parse_config(R"({"model": {"stable_mask": false}})", "c",
                                     {"model.stable_mask=true", "model.stable_mask.gamma=2"});
  EXPECT_TRUE(config.model.stable_mask.enabled);
  EXPECT_EQ(config.model.stable_mask.gamma.value.values, std::vector<double>{2.0});
}

TEST(Config, PresetIsADefaultThatFileAndOverrideChange) {
  struct Size {
    const char* name;
    int64_t layers, channels, heads, ffn_hidden;
  };
  for (const Size& size : {Size{"71m", 6, 512, 8, 1536}, Size{"160m", 12, 768, 12, 2048},
                           Size{"400m", 24, 1024, 16, 2816}, Size{"1.4b", 24, 2048, 16, 5632}}) {
    const ModelConfig model =
        parse_config("{}", "c", {std::string("model.preset=") + size.name}).model;
    EXPECT_EQ(model.layers, size.layers);
    EXPECT_EQ(model.channels, size.channels);
    EXPECT_EQ(model.heads, size.heads);
    EXPECT_EQ(model.ffn_hidden, size.ffn_hidden);
    EXPECT_EQ(model.vocab_size, 50257);
    EXPECT_FALSE(model.tied_head);
  }
  const ModelConfig model =
      parse_config(R"({"model": {"layers": 3, "vocab_size": 0, "preset": "160m"}})", "c",
                   {"model.heads=6"})
          .model;
  EXPECT_EQ(model.layers, 3);
  EXPECT_EQ(model.channels, 768);
  EXPECT_EQ(model.heads, 6);
  EXPECT_EQ(model.vocab_size, 0);
}

struct Case {
  std::string text;
  std::string message;
};

TEST(Config, NamesEveryKindOfOffenceAtItsPlace) {
  const std::vector<Case> cases = {
      {"{\"model\": {\"heads\": 8},\n \"mdoel\": {}}",
       "c.json:2:2: /mdoel: unknown key; did you mean \"model\"?"},
      {R"({"model": {"head": 8}})",
       "c.json:1:12: /model/head: unknown key; did you mean \"heads\"?"},
      {R"({"model": {"stablemask": true}})",
       "c.json:1:12: /model/stablemask: unknown key; did you mean \"stable_mask\"?"},
      {R"({"model": {"stable_mask": {"gama": 1}}})",
       "c.json:1:28: /model/stable_mask/gama: unknown key; did you mean \"gamma\"?"},
      {R"({"train": {"lr": 1}})",
       "c.json:1:12: /train/lr: unknown key here; it belongs at /optimizer/lr"},
      {R"({"lr": 1})", "c.json:1:2: /lr: unknown key here; it belongs at /optimizer/lr"},
      {R"({"train": {"quux": 1}})", "c.json:1:12: /train/quux: unknown key"},
      {R"({"a/b~\n": 1})", "c.json:1:2: /a~1b~0\\n: unknown key"},
      {"{\"train\": {\"steps\": 5,\n\"steps\": 6}}",
       "c.json:2:1: /train/steps: duplicate key; it is at 1:12 already"},
      {"{\"train\": {},\n\"train\": {}}",
       "c.json:2:1: /train: duplicate key; it is at 1:2 already"},
      {R"({"model": {"heads": "8"}})",
       "c.json:1:21: /model/heads: expected an integer from 1 to 4096, found \"8\""},
      {R"({"model": {"heads": 8.0}})",
       "c.json:1:21: /model/heads: expected an integer from 1 to 4096, found 8.0"},
      {R"({"model": {"heads": null}})",
       "c.json:1:21: /model/heads: expected an integer from 1 to 4096, found null"},
      {R"({"model": {"heads": 0}})",
       "c.json:1:21: /model/heads: expected an integer from 1 to 4096, found 0"},
      {R"({"train": {"steps": 99999999999999999999}})",
       "c.json:1:21: /train/steps: expected an integer from 1 to 1000000000000, found "
       "99999999999999999999"},
      {R"({"model": {"tied_head": 1}})",
       "c.json:1:25: /model/tied_head: expected true or false, found 1"},
      {R"({"optimizer": {"lr": -1e-3}})",
       "c.json:1:22: /optimizer/lr: expected a number ≥ 0, found -1e-3"},
      {R"({"optimizer": {"beta2": 1}})",
       "c.json:1:25: /optimizer/beta2: expected a number ≥ 0 and < 1, found 1"},
      {R"({"optimizer": {"eps": 0}})",
       "c.json:1:23: /optimizer/eps: expected a number > 0 and ≤ 1, found 0"},
      {R"({"model": {"position": "ropee"}})",
       "c.json:1:24: /model/position: expected one of \"rope\", \"alibi\", \"none\", found "
       "\"ropee\"; did you mean \"rope\"?"},
      {R"({"model": {"preset": "71M"}})",
       "c.json:1:22: /model/preset: expected one of \"\", \"71m\", \"160m\", \"400m\", \"1.4b\", "
       "found \"71M\"; did you mean \"71m\"?"},
      {R"({"model": {"stable_mask": {"gamma": -1}}})",
       "c.json:1:37: /model/stable_mask/gamma: expected \"slopes\", a number ≥ 0 or a list of such "
       "numbers, one per head, found -1"},
      {R"({"model": {"stable_mask": {"gamma": "slope"}}})",
       "c.json:1:37: /model/stable_mask/gamma: expected \"slopes\", a number ≥ 0 or a list of such "
       "numbers, one per head, found \"slope\"; did you mean \"slopes\"?"},
      {R"({"model": {"stable_mask": {"p_base": []}}})",
       "c.json:1:38: /model/stable_mask/p_base: expected a number from -10000 to 10000 or a list "
       "of "
       "such numbers, one per head, found an empty list"},
      {R"({"model": {"stable_mask": {"mask_length": 0}}})",
       "c.json:1:43: /model/stable_mask/mask_length: expected \"context\", \"infinite\", "
       "\"sequence\" or an integer from 1 to 1000000000, found 0"},
      {R"({"model": {"stable_mask": 1}})",
       "c.json:1:27: /model/stable_mask: expected an object {…}, true or false, found 1"},
      {R"({"train": 5})", "c.json:1:11: /train: expected an object {…}, found 5"},
      {"[1]", "c.json:1:1: expected an object {…}, found a list"},
      {R"({"data": {"train": "a.shard"}})",
       "c.json:1:20: /data/train: expected a list of texts, none of them empty, found \"a.shard\""},
      {R"({"data": {"train": ["a", ""]}})",
       "c.json:1:20: /data/train: expected a list of texts, none of them empty, found \"\""},
      {R"({"data": {"valid": "a\u0000b"}})",
       "c.json:1:20: /data/valid: control character in \"a\\u0000b\""},
      {"{\"train\": {\"steps\": 5,}}", "c.json:1:22: trailing comma before '}'; remove it"},
      {"", "c.json:1:1: is empty; expected an object {…}"},
  };
  for (const Case& test : cases) EXPECT_EQ(problems(test.text), test.message) << test.text;
}

TEST(Config, NamesContradictions) {
  const std::vector<Case> cases = {
      {R"({"model": {"heads": 8, "kv_heads": 3}})",
       "c.json:1:36: /model/kv_heads: 3 does not divide model.heads, 8"},
      {R"({"model": {"channels": 100}})",
       "c.json:1:24: /model/channels: 100 is not a multiple of model.heads, 8; change one of them "
       "or "
       "state model.head_dim"},
      {R"({"model": {"heads": 7}})",
       "c.json:1:21: /model/channels: 512 is not a multiple of model.heads, 7; change one of them "
       "or "
       "state model.head_dim"},
      {R"({"model": {"rope_dims": 66}})",
       "c.json:1:25: /model/rope_dims: 66 is more than the head dimension, 64"},
      {R"({"model": {"rope_dims": 31}})",
       "c.json:1:25: /model/rope_dims: 31 rotated dimensions are an odd number; rotary embedding "
       "turns pairs"},
      {R"({"model": {"head_dim": 33}})",
       "c.json:1:24: /model/head_dim: 33 rotated dimensions are an odd number; rotary embedding "
       "turns pairs"},
      {R"({"model": {"rope_dims": 32, "position": "alibi"}})",
       "c.json:1:25: /model/rope_dims: has no meaning unless model.position is \"rope\"; remove "
       "it"},
      {R"({"model": {"stable_mask": {"gamma": [1, 2, 3]}}})",
       "c.json:1:37: /model/stable_mask/gamma: 3 numbers for 8 heads; state one for each or one "
       "for "
       "all"},
      {R"({"model": {"stable_mask": {"p_base": [1, 2]}}})",
       "c.json:1:38: /model/stable_mask/p_base: 2 numbers for 8 heads; state one for each or one "
       "for "
       "all"},
      {R"({"model": {"stable_mask": {"gamma": 0, "mask_length": "infinite"}}})",
       "c.json:1:37: /model/stable_mask/gamma: 0 with the mask length \"infinite\" gives infinite "
       "pseudo mass; take a number > 0 or a finite mask length"},
      {R"({"model": {"stable_mask": {"gamma": 0, "learnable": true}}})",
       "c.json:1:37: /model/stable_mask/gamma: 0 cannot be learnt from: a learnable gamma starts > "
       "0"},
      {R"({"model": {"stable_mask": {"mask_length": "sequence"}}, "data": {"document_mask": true}})",
       "c.json:1:43: /model/stable_mask/mask_length: \"sequence\" has no meaning within documents; "
       "take a number or turn data.document_mask off"},
      {R"({"train": {"batch": 32, "micro_batch": 5}})",
       "c.json:1:40: /train/micro_batch: 5 does not divide train.batch, 32"},
      {R"({"train": {"freeze_layers": 7, "init_from": "a"}, "model": {"layers": 6}})",
       "c.json:1:29: /train/freeze_layers: 7 is more than model.layers, 6"},
      {R"({"train": {"freeze_layers": 7, "init_from": "a"}})",
       ""},  // the checkpoint's layers count
      {R"({"train": {"freeze_layers": 2}})",
       "c.json:1:29: /train/freeze_layers: frozen layers would stay random without "
       "train.init_from"},
      {R"({"train": {"eval_every": 5}})",
       "c.json:1:26: /train/eval_every: there is nothing to validate on; state data.valid"},
      {R"({"train": {"steps": 100}})",
       "c.json:1:21: /schedule/warmup_steps: 200 is more than train.steps, 100"},
      {R"({"schedule": {"kind": "wsd", "decay_steps": 1900}})",
       "c.json:1:45: /schedule/decay_steps: 1900 is more than the 1800 steps that the warm-up "
       "leaves"},
      {R"({"schedule": {"decay_steps": 5}})",
       "c.json:1:30: /schedule/decay_steps: has no meaning unless schedule.kind is \"wsd\"; remove "
       "it"},
      {R"({"eval": {"window": 64, "stride": 65}})",
       "c.json:1:35: /eval/stride: 65 is more than the window, 64: tokens would be left out"},
  };
  for (const Case& test : cases) EXPECT_EQ(problems(test.text), test.message) << test.text;
}

TEST(Config, ReportsEverythingAtOnceInOrder) {
  EXPECT_EQ(problems("{\n  \"train\": {\"batch\": 6, \"micro_batch\": 4, \"setps\": 3},\n"
                     "  \"model\": {\"heads\": 0, \"kv_heads\": 3, \"ffn\": \"relu\"}\n}",
                     {"optimizer.lr=fast", "nonsense"}),
            "c.json:2:40: /train/micro_batch: 4 does not divide train.batch, 6\n"
            "c.json:2:43: /train/setps: unknown key; did you mean \"steps\"?\n"
            "c.json:3:22: /model/heads: expected an integer from 1 to 4096, found 0\n"
            "c.json:3:47: /model/ffn: expected one of \"swiglu\", \"gelu\", found \"relu\"; did "
            "you mean \"gelu\"?\n"
            "--set: expected path=value, found \"nonsense\"\n"
            "--set: /optimizer/lr: expected a number ≥ 0, found \"fast\"");
}

TEST(Config, OverridesAreTypedByTheTable) {
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
  EXPECT_EQ(config.data.train, (Strings{"a", "b c"}));
  EXPECT_EQ(config.data.valid, "q");
  EXPECT_EQ(config.data.tokenizer, "a=b");
  EXPECT_EQ(config.model.stable_mask.mask_length.kind, MaskLengthSpec::Kind::kSequence);
  EXPECT_EQ(config.model.stable_mask.p_base.values.size(), 8u);
  EXPECT_EQ(parse_config("{}", "c", {"data.train=one.shard"}).data.train, Strings{"one.shard"});
}

TEST(Config, RefusesBadOverrides) {
  const std::vector<Case> cases = {
      {"train.stps=1", "--set: /train/stps: unknown key; did you mean \"steps\"?"},
      {"trian.steps=1", "--set: /trian: unknown key; did you mean \"train\"?"},
      {"lr=1", "--set: /lr: unknown key here; it belongs at /optimizer/lr"},
      {"train={}", "--set: /train: is a section; set one of its fields, train.NAME=value"},
      {"model.stable_mask=maybe",
       "--set: /model/stable_mask/enabled: expected true or false, found \"maybe\""},
      {"train.steps=",
       "--set: /train/steps: expected an integer from 1 to 1000000000000, found \"\""},
      {"train.steps=1e3",
       "--set: /train/steps: expected an integer from 1 to 1000000000000, found 1e3"},
      {"train.micro_batch=5", "--set: /train/micro_batch: 5 does not divide train.batch, 32"},
      {"data.train=[1]",
       "--set: /data/train: expected a list of texts, none of them empty, found 1"},
      {"", "--set: expected path=value, found \"\""},
      {"=1", "--set: /: unknown key"},
  };
  for (const Case& test : cases) EXPECT_EQ(problems("{}", {test.text}), test.message) << test.text;
}

/// Whatever the bytes, the answer is a config or a ConfigError whose lines all name the file.
TEST(Config, SurvivesTextBrokenAtRandom) {
  const std::string seed = dump_config(parse_config("{}", "c", {"model.preset=71m"}));
  std::mt19937 random(11);
  for (int round = 0; round < 1000; ++round) {
    std::string text = seed;
    for (int edits = 0; edits < 3; ++edits) {
      const size_t at = random() % text.size(), size = random() % 9;
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random() % 256);
          break;
        case 1:
          text.erase(at, size);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), size));
      }
    }
    const std::string message = problems(text);
    for (size_t begin = 0; begin < message.size();) {
      EXPECT_EQ(message.compare(begin, 6, "c.json"), 0) << message;
      const size_t end = message.find('\n', begin);
      begin = end == std::string::npos ? message.size() : end + 1;
    }
  }
}

TEST(Spelling, FindsTheNearestWordOrNone) {
  const Strings words = {"steps", "seed", "context", "lr"};
  EXPECT_EQ(nearest("step", words), "steps");
  EXPECT_EQ(nearest("stpes", words), "steps");
  EXPECT_EQ(nearest("contxet", words), "context");
  EXPECT_EQ(nearest("l", words), "lr");
  EXPECT_EQ(nearest("xy", words), "");
  EXPECT_EQ(nearest("", words), "");
  EXPECT_EQ(nearest(std::string(100000, 's'), words), "");
}

}  // namespace
}  // namespace stablemask
