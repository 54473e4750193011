#include "stablemask/config/config.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "stablemask/base/spelling.h"
#include "tests/config/config_problems.h"

namespace stablemask {
namespace {

TEST(Config, EmptyObjectGivesDefaultsWithReferencesResolved) {
  const Config config = parse_config("{}", "c.json");
  EXPECT_EQ(config.model.layers, ModelConfig().layers);
  EXPECT_EQ(config.train.micro_batch, 0);
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
  EXPECT_EQ(config.model.stable_mask.gamma.kind, GammaSpec::Kind::kValue);
  EXPECT_EQ(config.model.stable_mask.gamma.value.values, (std::vector<double>{0.5, 0}));
  EXPECT_EQ(config.model.stable_mask.p_base.values, std::vector<double>{-1.5});
  EXPECT_EQ(config.model.stable_mask.mask_length.kind, MaskLengthSpec::Kind::kInfinite);
  EXPECT_EQ(config.data.train, (std::vector<TrainShard>{{"a"}, {"b"}}));
  const Config mixture = parse_config(
      R"({"data": {"train": [{"path": "a", "weight": 3}, {"path": "b", "weight": 0.5}]}})", "c");
  EXPECT_EQ(mixture.data.train, (std::vector<TrainShard>{{"a", 3}, {"b", 0.5}}));
  EXPECT_EQ(parse_config(dump_config(mixture), "dump").data.train, mixture.data.train);
  EXPECT_EQ(parse_config("{}", "c", {R"(data.train=[{"path": "a"}])"}).data.train,
            std::vector<TrainShard>{{"a"}});
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

TEST(Config, NamesEveryKindOfOffenceAtItsPlace) {
  const std::string shards =
      "a list of paths, or of objects {\"path\": \"…\", \"weight\": a number > 0}";
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
       "c.json:2:1: /train/steps: duplicate key, first stated at 1:12; remove one of them"},
      {"{\"train\": {},\n\"train\": {}}",
       "c.json:2:1: /train: duplicate key, first stated at 1:2; remove one of them"},
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
       "c.json:1:22: /optimizer/lr: expected 0 or a number from 1.2e-38 to 1e+30, found -1e-3"},
      {R"({"optimizer": {"beta2": 1}})",
       "c.json:1:25: /optimizer/beta2: expected a number from 0 to 0.9999999, found 1"},
      {R"({"optimizer": {"eps": 0}})",
       "c.json:1:23: /optimizer/eps: expected a number from 1e-20 to 1, found 0"},
      {R"({"model": {"position": "ropee"}})",
       "c.json:1:24: /model/position: expected one of \"rope\", \"alibi\", \"none\", "
       "\"learned\", found \"ropee\"; did you mean \"rope\"?"},
      {R"({"model": {"preset": "71M"}})",
       "c.json:1:22: /model/preset: expected one of \"\", \"71m\", \"160m\", \"400m\", \"1.4b\", "
       "found \"71M\"; did you mean \"71m\"?"},
      {R"({"model": {"stable_mask": {"gamma": -1}}})",
       "c.json:1:37: /model/stable_mask/gamma: expected \"auto\", \"slopes\", 0 or a number from "
       "1.2e-38 to 10000 or a list of such numbers, one per head, found -1"},
      {R"({"model": {"stable_mask": {"gamma": "slope"}}})",
       "c.json:1:37: /model/stable_mask/gamma: expected \"auto\", \"slopes\", 0 or a number from "
       "1.2e-38 to 10000 or a list of such numbers, one per head, found \"slope\"; did you mean "
       "\"slopes\"?"},
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
       "c.json:1:20: /data/train: expected " + shards + ", found \"a.shard\""},
      {R"({"data": {"train": [{"path": "a", "weight": 0}]}})",
       "c.json:1:20: /data/train: expected a weight > 0 and ≤ 1000000000, found 0"},
      {R"({"data": {"train": [{"path": "a", "weight": 2}, "b"]}})",
       "c.json:1:20: /data/train: some entries have a weight and some have none; give all of them "
       "one, or none"},
      {R"({"data": {"train": [{"weight": 2}]}})",
       "c.json:1:20: /data/train: an entry without \"path\", the shard's file"},
      {R"({"data": {"train": [{"path": "a", "wieght": 2}]}})",
       "c.json:1:20: /data/train: unknown key \"wieght\" of an entry; did you mean \"weight\"?"},
      {R"({"data": {"train": [{"path": ""}]}})",
       "c.json:1:20: /data/train: expected " + shards + ", found \"\""},
      {R"({"data": {"train": ["a", ""]}})",
       "c.json:1:20: /data/train: expected " + shards + ", found \"\""},
      {R"({"data": {"valid": "a\u0000b"}})",
       "c.json:1:20: /data/valid: control character in \"a\\u0000b\""},
      {R"({"train": {"sample_prompts": ["a\nb", "c\td"]}})",
       "c.json:1:30: /train/sample_prompts: control character in \"c\\td\""},
      {R"({"train": {"sample_prompts": [""]}})",
       "c.json:1:30: /train/sample_prompts: expected a list of texts, none of them empty, found "
       "\"\""},
      {"{\"train\": {\"steps\": 5,}}", "c.json:1:22: trailing comma before '}'; remove it"},
      {"", "c.json:1:1: is empty; expected an object {…}"},
      // Values that fp32 would round to 0, to 1 or to infinity.
      {R"({"optimizer": {"eps": 1e-46}})",
       "c.json:1:23: /optimizer/eps: expected a number from 1e-20 to 1, found 1e-46"},
      {R"({"optimizer": {"eps": 9e-21}})",
       "c.json:1:23: /optimizer/eps: expected a number from 1e-20 to 1, found 9e-21"},
      {R"({"optimizer": {"lr": 1e-46}})",
       "c.json:1:22: /optimizer/lr: expected 0 or a number from 1.2e-38 to 1e+30, found 1e-46"},
      {R"({"optimizer": {"lr": 3e38}})",
       "c.json:1:22: /optimizer/lr: expected 0 or a number from 1.2e-38 to 1e+30, found 3e38"},
      {R"({"model": {"stable_mask": {"gamma": [1, 1e-46]}}})",
       "c.json:1:37: /model/stable_mask/gamma: expected \"auto\", \"slopes\", 0 or a number from "
       "1.2e-38 to 10000 or a list of such numbers, one per head, found 1e-46"},
      // 2^53 + 1, which a double rounds to the bound.
      {R"({"train": {"seed": 9007199254740993}})",
       "c.json:1:20: /train/seed: expected an integer from 0 to 9007199254740992, found "
       "9007199254740993"},
      {R"({"model": {"norm_eps": 1e-46}})",
       "c.json:1:24: /model/norm_eps: expected a number from 1.2e-38 to 1, found 1e-46"},
      {R"({"model": {"init_std": 1e-46}})",
       "c.json:1:24: /model/init_std: expected a number from 1.2e-38 to 10, found 1e-46"},
      {R"({"model": {"rope_theta": 1e39}})",
       "c.json:1:26: /model/rope_theta: expected a number from 1.2e-38 to 3.4e+38, found 1e39"},
      {R"({"optimizer": {"beta1": 0.99999999}})",
       "c.json:1:25: /optimizer/beta1: expected a number from 0 to 0.9999999, found 0.99999999"},
      {R"({"optimizer": {"clip_norm": 1e-46}})",
       "c.json:1:29: /optimizer/clip_norm: expected 0 or a number from 1.2e-38 to 3.4e+38, found "
       "1e-46"},
      {R"({"optimizer": "adamw"})",
       "c.json:1:15: /optimizer: expected an object {…}, found \"adamw\"; write {\"kind\": "
       "\"adamw\"}"},
      {R"({"optimizer": {"kind": "adam"}})",
       "c.json:1:24: /optimizer/kind: expected one of \"adamw\", \"muon\", found \"adam\"; did you "
       "mean \"adamw\"?"},
      {R"({"optimizer": {"state": "fp16"}})",
       "c.json:1:25: /optimizer/state: expected one of \"fp32\", \"bf16\", found "
       "\"fp16\""},
  };
  for (const Case& test : cases) EXPECT_EQ(problems(test.text), test.message) << test.text;
}

