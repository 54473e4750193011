#include "src/config/config_values.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "src/config/rope_scaling.h"
#include "stablemask/base/log.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;
using Kind = JsonValue::Kind;

FieldRef reference(const Field& field) {
  static Config any;  // only the type of the member is used
  return field.in(any);
}

std::vector<std::string> strings(std::span<const std::string_view> names) {
  return {names.begin(), names.end()};
}

bool contains(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string list_of(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "\"" : ", \"") + name + "\"";
  return text;
}

bool inside(const Range& range, double x) {
  if (range.or_zero && x == 0) return true;
  return (range.above_low ? x > range.low : x >= range.low) &&
         (range.below_high ? x < range.high : x <= range.high);
}

/// As inside, for an integer that a double might round to a bound. The bounds of integer fields are
/// integers of at most 2^53.
bool inside_exactly(const Range& range, int64_t x) {
  if (!inside(range, static_cast<double>(x))) return false;
  return !std::isfinite(range.high) || x <= static_cast<int64_t>(range.high);
}

std::string number_text(double x) {
  const bool integer = x == std::floor(x) && std::abs(x) < 1e18;
  return integer ? std::to_string(static_cast<int64_t>(x)) : format("%.15g", x);
}

/// " from 1 to 1024", " > 0 and < 1", "".
std::string interval_text(const Range& range) {
  const bool low = std::isfinite(range.low), high = std::isfinite(range.high);
  if (low && high && !range.above_low && !range.below_high) {
    return " from " + number_text(range.low) + " to " + number_text(range.high);
  }
  std::string text;
  if (low) text += (range.above_low ? " > " : " ≥ ") + number_text(range.low);
  if (low && high) text += " and";
  if (high) text += (range.below_high ? " < " : " ≤ ") + number_text(range.high);
  return text;
}

/// "a number from 1 to 2", "0 or a number from 1 to 2".
std::string number_range_text(const Range& range) {
  return (range.or_zero ? "0 or a number" : "a number") + interval_text(range);
}

std::string per_head_text(const Range& range) {
  return number_range_text(range) + " or a list of such numbers, one per head";
}

struct Expectation {
  const Field& field;

  std::string operator()(bool*) const { return "true or false"; }
  std::string operator()(int64_t*) const { return "an integer" + interval_text(field.range); }
  std::string operator()(double*) const { return number_range_text(field.range); }
  std::string operator()(std::string*) const {
    if (field.choices.empty()) return "text in double quotes";
    return "one of " + list_of(strings(field.choices));
  }
  std::string operator()(std::vector<std::string>*) const {
    if (!field.choices.empty()) return "a list of some of " + list_of(strings(field.choices));
    return "a list of texts, none of them empty";
  }
  std::string operator()(std::vector<TrainShard>*) const {
    return "a list of paths, or of objects {\"path\": \"…\", \"weight\": a number > 0}";
  }
  std::string operator()(PerHead*) const { return per_head_text(field.range); }
  std::string operator()(GammaSpec*) const {
    return "\"auto\", \"slopes\", " + per_head_text(field.range);
  }
  std::string operator()(MaskLengthSpec*) const {
    return "\"context\", \"infinite\", \"sequence\" or an integer" + interval_text(field.range);
  }
  std::string operator()(RopeScaling*) const {
    return number_range_text(field.range) + " or an object " + rope_scaling_forms();
  }
  template <class Enum>
  std::string operator()(Enum*) const {
    return "one of " + list_of(strings(names_of(Enum())));
  }
};

/// Each overload reads `value` into *out and returns "", or an error message.
struct ReadValue {
  const Field& field;
  const JsonValue& value;

  std::string wrong(const JsonValue& what) const {
    return "expected " + expectation(field) + ", found " + describe(what);
  }
  std::string unknown_word(const std::vector<std::string>& words) const {
    return wrong(value) + did_you_mean(value.text, words);
  }

