#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// Line and column in a text, both from 1; columns count characters, not bytes. Line 0: the value
/// does not come from a text.
struct JsonPosition {
  int64_t line = 0;
  int64_t column = 0;
};

struct JsonMember;

/// A parsed JSON value with its position in the text. Objects keep all members in their order,
/// including members with equal keys.
struct JsonValue {
  enum class Kind { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  JsonPosition at;
  bool boolean = false;
  int64_t integer = 0;  ///< kInteger: written without fraction and exponent, fits 64 bits
  double number = 0;    ///< kInteger and kNumber
  std::string text;     ///< kString: the string; numbers: as written
  std::vector<JsonValue> items;
  std::vector<JsonMember> members;

  bool is_number() const { return kind == Kind::kInteger || kind == Kind::kNumber; }
};

struct JsonMember {
  std::string key;
  JsonPosition at;  ///< of the key
  JsonValue value;
};

class JsonSyntaxError : public std::runtime_error {
 public:
  JsonSyntaxError(JsonPosition at, const std::string& message)
      : std::runtime_error(message), at_(at) {}
  JsonPosition at() const { return at_; }

 private:
  JsonPosition at_;
};

/// Parses strict RFC 8259: one value, UTF-8 without byte order mark, at most 32 levels of nesting,
/// numbers that fit a double. Throws JsonSyntaxError for the first error.
JsonValue parse_json(std::string_view text);

/// What read_json_record keeps of one record of JSONL.
struct JsonRecord {
  JsonValue::Kind kind = JsonValue::Kind::kNull;  ///< of the whole value
  std::optional<JsonValue> field;  ///< the member asked for; a list or object without its contents
  std::vector<std::string> keys;   ///< the first 20 keys of the object, in their order
  size_t members = 0;              ///< of the object
};

/// Parses as parse_json does, but at most 64 levels deep, and reads only the member `key` of the
/// outermost object: other values are checked and dropped, so memory is bounded by the longest
/// string and the keys of the objects that are open at one time, whatever the record nests. Throws
/// JsonSyntaxError also for a key that an object of any level states twice.
JsonRecord read_json_record(std::string_view text, std::string_view key);

/// For messages: a scalar as JSON text (a string of more than 60 bytes is shortened), otherwise
/// "a list", "an empty list" or "an object".
std::string describe(const JsonValue& value);

}  // namespace stablemask
