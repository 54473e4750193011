#include "src/commands/inspect_json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <set>

#include "stablemask/base/json_text.h"
#include "stablemask/config/config.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kFormatVersion = 1;

/// Four significant digits; null when it is not finite.
Json number(double value) {
  if (!std::isfinite(value)) return nullptr;
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return std::strtod(text, nullptr);
}

Json number(const std::optional<double>& value) { return value ? number(*value) : Json(nullptr); }

Json numbers(const std::vector<double>& values) {
  Json json = Json::array();
  for (const double value : values) json.push_back(number(value));
  return json;
}

Json head_json(const HeadStatistics& head, const std::vector<int64_t>& edges) {
  Json json = {
      {"gamma", number(head.gamma)}, {"p_base", number(head.p_base)}, {"log_mass", nullptr}};
  if (!head.log_mass.empty()) {
    json["log_mass"] = Json::array();
    for (size_t b = 0; b + 1 < edges.size(); ++b) {
      json["log_mass"].push_back(number(head.log_mass[edges[b]]));
    }
  }
  Json by_position;
  const auto add = [&](const char* name, const std::vector<double>& values) {
    json[name] = number(mean(values));
    by_position[name] = numbers(bin_means(values, edges));
  };
  add("mask_ratio", head.mask_ratio);
  add("entropy", head.entropy);
  add("first_token", head.first_token);
  add("heaviest_token", head.heaviest_token);
  json["by_position"] = std::move(by_position);
  return json;
}

Json hidden_json(const Inspection& inspection, size_t point, const std::vector<int64_t>& edges) {
  const HiddenStatistics& hidden = inspection.hidden[point];
  Json json;
  if (point == 0) {
    json["point"] = "input";
  } else if (point > inspection.heads.size()) {
    json["point"] = "output";
  } else {
    json["point"] = "block";
    json["layer"] = point - 1;
  }
  json["norm"] = number(mean(hidden.norm));
  json["norm_max"] = number(hidden.norm_max);
  json["norm_max_position"] = hidden.norm_max_position;
  json["norm_by_position"] = numbers(bin_means(hidden.norm, edges));
  json["channel_share"] = number(hidden.channel_share);
  json["channel_share_max"] = number(hidden.channel_share_max);
  json["top_channel"] = hidden.top_channel;
  json["top_channel_share"] = number(hidden.top_channel_share);
  return json;
}

/// The window's position up to which rows have the slots of a fixed N.
int64_t mask_end(const ModelConfig& model, int64_t window) {
  const MaskLengthSpec& length = model.stable_mask.mask_length;
  const bool fixed = model.stable_mask.enabled && length.kind == MaskLengthSpec::Kind::kFixed;
  return fixed ? std::min(length.length, window) : window;
}

/// A weight with four decimals, as short as JSON allows.
Json weight(float value) {
  const double rounded = std::round(static_cast<double>(value) * 1e4) / 1e4;
  if (rounded == 0.0) return 0;
  return rounded;
}

}  // namespace

std::vector<int64_t> position_edges(int64_t window, int64_t end) {
  constexpr int64_t kSingles = 8, kEqualBins = 96, kEachPosition = 128;
  std::set<int64_t> edges = {0, window};
  if (window <= kEachPosition) {
    for (int64_t i = 1; i < window; ++i) edges.insert(i);
  } else {
    for (int64_t k = 1; k < kEqualBins; ++k) edges.insert(window * k / kEqualBins);
    for (int64_t i = 1; i <= kSingles; ++i) edges.insert(i);
    for (int64_t i = std::max<int64_t>(0, end - kSingles); i <= end; ++i) edges.insert(i);
  }
  return {edges.begin(), edges.end()};
}

std::vector<double> bin_means(const std::vector<double>& values,
                              const std::vector<int64_t>& edges) {
  std::vector<double> means;
  for (size_t b = 0; b + 1 < edges.size(); ++b) {
    means.push_back(mean({values.begin() + edges[b], values.begin() + edges[b + 1]}));
  }
  return means;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::string inspection_json(const Inspection& inspection, const LoadedModel& loaded,
                            const std::string& data) {
  const std::vector<int64_t> edges =
      position_edges(inspection.window, mask_end(loaded.config.model, inspection.window));
  Json json = {{"version", kFormatVersion},
               {"checkpoint", loaded.folder},
               {"step", loaded.step},
               {"data", data},
               {"tokenizer_sha256", loaded.tokenizer.sha256()},
               {"model", Json::parse(dump_config(loaded.config))["model"]},
               {"context", loaded.config.train.context},
               {"window", inspection.window},
               {"windows", inspection.windows},
               {"position_edges", edges},
               {"layers", Json::array()},
               {"hidden", Json::array()},
               {"maps", "maps.json"}};
  for (const std::vector<HeadStatistics>& layer : inspection.heads) {
    Json heads = Json::array();
    for (const HeadStatistics& head : layer) heads.push_back(head_json(head, edges));
    json["layers"].push_back({{"heads", std::move(heads)}});
  }
  for (size_t point = 0; point < inspection.hidden.size(); ++point) {
    json["hidden"].push_back(hidden_json(inspection, point, edges));
  }
  return json_text(json) + "\n";
}

std::string maps_json_head(const std::vector<int64_t>& tokens, const Tokenizer& tokenizer) {
  Json texts = Json::array();
  for (const int64_t id : tokens) {
    // A model's vocabulary may be padded beyond the tokenizer's.
    const bool known = id < tokenizer.vocab_size();
    texts.push_back(known ? tokenizer.decode({static_cast<int32_t>(id)}) : "");
  }
  return "{\"version\":" + std::to_string(kFormatVersion) +
         ",\n\"tokens\":" + json_text(Json(tokens)) + ",\n\"texts\":" + json_text(texts) +
         ",\n\"layers\":[";
}

std::string map_json(const AttentionMap& map) {
  const int64_t length = map.rest.size(0);
  const at::Tensor weights = map.weights.contiguous(), rest = map.rest.contiguous();
  Json rows = Json::array(), rests = Json::array();
  for (int64_t i = 0; i < length; ++i) {
    Json row = Json::array();
    for (int64_t j = 0; j < length; ++j) {
      row.push_back(weight(weights.const_data_ptr<float>()[i * length + j]));
    }
    rows.push_back(std::move(row));
    rests.push_back(weight(rest.const_data_ptr<float>()[i]));
  }
  const std::string layer_start = map.layer == 0 ? "\n[" : "],\n[";
  return (map.head == 0 ? layer_start : ",\n") +
         json_text(Json({{"weights", std::move(rows)}, {"rest", std::move(rests)}}));
}

std::string maps_json_tail() { return "]\n]}\n"; }

}  // namespace stablemask::commands
