// `stablemask inspect` as a user calls it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::expect_refusal;
using testing::PipelineTest;
using testing::read_file;
using testing::write_file;

using InspectCommandTest = PipelineTest;

const char* const kInspect = "inspect --checkpoint run --data valid.shard ";

json parsed(const std::string& path) { return json::parse(read_file(path)); }

/// Names of all files in a folder, sorted.
std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

double sum(const json& values) {
  double total = 0;
  for (const json& value : values) total += value.get<double>();
  return total;
}

/// Every key of the JSON text must be documented, but those of the config's section "model".
void expect_documented(const json& value, const std::string& document) {
  if (value.is_array() && !value.empty()) expect_documented(value[0], document);
  if (!value.is_object()) return;
  for (const auto& [key, content] : value.items()) {
    EXPECT_NE(document.find("`" + key + "`"), std::string::npos) << key;
    if (key != "model") expect_documented(content, document);
  }
}

TEST_F(InspectCommandTest, WritesStatisticsOfEveryHead) {
  const std::string out = succeed(std::string(kInspect) + "--out seen/deep --windows 3").out;
  EXPECT_NE(out.find("valid.shard, 3 windows of 64 tokens"), std::string::npos) << out;
  EXPECT_EQ(files_in(path("seen/deep")), (std::vector<std::string>{"inspect.json", "maps.json"}));
  const json said = parsed(path("seen/deep/inspect.json"));
  EXPECT_EQ(said["version"], 1);
  EXPECT_EQ(said["step"], 40);
  EXPECT_EQ(said["data"], "valid.shard");
  EXPECT_EQ(said["window"], 64);
  EXPECT_EQ(said["windows"], 3);
  EXPECT_EQ(said["context"], 64);
  EXPECT_EQ(said["model"]["stable_mask"]["mask_length"], 64);
  EXPECT_EQ(said["position_edges"].size(), 65u);
  ASSERT_EQ(said["layers"].size(), 1u);
  ASSERT_EQ(said["layers"][0]["heads"].size(), 2u);
  for (const json& head : said["layers"][0]["heads"]) {
    EXPECT_EQ(head["gamma"], 1.0);
    EXPECT_EQ(head["log_mass"].size(), 64u);
    EXPECT_TRUE(head["log_mass"][63].is_null());
    const json& ratio = head["by_position"]["mask_ratio"];
    EXPECT_EQ(ratio[63], 0.0);
    EXPECT_GT(ratio[0], ratio[32]);
    EXPECT_NEAR(head["mask_ratio"], sum(ratio) / 64, 1e-3 * head["mask_ratio"].get<double>());
    EXPECT_GT(head["heaviest_token"], head["first_token"]);
  }
  ASSERT_EQ(said["hidden"].size(), 3u);
  EXPECT_EQ(said["hidden"][0]["point"], "input");
  EXPECT_EQ(said["hidden"][1]["layer"], 0);
  EXPECT_EQ(said["hidden"][2]["point"], "output");
  EXPECT_EQ(said["hidden"][1]["norm_by_position"].size(), 64u);
  const std::string document = read_file(STABLEMASK_SOURCE_DIR "/docs/formats.md");
  expect_documented(said, document);
  expect_documented(parsed(path("seen/deep/maps.json")), document);
}

TEST_F(InspectCommandTest, MapsShowAText) {
  succeed(std::string(kInspect) + "--out seen/text --windows 1 --text 'The river of the north'");
  const json maps = parsed(path("seen/text/maps.json"));
  const size_t length = maps["tokens"].size();
  std::string text;
  for (const json& piece : maps["texts"]) text += piece.get<std::string>();
  EXPECT_EQ(text, "\nThe river of the north");
  ASSERT_EQ(maps["layers"].size(), 1u);
  ASSERT_EQ(maps["layers"][0].size(), 2u);
  for (const json& map : maps["layers"][0]) {
    ASSERT_EQ(map["weights"].size(), length);
    for (size_t i = 0; i < length; ++i) {
      EXPECT_EQ(map["weights"][i].size(), length);
      // Each number is rounded to four decimals.
      const double row = sum(map["weights"][i]) + map["rest"][i].get<double>();
      EXPECT_NEAR(row, 1.0, 0.5e-4 * static_cast<double>(length + 1));
      EXPECT_GT(map["weights"][0][1], 0) << "a pseudo slot";
    }
  }
  succeed(std::string(kInspect) + "--out seen/start --windows 1 --map-tokens 9");
  EXPECT_EQ(parsed(path("seen/start/maps.json"))["tokens"].size(), 9u);
}