  std::string operator()(bool* out) const {
    if (value.kind != Kind::kBool) return wrong(value);
    *out = value.boolean;
    return "";
  }
  std::string operator()(int64_t* out) const {
    if (value.kind != Kind::kInteger) return wrong(value);
    if (!inside_exactly(field.range, value.integer)) return wrong(value);
    *out = value.integer;
    return "";
  }
  std::string operator()(double* out) const {
    if (!value.is_number() || !inside(field.range, value.number)) return wrong(value);
    *out = value.number;
    return "";
  }
  std::string operator()(std::string* out) const {
    if (const std::string problem = check_text(value); !problem.empty()) return problem;
    if (!field.choices.empty() && !contains(field.choices, value.text)) {
      return unknown_word(strings(field.choices));
    }
    *out = value.text;
    return "";
  }
  std::string operator()(std::vector<std::string>* out) const {
    if (value.kind != Kind::kArray) return wrong(value);
    std::vector<std::string> texts;
    for (const JsonValue& item : value.items) {
      if (const std::string problem = check_text(item); !problem.empty()) return problem;
      if (!field.choices.empty() && !contains(field.choices, item.text)) {
        return wrong(item) + did_you_mean(item.text, strings(field.choices));
      }
      if (item.text.empty()) return wrong(item);
      texts.push_back(item.text);
    }
    *out = std::move(texts);
    return "";
  }
  std::string operator()(std::vector<TrainShard>* out) const {
    if (value.kind != Kind::kArray) return wrong(value);
    std::vector<TrainShard> shards;
    size_t weighted = 0;
    for (const JsonValue& item : value.items) {
      TrainShard shard("");
      const std::string problem = read_shard(item, shard);
      if (!problem.empty()) return problem;
      weighted += shard.weight > 0;
      shards.push_back(std::move(shard));
    }
    if (weighted != 0 && weighted != shards.size()) {
      return "some entries have a weight and some have none; give all of them one, or none";
    }
    *out = std::move(shards);
    return "";
  }
  std::string operator()(PerHead* out) const {
    const std::vector<JsonValue> single{value};
    const std::vector<JsonValue>& items = value.kind == Kind::kArray ? value.items : single;
    PerHead result;
    for (const JsonValue& item : items) {
      if (!item.is_number() || !inside(field.range, item.number)) return wrong(item);
      result.values.push_back(item.number);
    }
    if (items.empty()) return wrong(value);
    *out = std::move(result);
    return "";
  }
  std::string operator()(GammaSpec* out) const {
    if (value.kind == Kind::kString) {
      if (value.text != "auto" && value.text != "slopes") return unknown_word({"auto", "slopes"});
      *out = {value.text == "auto" ? GammaSpec::Kind::kAuto : GammaSpec::Kind::kSlopes, {}};
      return "";
    }
    GammaSpec result;
    result.kind = GammaSpec::Kind::kValue;
    std::string problem = (*this)(&result.value);
    if (problem.empty()) *out = std::move(result);
    return problem;
  }
  std::string operator()(MaskLengthSpec* out) const {
    if (value.kind != Kind::kString) {
      int64_t length = 0;
      std::string problem = (*this)(&length);
      if (problem.empty()) *out = {MaskLengthSpec::Kind::kFixed, length};
      return problem;
    }
    if (value.text == "context") {
      *out = {MaskLengthSpec::Kind::kContext, 0};
    } else if (value.text == "infinite") {
      *out = {MaskLengthSpec::Kind::kInfinite, 0};
    } else if (value.text == "sequence") {
      *out = {MaskLengthSpec::Kind::kSequence, 0};
    } else {
      return unknown_word({"context", "infinite", "sequence"});
    }
    return "";
  }
  std::string operator()(RopeScaling* out) const {
    RopeScaling scaling;
    std::string problem =
        value.kind == Kind::kObject ? read_rope_scaling(value, &scaling) : (*this)(&scaling.factor);
    if (problem.empty()) *out = scaling;
    return problem;
  }
  template <class Enum>
  std::string operator()(Enum* out) const {
    if (value.kind != Kind::kString) return wrong(value);
    const auto names = names_of(Enum());
    const auto found = std::find(names.begin(), names.end(), value.text);
    if (found == names.end()) return unknown_word(strings(names));
    *out = static_cast<Enum>(found - names.begin());
    return "";
  }

