#include "stablemask/base/json_source.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

#include <charconv>
#include <cmath>
#include <unordered_set>

namespace stablemask {
namespace {

constexpr int kMaxDepth = 32;
constexpr int kMaxRecordDepth = 64;
constexpr size_t kMaxKeysShown = 20;
constexpr char kEnd = '\0';  // what peek() gives after the last character

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_'; }

/// Characters with their positions, and the values that hold no others.
class Scanner {
 protected:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool at_end() const { return next_ == text_.size(); }
  char peek() const { return at_end() ? kEnd : text_[next_]; }
  std::string_view rest() const { return text_.substr(next_); }
  JsonPosition here() const { return here_; }

  char take() {
    const char c = text_[next_++];
    if (c == '\n') {
      here_ = {here_.line + 1, 1};
    } else if ((c & 0xC0) != 0x80) {  // continuation bytes belong to the character before
      ++here_.column;
    }
    return c;
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw JsonSyntaxError(here_, message);
  }
  [[noreturn]] static void fail_at(JsonPosition at, const std::string& message) {
    throw JsonSyntaxError(at, message);
  }

  /// What stands here, for "expected X, found Y".
  std::string found() const {
    if (at_end()) return "the end of the text";
    if (!is_word(peek())) {
      const size_t size = utf8_character_size(text_.substr(next_));
      if (size == 0) return "a byte that is not UTF-8";
      return in_quotes(text_.substr(next_, size));
    }
    size_t stop = next_;
    while (stop < text_.size() && is_word(text_[stop])) ++stop;
    return in_quotes(text_.substr(next_, stop - next_));
  }

  void skip_space() {
    while (!at_end() && std::string_view(" \t\r\n").find(peek()) != std::string_view::npos) take();
    if (rest().starts_with("//") || rest().starts_with("/*") || rest().starts_with("#")) {
      fail("JSON has no comments; remove it");
    }
  }

  [[noreturn]] void fail_unclosed(const char* what, JsonPosition opened) const {
    fail(std::string("the text ends inside the ") + what + " that opens at " +
         std::to_string(opened.line) + ":" + std::to_string(opened.column));
  }

  std::string string() {
    const JsonPosition opened = here();
    std::string result;
    take();
    while (true) {
      if (at_end()) fail_unclosed("string", opened);
      const auto c = static_cast<unsigned char>(peek());
      if (c == '"') {
        take();
        return result;
      }
      if (c == '\\') {
        escape(result);
      } else if (c < 0x20) {
        fail(c == '\n' ? "a string ends with its line; close it with '\"'"
                       : "control character in a string; write it as \\u00XX");
      } else {
        size_t size = utf8_character_size(text_.substr(next_));
        if (size == 0) fail("not valid UTF-8");
        for (; size > 0; --size) result += take();
      }
    }
  }

  void escape(std::string& result) {
    const JsonPosition at = here();
    take();
    static constexpr std::string_view kNames = "\"\\/bfnrt";
    static constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const size_t k = at_end() ? std::string_view::npos : kNames.find(peek());
    if (k != std::string_view::npos) {
      take();
      result += kMeanings[k];
    } else if (peek() == 'u') {
      unicode_escape(result, at);
    } else {
      fail_at(at, "unknown escape in a string; a backslash itself is written \\\\");
    }
  }

  uint32_t four_hex_digits(JsonPosition at) {
    take();
    uint32_t code = 0;
    const char* begin = text_.data() + next_;
    const char* end = begin + std::min<size_t>(4, text_.size() - next_);
    if (std::from_chars(begin, end, code, 16).ptr != begin + 4) {
      fail_at(at, "\\u needs four hexadecimal digits");
    }
    for (int k = 0; k < 4; ++k) take();
    return code;
  }

  void unicode_escape(std::string& result, JsonPosition at) {
    uint32_t code = four_hex_digits(at);
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(next_).starts_with("\\u")) {
      take();
      const uint32_t low = four_hex_digits(at);
      if (low >= 0xDC00 && low < 0xE000) code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code >= 0xD800 && code < 0xE000) fail_at(at, "half of a surrogate pair");
    if (code < 0x80) {
      result += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // continuation bytes
    result += static_cast<char>((0xFF00 >> (more + 1)) | (code >> (6 * more)));
    for (int k = more - 1; k >= 0; --k)
      result += static_cast<char>(0x80 | ((code >> (6 * k)) & 63));
  }

  void digits(const char* where) {
    if (!is_digit(peek())) fail(std::string("expected a digit ") + where + ", found " + found());
    while (is_digit(peek())) take();
  }

  void number(JsonValue& result) {
    const size_t begin = next_;
    bool integral = true;
    if (peek() == '-') take();
    if (peek() == '0') {
      take();
      if (is_digit(peek())) fail("a number may not start with 0");
    } else {
      digits("after '-'");
    }
    if (peek() == '.') {
      integral = false;
      take();
      digits("after '.'");
    }
    if ((peek() | 32) == 'e') {
      integral = false;
      take();
      if (peek() == '+' || peek() == '-') take();
      digits("in the exponent");
    }
    if (is_word(peek())) fail("unexpected " + found() + " after a number");
    result.text = text_.substr(begin, next_ - begin);
    const char* end = result.text.data() + result.text.size();
    if (std::from_chars(result.text.data(), end, result.number).ec != std::errc()) {
      // Out of range: too small rounds to 0, too large has no value.
      result.number = std::strtod(result.text.c_str(), nullptr);
      if (std::isinf(result.number)) fail_at(result.at, "the number does not fit 64 bits");
    }
    const bool fits = std::from_chars(result.text.data(), end, result.integer).ec == std::errc();
    result.kind = integral && fits ? JsonValue::Kind::kInteger : JsonValue::Kind::kNumber;
  }

