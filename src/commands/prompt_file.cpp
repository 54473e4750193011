#include "src/commands/prompt_file.h"

#include <algorithm>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

#include "src/commands/config_section.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/text.h"
#include "stablemask/data/line_reader.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

/// Turns lines into prompts.
class Parser {
 public:
  explicit Parser(const TextSettings& settings) : settings_(settings) {
    Config config;
    config.generate = settings.draw;
    const Json fields = Json::parse(dump_config(config))["generate"];
    for (const auto& [name, value] : fields.items()) {
      drawing_.push_back(name);
      stated_.push_back("generate." + name + "=" + json_text(value));
    }
    known_ = drawing_;
    known_.insert(known_.end(), {"prompt", "prompt_ids", "id", "stop"});
  }

  /// Returns "" or what is wrong with the line.
  std::string parse(std::string_view text, PromptLine& line) const {
    JsonValue value;
    try {
      value = parse_json(text);
    } catch (const JsonSyntaxError& error) {
      return format("column %lld: not valid JSON: ", static_cast<long long>(error.at().column)) +
             error.what();
    }
    if (value.kind != JsonValue::Kind::kObject) {
      return "must be an object such as {\"prompt\": \"The river\"}, not " + describe(value);
    }
    line.settings = settings_;
    std::vector<std::string> fields;
    std::set<std::string_view> seen;
    for (const JsonMember& member : value.members) {
      std::string problem;
      if (!seen.insert(member.key).second) problem = "is stated twice";
      if (problem.empty()) problem = take(member, line, fields);
      if (!problem.empty()) return "field " + in_quotes(member.key) + " " + problem;
    }
    if (!seen.contains("prompt") && line.ids.empty()) {
      return "has no field \"prompt\", the text to continue";
    }
    if (seen.contains("prompt") && !line.ids.empty()) {
      return "has both \"prompt\" and \"prompt_ids\"; leave one of them out";
    }
    if (!fields.empty()) apply(std::move(fields), line.settings.draw);
    return "";
  }

 private:
  std::string take(const JsonMember& member, PromptLine& line,
                   std::vector<std::string>& fields) const {
    const JsonValue& value = member.value;
    if (member.key == "prompt") {
      if (value.kind != JsonValue::Kind::kString) return "must be a text, not " + describe(value);
      line.prompt = value.text;
      return "";
    }
    if (member.key == "prompt_ids") return take_ids(value, line.ids);
    if (member.key == "id") {
      if (value.kind == JsonValue::Kind::kString) {
        line.id = value.text;
      } else if (value.is_number()) {
        line.id = nlohmann::json::parse(value.text);
      } else {
        return "must be a text or a number, not " + describe(value);
      }
      return "";
    }
    if (member.key == "stop") return take_stops(value, line.settings.stops);
    if (std::ranges::find(drawing_, member.key) == drawing_.end()) {
      return "is not known" + did_you_mean(member.key, known_) + "; known are " +
             join(known_, ", ");
    }
    if (!value.is_number()) return "must be a number, not " + describe(value);
    std::string number = value.text;
    const std::string problem = value_of_field("generate." + member.key)(number);
    if (problem.empty()) fields.push_back("generate." + member.key + "=" + value.text);
    return problem;
  }

  static std::string take_ids(const JsonValue& value, std::vector<int32_t>& ids) {
    for (const JsonValue& id : value.items) {
      const bool fits = id.kind == JsonValue::Kind::kInteger && id.integer >= 0 &&
                        id.integer <= std::numeric_limits<int32_t>::max();
      if (!fits) return "must be a list of token ids, not of " + describe(id);
      ids.push_back(static_cast<int32_t>(id.integer));
    }
    return ids.empty() ? "must be a list of at least one token id" : "";
  }

  static std::string take_stops(const JsonValue& value, std::vector<std::string>& stops) {
    stops.clear();
    const bool list = value.kind == JsonValue::Kind::kArray;
    for (const JsonValue& stop : list ? value.items : std::vector<JsonValue>{value}) {
      if (stop.kind != JsonValue::Kind::kString || stop.text.empty()) {
        return "must be a text or a list of texts that are not empty, not " + describe(stop);
      }
      stops.push_back(stop.text);
    }
    return "";
  }

  void apply(std::vector<std::string> fields, GenerateConfig& draw) const {
    fields.insert(fields.begin(), stated_.begin(), stated_.end());
    draw = parse_config("{}", "prompt", fields).generate;
  }

  const TextSettings& settings_;
  std::vector<std::string> stated_;   ///< the settings as "generate.top_p=0.9"
  std::vector<std::string> drawing_;  ///< the names of these fields
  std::vector<std::string> known_;
};

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace

std::vector<PromptLine> read_prompt_file(const std::string& path, const TextSettings& settings) {
  const Parser parser(settings);
  LineReader reader(path);
  std::vector<PromptLine> lines;
  std::string_view text;
  for (bool terminated = false; reader.next(text, terminated);) {
    if (is_blank(text)) continue;
    PromptLine line;
    line.number = static_cast<int64_t>(reader.number());
    line.id = line.number;
    const std::string problem = parser.parse(text, line);
    if (!problem.empty()) reader.fail(problem);
    line.hash = sha256_hex(text.data(), text.size()).substr(0, 16);
    lines.push_back(std::move(line));
  }
  if (lines.empty()) {
    throw DataError(reader.name() +
                    ": has no prompts; write one object a line, such as {\"prompt\": \"The "
                    "river\"}");
  }
  return lines;
}

}  // namespace stablemask::commands