 private:
  /// A path, or an object with a path and perhaps a weight.
  std::string read_shard(const JsonValue& item, TrainShard& shard) const {
    const JsonValue* path = item.kind == Kind::kObject ? nullptr : &item;
    for (const JsonMember& member : item.members) {
      if (member.key == "path") {
        path = &member.value;
      } else if (member.key == "weight") {
        const JsonValue& weight = member.value;
        if (!weight.is_number() || !inside(field.range, weight.number)) {
          return "expected a weight > 0 and ≤ " + number_text(field.range.high) + ", found " +
                 describe(weight);
        }
        shard.weight = weight.number;
      } else {
        return "unknown key " + in_quotes(member.key) + " of an entry" +
               did_you_mean(member.key, {"path", "weight"});
      }
    }
    if (path == nullptr) return "an entry without \"path\", the shard's file";
    if (const std::string problem = check_text(*path); !problem.empty()) return problem;
    if (path->text.empty()) return wrong(*path);
    shard.path = path->text;
    return "";
  }
  std::string check_text(const JsonValue& item) const {
    if (item.kind != Kind::kString) return wrong(item);
    const bool control = std::any_of(item.text.begin(), item.text.end(), [&](unsigned char c) {
      return (c < 0x20 && !(c == '\n' && field.line_ends)) || c == 0x7F;
    });
    return control ? "control character in " + describe(item) : "";
  }
};

struct WriteValue {
  Json operator()(const GammaSpec* gamma) const {
    if (gamma->kind == GammaSpec::Kind::kValue) return (*this)(&gamma->value);
    return gamma->kind == GammaSpec::Kind::kSlopes ? "slopes" : "auto";
  }
  Json operator()(const PerHead* numbers) const {
    return numbers->values.size() == 1 ? Json(numbers->values[0]) : Json(numbers->values);
  }
  Json operator()(const MaskLengthSpec* length) const {
    switch (length->kind) {
      case MaskLengthSpec::Kind::kContext:
        return "context";
      case MaskLengthSpec::Kind::kInfinite:
        return "infinite";
      case MaskLengthSpec::Kind::kSequence:
        return "sequence";
      case MaskLengthSpec::Kind::kFixed:
        break;
    }
    return length->length;
  }
  Json operator()(const std::vector<TrainShard>* shards) const {
    Json list = Json::array();
    for (const TrainShard& shard : *shards) {
      if (shard.weight > 0) {
        list.push_back({{"path", shard.path}, {"weight", shard.weight}});
      } else {
        list.push_back(shard.path);
      }
    }
    return list;
  }
  Json operator()(const RopeScaling* scaling) const { return rope_scaling_json(*scaling); }
  template <class T>
  Json operator()(const T* value) const {
    if constexpr (std::is_enum_v<T>) {
      return names_of(T())[static_cast<size_t>(*value)];
    } else {
      return *value;
    }
  }
};

struct WriteSchema {
  const Field& field;

  Json number(const char* type) const {
    const auto& [low, high, above_low, below_high, or_zero] = field.range;
    Json schema{{"type", type}};
    const auto bound = [&](const char* key, double x) {
      if (!std::isfinite(x)) return;
      if (x == std::floor(x) && std::abs(x) < 1e18) {
        schema[key] = static_cast<int64_t>(x);
      } else {
        schema[key] = x;
      }
    };
    bound(above_low ? "exclusiveMinimum" : "minimum", low);
    bound(below_high ? "exclusiveMaximum" : "maximum", high);
    if (or_zero) schema = {{"anyOf", Json::array({{{"const", 0}}, std::move(schema)})}};
    return schema;
  }

