#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/config/config_fields.h"
#include "stablemask/base/error.h"
#include "stablemask/config/config.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

const fs::path kSource = STABLEMASK_SOURCE_DIR;

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<fs::path> config_files() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::recursive_directory_iterator(kSource / "configs")) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// JSON pointers of everything that is no object.
std::vector<std::string> leaves(const Json& value, const std::string& pointer = "") {
  if (!value.is_object()) return {pointer};
  std::vector<std::string> found;
  for (const auto& [key, child] : value.items()) {
    for (std::string& leaf : leaves(child, pointer + "/" + key)) found.push_back(std::move(leaf));
  }
  return found;
}

std::vector<std::string> table_pointers() {
  std::vector<std::string> pointers;
  for (const Section& section : config_sections()) {
    for (const Field& field : section.fields) pointers.push_back(field_pointer(section, field));
  }
  std::sort(pointers.begin(), pointers.end());
  return pointers;
}

/// Another allowed value of the same type.
struct Change {
  const Field& field;

  void operator()(bool* value) const { *value = !*value; }
  void operator()(int64_t* value) const { *value += 2; }
  void operator()(double* value) const {
    const double lower = *value == 0 ? 0.25 : *value * 0.75;
    *value = lower >= field.range.low ? lower : *value * 1.5;
  }
  void operator()(std::string* value) const {
    *value = field.choices.empty() ? "another" : std::string(field.choices.back());
  }
  void operator()(std::vector<std::string>* value) const { value->push_back("another"); }
  void operator()(std::vector<TrainShard>* value) const { value->emplace_back("another"); }
  void operator()(PerHead* value) const { value->values = {0.1, 1.0 / 3.0}; }
  void operator()(GammaSpec* value) const { *value = {GammaSpec::Kind::kValue, {{1e-3, 0.7}}}; }
  void operator()(MaskLengthSpec* value) const { *value = {MaskLengthSpec::Kind::kFixed, 77}; }
  void operator()(RopeScaling* value) const {
    *value = {RopeScaling::Kind::kYarn, 2.5, 77, 1.0, 4.0, 16.5, 0.5, 1.25};
  }
  template <class Enum>
  void operator()(Enum* value) const {
    const size_t count = names_of(Enum()).size();
    *value = static_cast<Enum>((static_cast<size_t>(*value) + 1) % count);
  }
};

void change(const Field& field, Config& config) { std::visit(Change{field}, field.in(config)); }

TEST(ConfigTable, DumpHoldsTheVersionAndExactlyTheFieldsOfTheTable) {
  std::vector<std::string> dumped = leaves(Json::parse(dump_config(Config())));
  EXPECT_EQ(dumped.front(), "/version");
  dumped.erase(dumped.begin());
  std::sort(dumped.begin(), dumped.end());
  EXPECT_EQ(dumped, table_pointers());
  EXPECT_GT(dumped.size(), 60u);
}

TEST(ConfigTable, DefaultsAreAllowed) {
  EXPECT_NO_THROW(parse_config(dump_config(Config()), "defaults"));
}

TEST(ConfigTable, DumpReadsBackEqual) {
  // Every field differs from its default; those that others depend on are put right.
  Config config;
  for (const Section& section : config_sections()) {
    for (const Field& field : section.fields) change(field, config);
  }
  config.model.position = Position::kRope;
  config.model.learned_positions = 0;
  config.model.heads = 2;
  config.model.kv_heads = 1;
  config.model.head_dim = 32;
  // Multiples of 16, for train.precision "fp8".
  config.model.channels = 528;
  config.model.ffn_hidden = 1552;
  config.train.context = 1040;
  config.model.log_length_scale = false;
  config.train.batch = 34;
  config.train.micro_batch = 17;
  config.train.freeze_layers = 2;
  config.model.lora.rank = 0;
  config.model.lora.targets = {"up"};
  config.train.steps = 0;
  config.train.tokens = 0;
  config.train.mask_warmup_steps = 0;
  config.schedule.kind = ScheduleKind::kWsd;
  config.eval.window = 9;
  const std::string text = dump_config(config);
  EXPECT_EQ(dump_config(parse_config(text, "dump")), text);
  const Json dumped = Json::parse(text), defaults = Json::parse(dump_config(Config()));
  for (const std::string& pointer : table_pointers()) {
    if (pointer == "/model/position") continue;
    if (pointer == "/model/learned_positions") continue;  // excludes RoPE's fields
    if (pointer == "/train/tokens") continue;             // excludes train.epochs
    if (pointer == "/train/mask_warmup_steps") continue;  // needs the mask, which is off
    if (pointer == "/model/log_length_scale") continue;   // excludes train.sample_prompts
    if (pointer == "/lora/rank") continue;                // excludes train.freeze_layers
    EXPECT_NE(dumped[Json::json_pointer(pointer)], defaults[Json::json_pointer(pointer)])
        << pointer;
  }
}