TEST(Config, NamesContradictions) {
  const std::vector<Case> cases = {
      {R"({"model": {"heads": 8, "kv_heads": 3}})",
       "c.json:1:36: /model/kv_heads: 3 does not divide model.heads, 8"},
      {R"({"model": {"channels": 100}})",
       "c.json:1:24: /model/channels: 100 is not a multiple of model.heads, 8; change one of them "
       "or set model.head_dim"},
      {R"({"model": {"heads": 7}})",
       "c.json:1:21: /model/channels: 512 is not a multiple of model.heads, 7; change one of them "
       "or set model.head_dim"},
      {R"({"model": {"rope_dims": 66}})",
       "c.json:1:25: /model/rope_dims: 66 is more than the head dimension, 64"},
      {R"({"model": {"rope_dims": 31}})",
       "c.json:1:25: /model/rope_dims: 31 is odd; rotary embedding rotates pairs of dimensions"},
      {R"({"model": {"head_dim": 33}})",
       "c.json:1:24: /model/head_dim: the head dimension, 33, is odd; rotary embedding rotates "
       "pairs of dimensions: make it even or set an even model.rope_dims"},
      {R"({"model": {"rope_dims": 32, "position": "alibi"}})",
       "c.json:1:25: /model/rope_dims: is used by model.position \"rope\" only; remove it"},
      {R"({"model": {"stable_mask": {"gamma": [1, 2, 3]}}})",
       "c.json:1:37: /model/stable_mask/gamma: 3 numbers for 8 heads; give one number, or one per "
       "head"},
      {R"({"model": {"stable_mask": {"p_base": [1, 2]}}})",
       "c.json:1:38: /model/stable_mask/p_base: 2 numbers for 8 heads; give one number, or one per "
       "head"},
      {R"({"model": {"stable_mask": {"gamma": 0, "mask_length": "infinite"}}})",
       "c.json:1:37: /model/stable_mask/gamma: 0 with mask_length \"infinite\" gives "
       "infinite pseudo mass; use a larger gamma or a finite mask_length"},
      {R"({"model": {"stable_mask": {"gamma": 0}}})",
       "c.json:1:37: /model/stable_mask/gamma: 0 gives rows beyond the mask length "
       "infinite pseudo mass; use a larger gamma or set model.stable_mask.beyond to \"none\""},
      {R"({"model": {"stable_mask": {"gamma": 0, "learnable": true}}})",
       "c.json:1:37: /model/stable_mask/gamma: 0 cannot be trained; start a learnable "
       "gamma above 0"},
      {R"({"model": {"stable_mask": {"mask_length": "sequence"}}, "data": {"document_mask": true}})",
       "c.json:1:43: /model/stable_mask/mask_length: \"sequence\" cannot be used with "
       "data.document_mask; use a number or turn data.document_mask off"},
      {R"({"model": {"learned_positions": 8}})",
       "c.json:1:33: /model/learned_positions: is used by model.position \"learned\" only; remove "
       "it"},
      {R"({"model": {"position": "learned", "learned_positions": 64}, "train": {"context": 65}})",
       "c.json:1:82: /train/context: 65 is more than the 64 positions of model.position "
       "\"learned\"; lower it"},
      {R"({"model": {"position": "learned"}, "eval": {"window": 1025}})",
       "c.json:1:55: /eval/window: 1025 is more than the 1024 positions of model.position "
       "\"learned\"; lower it"},
      {R"({"model": {"rope_theta": 1,
           "rope_scaling": {"kind": "yarn", "factor": 2, "original_context": 8}}})",
       "c.json:1:26: /model/rope_theta: must be above 1 with model.rope_scaling of kind \"yarn\""},
      {R"({"train": {"batch": 32, "micro_batch": 5}})",
       "c.json:1:40: /train/micro_batch: 5 does not divide train.batch, 32"},
      {R"({"train": {"freeze_layers": 7, "init_from": "a"}, "model": {"layers": 6}})",
       "c.json:1:29: /train/freeze_layers: 7 is more than model.layers, 6"},
      {R"({"train": {"freeze_layers": 7, "init_from": "a"}})",
       ""},  // the checkpoint's layers count
      {R"({"train": {"freeze_layers": 2}})",
       "c.json:1:29: /train/freeze_layers: needs train.init_from: frozen blocks would keep their "
       "random initial weights"},
      {R"({"lora": {"rank": 4}})",
       "c.json:1:19: /lora/rank: needs train.init_from: adapters are trained beside the weights of "
       "a checkpoint, by `stablemask finetune`"},
      {R"({"lora": {"rank": 4}, "train": {"init_from": "a", "freeze_layers": 1}})",
       "c.json:1:19: /lora/rank: freezes the whole model; remove train.freeze_layers"},
      {R"({"optimizer": {"kind": "muon"}, "lora": {"rank": 4}, "train": {"init_from": "a"}})",
       "c.json:1:24: /optimizer/kind: \"muon\" orthogonalises whole matrices, not the factors of "
       "adapters; use \"adamw\""},
      {R"({"lora": {"rank": 4, "targets": []}, "train": {"init_from": "a"}})",
       "c.json:1:33: /lora/targets: is empty, so nothing would be trained; name projections or set "
       "lora.rank to 0"},
      {R"({"lora": {"rank": 4, "targets": ["up", "up"]}, "train": {"init_from": "a"}})",
       "c.json:1:33: /lora/targets: names a projection twice; remove one of them"},
      {R"({"lora": {"targets": ["upp"]}})",
       "c.json:1:22: /lora/targets: expected a list of some of \"qkv\", \"proj\", \"up\", "
       "\"down\", found \"upp\"; did you mean \"up\"?"},
      {R"({"lora": {"rank": 4, "targets": ["up"]}, "train": {"init_from": "a"}})", ""},
      {R"({"train": {"precision": "fp8"}, "model": {"ffn_hidden": 1537}})",
       "c.json:1:57: /model/ffn_hidden: 1537 is not a multiple of 16, as train.precision \"fp8\" "
       "needs it"},
      {R"({"train": {"precision": "fp8", "context": 1000}})",
       "c.json:1:43: /train/context: 1000 is not a multiple of 16, as train.precision \"fp8\" "
       "needs it"},
      {R"({"train": {"precision": "fp8"}, "model": {"heads": 2, "head_dim": 4}})",
       "c.json:1:52: /model/heads: heads x head dimension, 8 is not a multiple of 16, as "
       "train.precision \"fp8\" needs it"},
      {R"({"train": {"precision": "fp8"}, "model": {"kv_heads": 1, "head_dim": 8}})",
       "c.json:1:55: /model/kv_heads: kv_heads x head dimension, 8 is not a multiple of 16, as "
       "train.precision \"fp8\" needs it"},
      {R"({"train": {"precision": "fp8", "init_from": "a"}, "lora": {"rank": 4}})",
       "c.json:1:25: /train/precision: \"fp8\" is not for adapters; use \"dtype\" or set lora.rank "
       "to 0"},
      {R"({"train": {"precision": "fp8"}})", ""},
      {R"({"train": {"eval_every": 5}})",
       "c.json:1:26: /train/eval_every: needs data.valid, the shard to validate on"},
      {R"({"train": {"sample_prompts": ["a"]}})",
       "c.json:1:30: /train/sample_prompts: needs data.valid: the prompts are continued after each "
       "validation"},
      {R"({"train": {"sample_prompts": ["a"]}, "data": {"valid": "v"},
           "model": {"stable_mask": {"mask_length": "sequence"}}})",
       "c.json:1:30: /train/sample_prompts: model.stable_mask.mask_length \"sequence\" excludes "
       "generation with a KV cache; use a number or remove the prompts"},
      {R"({"train": {"sample_prompts": ["a"]}, "data": {"valid": "v"},
           "model": {"log_length_scale": true}})",
       "c.json:1:30: /train/sample_prompts: model.log_length_scale excludes generation with a KV "
       "cache; turn it off or remove the prompts"},
      {R"({"train": {"sample_prompts": ["a\n", "b"]}, "data": {"valid": "v"},
           "model": {"stable_mask": {"enabled": false, "mask_length": "sequence"}}})",
       ""},
      {R"({"train": {"steps": 1000000000000, "batch": 16777216}})",
       "c.json:1:21: /train/steps: train.batch * train.context * train.steps = 16777216 * 1024 * "
       "1000000000000 = 1.718e+22 tokens, more than the 9.223e+18 that can be counted; lower one "
       "of them"},
      {R"({"train": {"steps": 1000000000000, "batch": 9007}})", ""},
      {R"({"schedule": {"decay_steps": 5}})",
       "c.json:1:30: /schedule/decay_steps: is used by schedule.kind \"wsd\" only; remove it"},
      {R"({"eval": {"window": 64, "stride": 65}})",
       "c.json:1:35: /eval/stride: 65 is more than the window, 64: some tokens would not be "
       "scored; "
       "lower it"},
  };
  for (const Case& test : cases) EXPECT_EQ(problems(test.text), test.message) << test.text;
}

