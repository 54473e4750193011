#include "src/commands/score_lines.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

namespace stablemask::commands {
namespace {

constexpr const char *kContext = "context", *kContinuation = "continuation";
constexpr const char *kIds = "ids", *kContextIds = "context_ids",
                     *kContinuationIds = "continuation_ids";

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/// "it has: a, b" for messages.
std::string fields_of(std::string_view json) {
  const JsonRecord record = read_json_record(json, "");
  std::vector<std::string> names;
  for (const std::string& name : record.keys) names.push_back(in_quotes(name));
  if (names.empty()) return "it is an empty object";
  if (names.size() < record.members) names.emplace_back("…");
  return "it has: " + join(names, ", ");
}

/// The member `name` of an object; null: there is none.
const JsonValue* member_of(const JsonValue& object, std::string_view name) {
  const auto found = std::ranges::find(object.members, name, &JsonMember::key);
  return found == object.members.end() ? nullptr : &found->value;
}

/// Returns "" or what is wrong.
std::string read_ids(const JsonValue& list, std::vector<int32_t>& ids) {
  if (list.kind != JsonValue::Kind::kArray) return "is not a list of token ids";
  for (const JsonValue& id : list.items) {
    if (id.kind != JsonValue::Kind::kInteger || id.integer < 0 ||
        id.integer > std::numeric_limits<int32_t>::max()) {
      return "is not a list of token ids: it has " + describe(id);
    }
    ids.push_back(static_cast<int32_t>(id.integer));
  }
  return "";
}

}  // namespace

ScoreLines::ScoreLines(const std::string& path, std::string field)
    : reader_(path), field_(std::move(field)) {}

void ScoreLines::fail(uint64_t number, const std::string& what) const {
  throw DataError(format("%s: line %llu: %s", reader_.name().c_str(),
                         static_cast<unsigned long long>(number), what.c_str()));
}

void ScoreLines::require_some() const {
  if (!some_) throw DataError(reader_.name() + ": has no line to score");
}

std::optional<std::string> ScoreLines::string_field(std::string_view json,
                                                    const std::string& name) const {
  JsonRecord record;
  try {
    record = read_json_record(json, name);
  } catch (const JsonSyntaxError& error) {
    reader_.fail(format("not valid JSON at column %lld: %s",
                        static_cast<long long>(error.at().column), error.what()));
  }
  if (record.kind != JsonValue::Kind::kObject) {
    reader_.fail(
        "is not a JSON object; write one object a line, for example with jq -c '.[]' for "
        "an array");
  }
  if (!record.field) return std::nullopt;
  if (record.field->kind != JsonValue::Kind::kString) {
    reader_.fail("the field " + in_quotes(name) + " is not a string");
  }
  return std::move(record.field->text);
}

void ScoreLines::take(std::string_view json, ScoreLine& line) const {
  std::optional<std::string> text = string_field(json, field_);
  std::optional<std::string> context = string_field(json, kContext);
  std::optional<std::string> continuation = string_field(json, kContinuation);
  if (field_ == kContext) context.reset();
  if (field_ == kContinuation) continuation.reset();
  if (text && (context || continuation)) {
    reader_.fail("has the field " + in_quotes(field_) + " beside " +
                 (context ? kContext : kContinuation) +
                 "; a line is a text or a pair, leave one of them out");
  }
  if (!text && !context && !continuation) {
    if (take_ids(json, line)) return;
    reader_.fail("has neither the field " + in_quotes(field_) +
                 " nor the fields \"context\" and \"continuation\", nor \"ids\" for token ids; " +
                 fields_of(json) + "; choose the one with the text with --field");
  }
  if (!text && !context) fail_half(json, kContinuation, kContext);
  if (!text && !continuation) fail_half(json, kContext, kContinuation);
  line.context = std::move(context);
  line.text = text ? std::move(*text) : std::move(*continuation);
  if (line.text.empty()) {
    reader_.fail("the field " + in_quotes(text ? field_ : kContinuation) +
                 " is empty: nothing to score");
  }
}

void ScoreLines::fail_half(std::string_view json, const char* present, const char* absent) const {
  reader_.fail(format("has no field \"%s\", which a pair needs beside \"%s\"; ", absent, present) +
               fields_of(json));
}

/// False when the line, an object, has no ids.
bool ScoreLines::take_ids(std::string_view json, ScoreLine& line) const {
  const JsonValue object = parse_json(json);
  const JsonValue* whole = member_of(object, kIds);
  const JsonValue* context = member_of(object, kContextIds);
  const JsonValue* continuation = member_of(object, kContinuationIds);
  if (whole == nullptr && context == nullptr && continuation == nullptr) return false;
  if (whole != nullptr && (context != nullptr || continuation != nullptr)) {
    reader_.fail(format("has the field \"%s\" beside %s; leave one of them out", kIds,
                        context != nullptr ? kContextIds : kContinuationIds));
  }
  if (whole == nullptr && context == nullptr) fail_half(json, kContinuationIds, kContextIds);
  if (whole == nullptr && continuation == nullptr) fail_half(json, kContextIds, kContinuationIds);
  const auto read = [&](const JsonValue& list, const char* name) {
    const std::string problem = read_ids(list, line.ids);
    if (!problem.empty()) reader_.fail(format("the field \"%s\" ", name) + problem);
  };
  if (context != nullptr) {
    read(*context, kContextIds);
    line.context_ids = static_cast<int64_t>(line.ids.size());
  }
  const char* scored = whole != nullptr ? kIds : kContinuationIds;
  read(whole != nullptr ? *whole : *continuation, scored);
  if (static_cast<int64_t>(line.ids.size()) == line.context_ids.value_or(0)) {
    reader_.fail(format("the field \"%s\" is empty: nothing to score", scored));
  }
  return true;
}

bool ScoreLines::next(ScoreLine& line) {
  std::string_view json;
  bool terminated = false;
  while (reader_.next(json, terminated)) {
    bytes_ += static_cast<int64_t>(json.size()) + (terminated ? 1 : 0);
    constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
    if (json.starts_with(kByteOrderMark)) json.remove_prefix(kByteOrderMark.size());
    if (std::ranges::all_of(json, is_space)) continue;
    if (const std::string problem = utf8_problem(json); !problem.empty()) reader_.fail(problem);
    line = {};
    line.number = reader_.number();
    take(json, line);
    some_ = true;
    return true;
  }
  return false;
}

WordCounts word_counts(std::string_view text) {
  WordCounts counts;
  bool in_word = false;
  for (const char c : text) {
    counts.lines += c == '\n';
    const bool space = is_space(c);
    counts.words += !space && !in_word;
    in_word = !space;
  }
  counts.pieces = counts.words;
  if (!text.empty()) counts.pieces += is_space(text.front()) + is_space(text.back());
  return counts;
}

}  // namespace stablemask::commands