TEST(ConfigTable, ResolvedConfigStaysAsItIs) {
  const Config resolved =
      parse_config(R"({"model": {"preset": "400m"}, "train": {"context": 96}})", "c");
  const std::string text = dump_config(resolved);
  EXPECT_EQ(dump_config(parse_config(text, "dump")), text);
}

TEST(ConfigTable, FrozenDifferencesNameFrozenFieldsOnly) {
  // Rows beyond the mask length exist, so that what they do is frozen.
  const Config saved = parse_config(R"({"model": {"stable_mask": {"mask_length": 512}}})", "c");
  EXPECT_TRUE(frozen_differences(saved, saved).empty());
  for (const Section& section : config_sections()) {
    for (const Field& field : section.fields) {
      Config now = saved;
      change(field, now);
      const std::string pointer = field_pointer(section, field) + ": ";
      bool named = false;
      for (const std::string& line : frozen_differences(saved, now)) {
        named = named || line.starts_with(pointer);
      }
      EXPECT_EQ(named, field.frozen) << pointer;
    }
  }
}

TEST(ConfigTable, FrozenDifferencesShowBothValues) {
  Config saved = parse_config("{}", "c"), now = saved;
  now.model.layers = 12;
  now.model.stable_mask.gamma = {GammaSpec::Kind::kSlopes, {}};
  now.optimizer.lr = 1;
  now.train.steps = 1;
  EXPECT_EQ(frozen_differences(saved, now),
            (std::vector<std::string>{"/model/layers: 6 -> 12",
                                      "/model/stable_mask/gamma: 1.0 -> \"slopes\""}));
  now = saved;
  now.model.kv_heads = saved.model.heads;  // the same, written out
  now.model.head_dim = 64;
  now.model.stable_mask.beyond = BeyondMask::kNone;  // no row of 1024 is beyond N = 1024
  EXPECT_TRUE(frozen_differences(saved, now).empty());
  saved.model.stable_mask.mask_length.length = now.model.stable_mask.mask_length.length = 512;
  EXPECT_EQ(frozen_differences(saved, now),
            std::vector<std::string>{"/model/stable_mask/beyond: \"infinite\" -> \"none\""});
}