  Json operator()(bool*) const { return {{"type", "boolean"}}; }
  Json operator()(int64_t*) const { return number("integer"); }
  Json operator()(double*) const { return number("number"); }
  Json operator()(std::string*) const {
    if (field.choices.empty()) return {{"type", "string"}};
    return {{"enum", strings(field.choices)}};
  }
  Json operator()(std::vector<std::string>*) const {
    if (!field.choices.empty()) {
      return {{"type", "array"}, {"items", {{"enum", strings(field.choices)}}}};
    }
    return {{"type", "array"}, {"items", {{"type", "string"}, {"minLength", 1}}}};
  }
  Json operator()(std::vector<TrainShard>*) const {
    const Json path{{"type", "string"}, {"minLength", 1}};
    const Json object{{"type", "object"},
                      {"properties", {{"path", path}, {"weight", number("number")}}},
                      {"required", {"path"}},
                      {"additionalProperties", false}};
    return {{"type", "array"}, {"items", {{"anyOf", Json::array({path, object})}}}};
  }
  Json per_head() const {
    return {number("number"), {{"type", "array"}, {"items", number("number")}, {"minItems", 1}}};
  }
  Json operator()(PerHead*) const { return {{"anyOf", per_head()}}; }
  Json operator()(GammaSpec*) const {
    Json forms = per_head();
    forms.insert(forms.begin(), Json{{"enum", {"auto", "slopes"}}});
    return {{"anyOf", forms}};
  }
  Json operator()(MaskLengthSpec*) const {
    const Json words{{"enum", {"context", "infinite", "sequence"}}};
    return {{"anyOf", Json::array({words, number("integer")})}};
  }
  Json operator()(RopeScaling*) const {
    return {{"anyOf", Json::array({number("number"), rope_scaling_schema()})}};
  }
  template <class Enum>
  Json operator()(Enum*) const {
    return {{"enum", strings(names_of(Enum()))}};
  }
};

JsonValue text_value(std::string_view text) {
  JsonValue value;
  value.kind = Kind::kString;
  value.text = text;
  return value;
}

/// nullopt: not JSON.
std::optional<JsonValue> try_json(std::string_view text) {
  try {
    return parse_json(text);
  } catch (const JsonSyntaxError&) {
    return std::nullopt;
  }
}

}  // namespace

std::string read_value(const Field& field, const JsonValue& value, Config& config) {
  return std::visit(ReadValue{field, value}, field.in(config));
}

std::string read_value(const Field& field, std::string_view text, Config& config) {
  const FieldRef ref = field.in(config);
  const bool is_text = std::holds_alternative<std::string*>(ref);
  const bool is_list = std::holds_alternative<std::vector<std::string>*>(ref) ||
                       std::holds_alternative<std::vector<TrainShard>*>(ref);
  // For text fields, JSON such as 2024 is taken as the text itself.
  const bool quoted_json = text.starts_with('"') || (is_list && text.starts_with('['));
  std::optional<JsonValue> value;
  if (quoted_json || !(is_text || is_list)) value = try_json(text);
  if (!value) value = text_value(text);
  if (is_list && value->kind == Kind::kString) {
    JsonValue list;
    list.kind = Kind::kArray;
    list.items.push_back(*std::move(value));
    value = std::move(list);
  }
  return read_value(field, *value, config);
}

Json value_json(const Field& field, const Config& config) {
  Config copy = config;
  return std::visit([](const auto* value) { return WriteValue()(value); }, field.in(copy));
}

std::string expectation(const Field& field) {
  return std::visit(Expectation{field}, reference(field));
}

Json value_schema(const Field& field) { return std::visit(WriteSchema{field}, reference(field)); }

}  // namespace stablemask
