#include "src/config/migrations.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "tests/config/config_problems.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;
using Kind = ConfigChange::Kind;

/// A complete config as the program stored it before configs had a version.
constexpr const char* kVersion0 =
    R"({"model": {"preset": "71m", "vocab_size": 50257, "layers": 3, "channels": 512, "heads": 8,
"kv_heads": 0, "head_dim": 0, "ffn_hidden": 1536, "ffn": "swiglu", "norm": "rms", "norm_eps":
1e-05, "qk_norm": false, "tied_head": false, "position": "alibi", "rope_theta": 10000.0,
"rope_dims": 0, "window": 0, "log_length_scale": false, "init_std": 0.02, "attention": "auto",
"stable_mask": {"enabled": true, "gamma": [0.5, 0.25, 0.125, 1.0, 2.0, 3.0, 4.0, 5.0], "p_base":
0.0, "mask_length": 96, "learnable": true}}, "data": {"train": ["a.shard", "b.shard"], "valid":
"v.shard", "tokenizer": "t.model", "document_mask": true, "prefetch": 4}, "train": {"out":
"runs/old", "device": "auto", "dtype": "auto", "seed": 1337, "context": 96, "batch": 32,
"micro_batch": 32, "steps": 70, "log_every": 10, "eval_every": 10, "save_every": 0, "keep_last":
2, "keep_every": 0, "deterministic": false, "cuda_graph": true, "reference_ops": false,
"activation_checkpointing": false, "non_finite": "stop", "non_finite_limit": 10, "z_loss":
0.0001, "threads": 0, "time_limit_s": 0.0, "stop_on_save_error": true, "init_from": "",
"freeze_layers": 0}, "optimizer": {"lr": 0.0005, "beta1": 0.9, "beta2": 0.98, "eps": 1e-08,
"weight_decay": 0.1, "clip_norm": 1.0}, "schedule": {"kind": "wsd", "warmup_steps": 4,
"final_lr_ratio": 0.1, "decay_steps": 12}, "eval": {"window": 96, "stride": 0, "batch": 0},
"generate": {"max_tokens": 128, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1}})";

struct OldConfig {
  std::string text;
  Strings same_as;  ///< overrides that make the same config from {}
};

/// What older programs did where today's defaults differ.
const Strings kOldDefaults = {"model.stable_mask.beyond=none", "model.stable_mask.gamma=slopes"};

Strings with_old_defaults(Strings overrides) {
  overrides.insert(overrides.begin(), kOldDefaults.begin(), kOldDefaults.end());
  return overrides;
}

TEST(ConfigVersion, ConfigsWithoutAVersionGetTodaysDefaults) {
  for (const char* text : {"{}", R"({"train": {"steps": 300}})"}) {
    EXPECT_EQ(
        dump_config(parse_config(text, "old")),
        dump_config(parse_config(
            text, "new", {"model.stable_mask.beyond=infinite", "model.stable_mask.gamma=auto"})));
  }
  EXPECT_EQ(dump_config(parse_saved_config("{}", "old")),
            dump_config(parse_config("{}", "new", kOldDefaults)));
}

TEST(ConfigVersion, OldConfigsReadAsTheSameConfigToday) {
  const std::vector<OldConfig> cases = {
      {R"({"version": 0, "train": {"steps": 300}})", {"train.steps=300"}},
      {R"({"version": 1, "train": {"steps": 300}})", {"train.steps=300"}},
      {R"({"version": 1, "model": {"stable_mask": false}})", {"model.stable_mask=false"}},
      {kVersion0,
       {"model.preset=71m",
        "model.layers=3",
        "model.position=alibi",
        "model.stable_mask.gamma=[0.5,0.25,0.125,1,2,3,4,5]",
        "model.stable_mask.learnable=true",
        "data.train=[\"a.shard\",\"b.shard\"]",
        "data.valid=v.shard",
        "data.tokenizer=t.model",
        "data.document_mask=true",
        "train.out=runs/old",
        "train.context=96",
        "train.micro_batch=32",
        "train.steps=70",
        "train.eval_every=10",
        "train.z_loss=1e-4",
        "optimizer.lr=5e-4",
        "optimizer.beta2=0.98",
        "schedule.kind=wsd",
        "schedule.warmup_steps=4",
        "schedule.decay_steps=12"}},
  };
  for (const OldConfig& old : cases) {
    EXPECT_EQ(dump_config(parse_saved_config(old.text, "old")),
              dump_config(parse_config("{}", "new", with_old_defaults(old.same_as))))
        << old.text;
  }
}

TEST(ConfigVersion, PrecisionBf16WasThatOfTheDtypeUpToVersion2) {
  const auto precision = [](int64_t version, const char* stated) {
    const Json config = {{"version", version}, {"train", {{"precision", stated}}}};
    return parse_saved_config(config.dump(), "stored").train.precision;
  };
  EXPECT_EQ(precision(2, "bf16"), Precision::kDtype);
  EXPECT_EQ(precision(2, "fp8"), Precision::kFp8);
  EXPECT_EQ(precision(3, "bf16"), Precision::kBf16);
  EXPECT_EQ(parse_config(R"({"train": {"precision": "bf16"}})", "by hand").train.precision,
            Precision::kBf16);
}