TEST(Config, RopeScalingIsANumberOrAnObject) {
  const auto read = [](const std::string& value) {
    return parse_config(R"({"model": {"rope_scaling": )" + value + "}}", "c.json")
        .model.rope_scaling;
  };
  EXPECT_EQ(read("2.5").factor, 2.5);
  EXPECT_EQ(read(R"({"kind": "linear", "factor": 3})").factor, 3);
  const RopeScaling llama = read(R"({"factor": 8, "kind": "llama3", "original_context": 8192})");
  EXPECT_EQ(llama.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(llama.factor, 8);
  EXPECT_EQ(llama.original_context, 8192);
  EXPECT_EQ(llama.high_freq_factor, 4);
  const RopeScaling yarn = read(
      R"({"kind": "yarn", "factor": 4, "original_context": 99, "beta_fast": 16, "attention_factor": 1})");
  EXPECT_EQ(yarn.kind, RopeScaling::Kind::kYarn);
  EXPECT_EQ(yarn.beta_fast, 16);
  EXPECT_EQ(yarn.beta_slow, 1);
  EXPECT_EQ(yarn.attention_factor, 1);
  const Config set =
      parse_config("{}", "c.json",
                   {R"(model.rope_scaling={"kind": "yarn", "factor": 4, "original_context": 9})"});
  EXPECT_EQ(set.model.rope_scaling.original_context, 9);
  EXPECT_EQ(dump_config(parse_config(dump_config(set), "dump")), dump_config(set));
}

TEST(Config, WrongRopeScalingNamesTheKey) {
  const std::vector<Case> cases = {
      {"0.5",
       "expected a number from 1 to 1000000 or an object {\"kind\": \"linear\", \"factor\"}, "
       "{\"kind\": \"llama3\", \"factor\", \"original_context\", \"low_freq_factor\", "
       "\"high_freq_factor\"}, {\"kind\": \"yarn\", \"factor\", \"original_context\", "
       "\"beta_fast\", \"beta_slow\", \"attention_factor\"}, found 0.5"},
      {R"({"type": "yarn"})",
       R"("kind" must be one of "linear", "llama3", "yarn"; the object does not state it)"},
      {R"({"kind": "dynamic", "factor": 2})",
       R"("kind" must be one of "linear", "llama3", "yarn", found "dynamic")"},
      {R"({"kind": "linear"})", R"(the object needs the key "factor")"},
      {R"({"kind": "llama3", "factor": 2})", R"(the object needs the key "original_context")"},
      {R"({"kind": "linear", "factor": 2, "beta_fast": 1})",
       R"(unknown key "beta_fast"; the keys of kind "linear" are "kind", "factor")"},
      {R"({"kind": "linear", "facto": 2})",
       R"(unknown key "facto"; did you mean "factor"?; the keys of kind "linear" are "kind", "factor")"},
      {R"({"kind": "linear", "factor": 2, "factor": 3})", R"("factor" is stated twice)"},
      {R"({"kind": "linear", "factor": 0.5})",
       R"("factor": expected a number of at least 1 and at most 1000000, found 0.5)"},
      {R"({"kind": "yarn", "factor": 2, "original_context": 2.5})",
       R"("original_context": expected an integer of at least 1 and at most 1000000000, found 2.5)"},
      {R"({"kind": "yarn", "factor": 2, "original_context": 8, "beta_slow": 0})",
       R"("beta_slow": expected a number above 0 and at most 1000000, found 0)"},
      {R"({"kind": "yarn", "factor": 2, "original_context": 8, "beta_slow": 32})",
       R"("beta_fast", 32, must be above "beta_slow", 32)"},
      {R"({"kind": "llama3", "factor": 2, "original_context": 8, "low_freq_factor": 5})",
       R"("high_freq_factor", 4, must be above "low_freq_factor", 5)"},
  };
  for (const Case& test : cases) {
    EXPECT_EQ(problems(R"({"model": {"rope_scaling": )" + test.text + "}}"),
              "c.json:1:28: /model/rope_scaling: " + test.message);
  }
}

TEST(Config, LearnedPositionsAreResolvedToTheContext) {
  const auto positions = [](const std::string& model) {
    return parse_config(R"({"model": )" + model + R"(, "train": {"context": 96}})", "c.json")
        .model.learned_positions;
  };
  EXPECT_EQ(positions(R"({"position": "learned"})"), 96);
  EXPECT_EQ(positions(R"({"position": "learned", "learned_positions": 128})"), 128);
  EXPECT_EQ(positions("{}"), 0);
}

TEST(Config, ReportsEverythingAtOnceInOrder) {
  EXPECT_EQ(
      problems("{\n  \"train\": {\"batch\": 6, \"micro_batch\": 4, \"setps\": 3},\n"
               "  \"model\": {\"heads\": 0, \"kv_heads\": 3, \"ffn\": \"relu\"}\n}",
               {"optimizer.lr=fast", "nonsense"}),
      "c.json:2:40: /train/micro_batch: 4 does not divide train.batch, 6\n"
      "c.json:2:43: /train/setps: unknown key; did you mean \"steps\"?\n"
      "c.json:3:22: /model/heads: expected an integer from 1 to 4096, found 0\n"
      "c.json:3:47: /model/ffn: expected one of \"swiglu\", \"gelu\", \"gelu_tanh\", found "
      "\"relu\"; did you mean \"gelu\"?\n"
      "--set nonsense: expected path=value, such as train.steps=100\n"
      "--set optimizer.lr=fast: /optimizer/lr: expected 0 or a number from 1.2e-38 to 1e+30, found "
      "\"fast\"");
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