  void literal(JsonValue& result) {
    static constexpr std::string_view kTrue = "true", kFalse = "false", kNull = "null";
    for (const std::string_view name : {kTrue, kFalse, kNull}) {
      if (!rest().starts_with(name)) continue;
      if (rest().size() > name.size() && is_word(rest()[name.size()])) continue;
      result.kind = name == kNull ? JsonValue::Kind::kNull : JsonValue::Kind::kBool;
      result.boolean = name == kTrue;
      for (size_t k = 0; k < name.size(); ++k) take();
      return;
    }
    const char* hint = peek() == '\'' || is_word(peek()) ? " (text goes in double quotes)" : "";
    fail("expected a value, found " + found() + hint);
  }

 private:
  std::string_view text_;
  size_t next_ = 0;
  JsonPosition here_{1, 1};
};

/// Objects, lists and the whole.
class Parser : private Scanner {
 public:
  explicit Parser(std::string_view text) : Scanner(text) {}

  /// Keeps no value but the member `key` of the outermost object; a key stated twice is an error.
  JsonRecord record(std::string_view key) {
    JsonRecord result;
    record_ = &result;
    record_key_ = key;
    max_depth_ = kMaxRecordDepth;
    result.kind = document().kind;
    return result;
  }

  JsonValue document() {
    if (rest().starts_with("\xEF\xBB\xBF")) {
      fail("starts with a byte order mark; save the file as UTF-8 without one");
    }
    skip_space();
    if (at_end()) fail("is empty; expected an object {…}");
    JsonValue root = value(0);
    skip_space();
    if (!at_end()) fail("unexpected text after the end of the JSON value");
    return root;
  }

 private:
  JsonValue value(int depth) {
    JsonValue result;
    result.at = here();
    const char c = peek();
    if (c == '{' || c == '[') {
      if (depth == max_depth_) {
        fail("nested deeper than " + std::to_string(max_depth_) + " levels");
      }
      c == '{' ? object(result, depth) : array(result, depth);
    } else if (c == '"') {
      result.kind = JsonValue::Kind::kString;
      result.text = string();
    } else if (c == '-' || is_digit(c)) {
      number(result);
    } else {
      literal(result);
    }
    return result;
  }

  void object(JsonValue& result, int depth) {
    result.kind = JsonValue::Kind::kObject;
    take();
    skip_space();
    if (peek() == '}') {
      take();
      return;
    }
    std::unordered_set<std::string> keys;
    do {
      skip_space();
      JsonMember member;
      member.at = here();
      if (at_end()) fail_unclosed("object", result.at);
      if (peek() != '"') fail("expected a key in double quotes, found " + found());
      member.key = string();
      if (record_ != nullptr && !keys.insert(member.key).second) {
        fail_at(member.at, "the key " + in_quotes(member.key) + " is stated twice");
      }
      skip_space();
      if (at_end()) fail_unclosed("object", result.at);
      if (peek() != ':')
        fail("expected ':' after the key " + in_quotes(member.key) + ", found " + found());
      take();
      skip_space();
      if (at_end()) fail_unclosed("object", result.at);
      member.value = value(depth + 1);
      if (record_ == nullptr) {
        result.members.push_back(std::move(member));
      } else if (depth == 0) {
        add_to_record(std::move(member));
      }
    } while (another('}', "object", result.at));
  }

  void array(JsonValue& result, int depth) {
    result.kind = JsonValue::Kind::kArray;
    take();
    skip_space();
    if (peek() == ']') {
      take();
      return;
    }
    do {
      skip_space();
      if (at_end()) fail_unclosed("list", result.at);
      JsonValue item = value(depth + 1);
      if (record_ == nullptr) result.items.push_back(std::move(item));
    } while (another(']', "list", result.at));
  }

  void add_to_record(JsonMember member) {
    ++record_->members;
    if (record_->keys.size() < kMaxKeysShown) record_->keys.push_back(member.key);
    if (member.key == record_key_) record_->field = std::move(member.value);
  }

  /// After a member or an item: true past a comma, false past the closing bracket.
  bool another(char close, const char* what, JsonPosition opened) {
    skip_space();
    if (at_end()) fail_unclosed(what, opened);
    if (peek() == close) {
      take();
      return false;
    }
    if (peek() != ',') {
      fail(std::string("expected ',' or '") + close + "', found " + found());
    }
    const JsonPosition comma = here();
    take();
    skip_space();
    if (peek() == close)
      fail_at(comma, std::string("trailing comma before '") + close + "'; remove it");
    return true;
  }

  int max_depth_ = kMaxDepth;
  JsonRecord* record_ = nullptr;  // null: every value is kept
  std::string_view record_key_;
};

}  // namespace

JsonValue parse_json(std::string_view text) { return Parser(text).document(); }

JsonRecord read_json_record(std::string_view text, std::string_view key) {
  return Parser(text).record(key);
}

std::string describe(const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return value.boolean ? "true" : "false";
    case JsonValue::Kind::kInteger:
    case JsonValue::Kind::kNumber:
      return value.text;
    case JsonValue::Kind::kString:
      return in_quotes(value.text);
    case JsonValue::Kind::kArray:
      return value.items.empty() ? "an empty list" : "a list";
    case JsonValue::Kind::kObject:
      break;
  }
  return "an object";
}

}  // namespace stablemask