TEST_F(InspectCommandTest, LongWindowsHaveBinsOfPositions) {
  succeed(std::string(kInspect) + "--out seen/long --windows 2 --window 256");
  const json said = parsed(path("seen/long/inspect.json"));
  const std::vector<int64_t> edges = said["position_edges"];
  EXPECT_TRUE(std::is_sorted(edges.begin(), edges.end(), std::less_equal<>()));
  EXPECT_EQ(edges.front(), 0);
  EXPECT_EQ(edges.back(), 256);
  EXPECT_LE(edges.size(), 115u);
  // One position each at the start and up to N = 64.
  for (const int64_t single : {1, 2, 7, 8, 57, 63, 64}) {
    EXPECT_TRUE(std::binary_search(edges.begin(), edges.end(), single)) << single;
  }
  const json& head = said["layers"][0]["heads"][0];
  double weighted = 0;
  for (size_t b = 0; b + 1 < edges.size(); ++b) {
    const double value = head["by_position"]["entropy"][b];
    weighted += value * static_cast<double>(edges[b + 1] - edges[b]) / 256;
  }
  EXPECT_NEAR(head["entropy"], weighted, 1e-3 * weighted);
  EXPECT_EQ(head["log_mass"].size(), edges.size() - 1);
}

TEST_F(InspectCommandTest, WithoutStableMaskNothingIsThrownAway) {
  succeed(std::string(kInspect) + "--out seen/causal --set model.stable_mask=false");
  const json said = parsed(path("seen/causal/inspect.json"));
  const json& head = said["layers"][0]["heads"][1];
  EXPECT_EQ(head["mask_ratio"], 0);
  EXPECT_EQ(sum(head["by_position"]["mask_ratio"]), 0);
  for (const char* field : {"gamma", "p_base", "log_mass"}) EXPECT_TRUE(head[field].is_null());
  EXPECT_EQ(said["model"]["stable_mask"]["enabled"], false);
}

TEST_F(InspectCommandTest, ReplacesItsOwnFilesAndNoOthers) {
  const std::string command = std::string(kInspect) + "--windows 1 --out seen/again";
  std::filesystem::create_directories(path("seen/again"));
  write_file(path("seen/again/notes.txt"), "mine");
  write_file(path("seen/again/maps.json"), "old");
  succeed(command + " --window 16");
  succeed(command + " --window 8");
  EXPECT_EQ(files_in(path("seen/again")),
            (std::vector<std::string>{"inspect.json", "maps.json", "notes.txt"}));
  EXPECT_EQ(read_file(path("seen/again/notes.txt")), "mine");
  EXPECT_EQ(parsed(path("seen/again/inspect.json"))["window"], 8);
  // A failure leaves the files as they were.
  const std::string before = read_file(path("seen/again/maps.json"));
  expect_refusal(run(command + " --window 100000"), 3, "--data valid.shard: ");
  expect_refusal(run(command + " --text $'x\\xff'"), 2, "--text \"x\uFFFD\": byte 2 (0xFF)");
  EXPECT_EQ(files_in(path("seen/again")),
            (std::vector<std::string>{"inspect.json", "maps.json", "notes.txt"}));
  EXPECT_EQ(read_file(path("seen/again/maps.json")), before);
}

TEST_F(InspectCommandTest, ErrorsNameTheOption) {
  const std::string inspect = kInspect;
  expect_refusal(run(inspect), 2, "--out is required");
  write_file(path("a-file"), "");
  expect_refusal(run(inspect + "--out a-file"), 2, "--out a-file: cannot be created: ");
  expect_refusal(run(inspect + "--out /proc/none"), 2, "--out /proc/none: cannot be created: ");
  expect_refusal(run(inspect + "--out seen/bad --windows 0"), 2, "--windows");
  expect_refusal(run(inspect + "--out seen/bad --map-tokens 129"), 2, "--map-tokens");
  expect_refusal(run(inspect + "--out seen/bad --dtype bf16"), 2, "--dtype");
  expect_refusal(run(inspect + "--out seen/bad --set model.heads=4"), 2, "--set model.heads");
  expect_refusal(run("inspect --checkpoint none --data valid.shard --out seen/bad"), 4, "none");
  expect_refusal(run("inspect --checkpoint run --data none --out seen/bad"), 3, "none");
}

}  // namespace
}  // namespace stablemask
