#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// 1-based line and column (in characters, not bytes) of a text; line 0: nowhere in a text.
struct JsonPosition {
  int64_t line = 0;
  int64_t column = 0;
};

struct JsonMember;

/// A JSON value that knows where it stands. Objects keep every member in order, duplicates
/// included: what to make of them is the reader's business.
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

/// Strict RFC 8259: one value, UTF-8 without byte order mark, at most 32 levels deep, finite
/// numbers. Throws JsonSyntaxError at the first offence.
JsonValue parse_json(std::string_view text);

/// A scalar as JSON text, shortened when long; "a list" or "an object" otherwise. For messages.
std::string describe(const JsonValue& value);

}  // namespace stablemask