TEST(ConfigTable, SchemaListsEveryFieldWithDefaultAndMeaning) {
  const Json schema = Json::parse(config_schema());
  EXPECT_EQ(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
  const Json defaults = Json::parse(dump_config(Config()));
  for (const Section& section : config_sections()) {
    const Json* object = &schema;
    const std::string path(section.pointer);
    for (size_t begin = 1; begin <= path.size();) {
      const size_t end = std::min(path.find('/', begin), path.size());
      object = &object->at("properties").at(path.substr(begin, end - begin));
      if (object->contains("anyOf")) object = &object->at("anyOf").at(1);
      begin = end + 1;
    }
    EXPECT_EQ(object->at("type"), "object");
    EXPECT_EQ(object->at("additionalProperties"), false);
    for (const Field& field : section.fields) {
      const Json& property = object->at("properties").at(std::string(field.name));
      EXPECT_EQ(property.at("default"),
                defaults[Json::json_pointer(field_pointer(section, field))]);
      EXPECT_EQ(property.at("description"), field.meaning);
      EXPECT_TRUE(property.contains("type") || property.contains("enum") ||
                  property.contains("anyOf"))
          << field.name;
    }
  }
  const Json& model = schema["properties"]["model"]["properties"];
  EXPECT_EQ(model["heads"]["minimum"], 1);
  EXPECT_EQ(model["norm_eps"]["minimum"], 1.2e-38);
  EXPECT_EQ(schema["properties"]["generate"]["properties"]["top_p"]["exclusiveMinimum"], 0);
  EXPECT_EQ(model["position"]["enum"],
            (std::vector<std::string>{"rope", "alibi", "none", "learned"}));
  const Json& clip_norm = schema["properties"]["optimizer"]["properties"]["clip_norm"];
  EXPECT_EQ(clip_norm["anyOf"][0]["const"], 0);
  EXPECT_EQ(clip_norm["anyOf"][1]["minimum"], 1.2e-38);
  const Json& version = schema["properties"]["version"];
  EXPECT_EQ(version["minimum"], 0);
  EXPECT_EQ(version["maximum"], kConfigVersion);
}

TEST(ConfigTable, ReferencePageIsUpToDate) {
  const std::string page = read_text(kSource / "docs" / "config.md");
  EXPECT_TRUE(page.ends_with(config_reference()))
      << "docs/config.md differs from the field table; its tables are what `stablemask config "
         "reference` prints";
}

TEST(ConfigFiles, EveryFileIsSoundAndHoldsOnlyWhatDiffersFromTheDefaults) {
  const std::vector<fs::path> paths = config_files();
  EXPECT_GE(paths.size(), 20u);
  for (const fs::path& path : paths) {
    Config config;
    ASSERT_NO_THROW(config = load_config(path)) << path;
    const std::string whole = dump_config(config);
    const Json json = Json::parse(read_text(path));
    for (const std::string& pointer : leaves(json)) {
      Json fewer = json;
      const Json::json_pointer at(pointer);
      fewer[at.parent_pointer()].erase(at.back());
      std::string without = "refused";
      try {
        without = dump_config(parse_config(fewer.dump(), "fewer"));
      } catch (const ConfigError&) {
      }
      EXPECT_NE(without, whole) << path << ": " << pointer << " states a default";
    }
  }
}

TEST(ConfigFiles, TwinsDifferInTheMaskAlone) {
  int pairs = 0;
  for (const fs::path& path : config_files()) {
    std::string twin = path.string();
    const size_t suffix = twin.rfind("-causal.json");
    if (suffix == std::string::npos) continue;
    twin.replace(suffix, std::string::npos, "-stablemask.json");
    Config causal = load_config(path), stable = load_config(twin);
    EXPECT_FALSE(causal.model.stable_mask.enabled) << path;
    EXPECT_TRUE(stable.model.stable_mask.enabled) << twin;
    EXPECT_NE(causal.train.out, stable.train.out) << path;
    causal.model.stable_mask = stable.model.stable_mask;
    causal.train.out = stable.train.out;
    EXPECT_EQ(dump_config(causal), dump_config(stable)) << path;
    ++pairs;
  }
  EXPECT_GE(pairs, 11);
}

TEST(ConfigFiles, UnreadableFilesAreNamed) {
  const fs::path folder = fs::path(testing::TempDir()) / "config_table_test";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const auto message = [](const fs::path& path) -> std::string {
    try {
      load_config(path);
      return "";
    } catch (const ConfigError& error) {
      return error.what();
    }
  };
  EXPECT_EQ(message(folder / "none.json"),
            (folder / "none.json").string() +
                ": cannot be opened: No such file or directory; check the path");
  EXPECT_EQ(message(folder), folder.string() + ": is a folder; name a file");
  std::ofstream(folder / "large.json") << std::string((1 << 20) + 1, ' ');
  EXPECT_EQ(message(folder / "large.json"),
            (folder / "large.json").string() + ": is longer than 1048576 bytes");
  std::ofstream(folder / "good.json") << R"({"train": {"steps": 300}})";
  EXPECT_EQ(load_config(folder / "good.json").train.steps, 300);
  std::ofstream(folder / "bad.json") << R"({"train": {"steps": 0}})";
  EXPECT_EQ(
      message(folder / "bad.json"),
      (folder / "bad.json").string() +
          ":1:21: /train/steps: expected an integer from 1 to 1000000000000, found 0; the length "
          "of the run is train.steps, train.epochs or train.tokens");
  fs::remove_all(folder);
}

}  // namespace
}  // namespace stablemask