TEST(ConfigVersion, IsTheFirstKeyOfADump) {
  const Json dump = Json::parse(dump_config(Config()));
  EXPECT_EQ(dump.begin().key(), "version");
  EXPECT_EQ(dump["version"], kConfigVersion);
}

TEST(ConfigVersion, NewerAndInvalidVersionsAreRefused) {
  // Keys of a newer format are not reported: only the version is the problem.
  EXPECT_EQ(problems(R"({"version": 7, "hyperspace": {}})"),
            "c.json: has config version 7; this program reads up to version 3: use a newer "
            "stablemask");
  const std::string expected =
      ": /version: expected an integer from 0 to 3, the format version of the config, found ";
  EXPECT_EQ(problems(R"({"version": "1"})"), "c.json:1:13" + expected + "\"1\"");
  EXPECT_EQ(problems(R"({"version": -1})"), "c.json:1:13" + expected + "-1");
  EXPECT_EQ(problems(R"({"version": 1.0})"), "c.json:1:13" + expected + "1.0");
  EXPECT_EQ(problems(R"({"version": 1, "version": 1})"),
            "c.json:1:16: /version: duplicate key, first stated at 1:2; remove one of them");
  EXPECT_EQ(problems(R"({"train": {"version": 1}})"), "c.json:1:12: /train/version: unknown key");
}

TEST(Migrations, LeadFromEveryVersionToTheCurrentOne) {
  int64_t version = 0;
  for (const Migration& step : config_migrations()) {
    EXPECT_EQ(step.from, version++);
    EXPECT_FALSE(step.reason.empty());
  }
  EXPECT_EQ(version, kConfigVersion);
}

/// A JsonValue as JSON again.
Json to_json(const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::kBool:
      return value.boolean;
    case JsonValue::Kind::kInteger:
      return value.integer;
    case JsonValue::Kind::kString:
      return value.text;
    case JsonValue::Kind::kObject: {
      Json object = Json::object();
      for (const JsonMember& member : value.members) object[member.key] = to_json(member.value);
      return object;
    }
    default:
      return nullptr;
  }
}

/// Steps of an invented history.
constexpr ConfigChange kTo1[] = {
    {Kind::kMove, "/train/rows", "/train/batch"},
    {Kind::kMove, "/lr", "/optimizer/lr"},
    {Kind::kRemove, "/train/verbose", ""},
};
constexpr ConfigChange kTo2[] = {
    {Kind::kMove, "/train/batch", "/data/batch"},
    {Kind::kAdd, "", "/mask/kind", R"({"name": "old"})"},
};
constexpr Migration kHistory[] = {{0, "first", kTo1}, {1, "second", kTo2}};

std::string migrated(const std::string& text, int64_t version) {
  JsonValue root = parse_json(text);
  migrate(root, version, Behaviour::kOfItsVersion, kHistory);
  return to_json(root).dump();
}

TEST(Migrations, RenameMoveRemoveAndAddMembers) {
  struct Step {
    int64_t version;
    std::string before, after;
  };
  const std::string mask = R"("mask":{"kind":{"name":"old"}})";
  const std::vector<Step> cases = {
      {0, R"({"train":{"rows":8,"verbose":true,"seed":1},"lr":3})",
       R"({"train":{"seed":1},"optimizer":{"lr":3},"data":{"batch":8},)" + mask + "}"},
      {1, R"({"train":{"batch":8,"verbose":true}})",
       R"({"train":{"verbose":true},"data":{"batch":8},)" + mask + "}"},
      {2, R"({"train":{"batch":8}})", R"({"train":{"batch":8}})"},
      {0, "{}", "{" + mask + "}"},
      // Stated under both names: the old one stays, to be reported as an unknown key.
      {1, R"({"train":{"batch":8},"data":{"batch":9}})",
       R"({"train":{"batch":8},"data":{"batch":9},)" + mask + "}"},
      // A stated value is not replaced; a section that is on or off is spelt out.
      {1, R"({"mask":{"kind":"new"}})", R"({"mask":{"kind":"new"}})"},
      {1, R"({"mask":false})", R"({"mask":{"enabled":false,"kind":{"name":"old"}}})"},
      // Values of a wrong type are left to the field table.
      {0, R"({"train":5,"mask":"x"})", R"({"train":5,"mask":"x"})"},
  };
  for (const Step& test : cases) {
    EXPECT_EQ(migrated(test.before, test.version), test.after) << test.before;
  }
}

TEST(Migrations, MovedMembersKeepTheirPositionAndAddedOnesHaveNone) {
  JsonValue root = parse_json(R"({"lr":3})");
  migrate(root, 0, Behaviour::kOfItsVersion, kHistory);
  ASSERT_EQ(root.members.size(), 2u);
  EXPECT_EQ(root.members[0].value.members[0].at.column, 2);
  EXPECT_EQ(root.members[0].value.members[0].value.at.column, 7);
  EXPECT_EQ(root.members[1].value.members[0].value.at.line, 0);
}

}  // namespace
}  // namespace stablemask
