#include "stablemask/base/json_source.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace stablemask {
namespace {

using Kind = JsonValue::Kind;

TEST(JsonSource, KeepsKindsOrderDuplicatesAndPositions) {
  const JsonValue root = parse_json("{\n  \"a\": [1, -2.5e3],\n\t\"é\": true, \"a\": null }\n");
  ASSERT_EQ(root.kind, Kind::kObject);
  ASSERT_EQ(root.members.size(), 3u);
  const JsonMember& list = root.members[0];
  EXPECT_EQ(list.key, "a");
  EXPECT_EQ(list.at.line, 2);
  EXPECT_EQ(list.at.column, 3);
  EXPECT_EQ(list.value.at.column, 8);
  ASSERT_EQ(list.value.items.size(), 2u);
  EXPECT_EQ(list.value.items[0].kind, Kind::kInteger);
  EXPECT_EQ(list.value.items[0].integer, 1);
  EXPECT_EQ(list.value.items[0].number, 1.0);
  EXPECT_EQ(list.value.items[1].kind, Kind::kNumber);
  EXPECT_EQ(list.value.items[1].number, -2500.0);
  EXPECT_EQ(list.value.items[1].at.column, 12);
  const JsonMember& flag = root.members[1];
  EXPECT_EQ(flag.key, "é");
  EXPECT_EQ(flag.at.line, 3);
  EXPECT_EQ(flag.value.at.column, 7);  // a character is one column, whatever its bytes
  EXPECT_TRUE(flag.value.boolean);
  EXPECT_EQ(root.members[2].key, "a");
  EXPECT_EQ(root.members[2].value.kind, Kind::kNull);
}

TEST(JsonSource, Numbers) {
  EXPECT_EQ(parse_json("9223372036854775807").integer, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(parse_json("-9223372036854775808").integer, std::numeric_limits<int64_t>::min());
  EXPECT_EQ(parse_json("9223372036854775808").kind, Kind::kNumber);
  EXPECT_EQ(parse_json("1e3").kind, Kind::kNumber);
  EXPECT_EQ(parse_json("1.0").kind, Kind::kNumber);
  EXPECT_EQ(parse_json("0.1").number, 0.1);
  EXPECT_EQ(parse_json("1e-400").number, 0.0);
  EXPECT_EQ(parse_json("-0").integer, 0);
}

TEST(JsonSource, Strings) {
  EXPECT_EQ(parse_json(R"("a\"\\\/\b\f\n\r\t")").text, "a\"\\/\b\f\n\r\t");
  EXPECT_EQ(parse_json(R"("\u0041\u00e9\u20ac\ud83d\ude00")").text, "Aé€😀");
  EXPECT_EQ(parse_json("\"é😀\"").text, "é😀");
  EXPECT_EQ(parse_json(R"("\u0000")").text, std::string(1, '\0'));
}

struct Offence {
  std::string text;
  int64_t line, column;
  std::string message;
};

TEST(JsonSource, NamesTheFirstOffenceAndItsPlace) {
  const std::vector<Offence> offences = {
      {"", 1, 1, "is empty; expected an object {…}"},
      {" \n\t", 2, 2, "is empty; expected an object {…}"},
      {"\xEF\xBB\xBF{}", 1, 1, "starts with a byte order mark; save the file as UTF-8 without one"},
      {"{} {}", 1, 4, "unexpected text after the end of the JSON value"},
      {"{\"a\": 1,}", 1, 8, "trailing comma before '}'; remove it"},
      {"[1,\n]", 1, 3, "trailing comma before ']'; remove it"},
      {"{\"a\": 1 \"b\": 2}", 1, 9, "expected ',' or '}', found \"\\\"\""},
      {"{\"a\" 1}", 1, 6, "expected ':' after the key \"a\", found \"1\""},
      {"{a: 1}", 1, 2, "expected a key in double quotes, found \"a\""},
      {"{\"a\": yes}", 1, 7, "expected a value, found \"yes\" (text goes in double quotes)"},
      {"{\"a\": 'b'}", 1, 7, "expected a value, found \"'\" (text goes in double quotes)"},
      {"{\"a\": True}", 1, 7, "expected a value, found \"True\" (text goes in double quotes)"},
      {"{\"a\": truey}", 1, 7, "expected a value, found \"truey\" (text goes in double quotes)"},
      {"{\"a\": NaN}", 1, 7, "expected a value, found \"NaN\" (text goes in double quotes)"},
      {"{\"a\": }", 1, 7, "expected a value, found \"}\""},
      {"{\"a\": 1", 1, 8, "the text ends inside the object that opens at 1:1"},
      {"{\n\"a\": [1", 2, 8, "the text ends inside the list that opens at 2:6"},
      {"{\"a", 1, 4, "the text ends inside the string that opens at 1:2"},
      {"{\"a\n\": 1}", 1, 4, "a string ends with its line; close it with '\"'"},
      {"\"\t\"", 1, 2, "control character in a string; write it as \\u00XX"},
      {"{} // no", 1, 4, "JSON has no comments; remove it"},
      {"{/* no */}", 1, 2, "JSON has no comments; remove it"},
      {"# no\n{}", 1, 1, "JSON has no comments; remove it"},
      {"01", 1, 2, "a number may not start with 0"},
      {"-", 1, 2, "expected a digit after '-', found the end of the text"},
      {"1.x", 1, 3, "expected a digit after '.', found \"x\""},
      {"1e+", 1, 4, "expected a digit in the exponent, found the end of the text"},
      {"12k", 1, 3, "unexpected \"k\" after a number"},
      {"[1e999]", 1, 2, "the number does not fit 64 bits"},
      {R"("\x")", 1, 2, R"(unknown escape in a string; a backslash itself is written \\)"},
      {R"("\u12g4")", 1, 2, R"(\u needs four hexadecimal digits)"},
      {R"("\u-123")", 1, 2, R"(\u needs four hexadecimal digits)"},
      {R"("\u12)", 1, 2, R"(\u needs four hexadecimal digits)"},
      {R"("\ud800")", 1, 2, "half of a surrogate pair"},
      {R"("\ud800\u0041")", 1, 2, "half of a surrogate pair"},
      {R"("\udc00")", 1, 2, "half of a surrogate pair"},
      {"\"a\xFF\"", 1, 3, "not valid UTF-8"},
      {"\"\xC0\x80\"", 1, 2, "not valid UTF-8"},
      {"\"\xED\xA0\x80\"", 1, 2, "not valid UTF-8"},
      {"{\xFF", 1, 2, "expected a key in double quotes, found a byte that is not UTF-8"},
  };
  for (const Offence& offence : offences) {
    try {
      parse_json(offence.text);
      ADD_FAILURE() << "accepted: " << offence.text;
    } catch (const JsonSyntaxError& error) {
      EXPECT_EQ(error.what(), offence.message) << offence.text;
      EXPECT_EQ(error.at().line, offence.line) << offence.text;
      EXPECT_EQ(error.at().column, offence.column) << offence.text;
    }
  }
}

TEST(JsonSource, DepthIsBounded) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_NO_THROW(parse_json(nested(32)));
  EXPECT_THROW(parse_json(nested(33)), JsonSyntaxError);
  EXPECT_THROW(parse_json(std::string(1'000'000, '[')), JsonSyntaxError);
}

TEST(JsonRecord, KeepsOneMemberAndTheKeys) {
  const JsonRecord record =
      read_json_record(R"({"id": [1, {"text": 2}], "text": "a\nb", "x": {}})", "text");
  EXPECT_EQ(record.kind, Kind::kObject);
  ASSERT_TRUE(record.field);
  EXPECT_EQ(record.field->text, "a\nb");
  EXPECT_EQ(record.keys, (std::vector<std::string>{"id", "text", "x"}));
  EXPECT_EQ(record.members, 3u);
  const JsonRecord list = read_json_record(R"({"text": [[1], {"a": 2}]})", "text");
  ASSERT_TRUE(list.field);
  EXPECT_EQ(list.field->kind, Kind::kArray);
  EXPECT_TRUE(list.field->items.empty());
  EXPECT_FALSE(read_json_record(R"({"text ": 1})", "text").field);
  EXPECT_EQ(read_json_record("[1]", "text").kind, Kind::kArray);
}

TEST(JsonRecord, RefusesDepthDuplicatesAndTrailingText) {
  const auto nested = [](size_t depth) {
    return "{\"a\":" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
  };
  EXPECT_NO_THROW(read_json_record(nested(64), "text"));
  const std::vector<Offence> offences = {
      {nested(65), 1, 69, "nested deeper than 64 levels"},
      {R"({"text": "a", "id": 1, "text": "b"})", 1, 24, "the key \"text\" is stated twice"},
      {R"({"a": [{"é": 1, "é": 2}]})", 1, 17, "the key \"é\" is stated twice"},
      {R"({"a": 1, "\u0061": 2})", 1, 10, "the key \"a\" is stated twice"},
      {std::string("{\"a\": 1}\0", 9), 1, 9, "unexpected text after the end of the JSON value"},
      {"{\"a\": 1} {\"a\": 1}", 1, 10, "unexpected text after the end of the JSON value"},
      {std::string("{\"a\": 1\0}", 10), 1, 8, "expected ',' or '}', found \"\\u0000\""},
  };
  for (const Offence& offence : offences) {
    try {
      read_json_record(offence.text, "text");
      ADD_FAILURE() << "accepted: " << offence.text;
    } catch (const JsonSyntaxError& error) {
      EXPECT_EQ(error.what(), offence.message) << offence.text;
      EXPECT_EQ(error.at().line, offence.line) << offence.text;
      EXPECT_EQ(error.at().column, offence.column) << offence.text;
    }
  }
  EXPECT_NO_THROW(read_json_record(R"([{"a": 1}, {"a": 2}])", "text")) << "two objects";
}

bool accepts(const std::string& text) {
  try {
    parse_json(text);
    return true;
  } catch (const JsonSyntaxError&) {
    return false;
  }
}

/// A well-tested parser is the oracle for what is JSON, on texts broken at random.
TEST(JsonSource, AcceptsExactlyWhatAnotherParserDoes) {
  const std::string seed =
      R"({"a": [1, -0.5e+7, true, null, {}], "b\n\u00e9\ud83d\ude00": {"c": "é ü", "d": []}})";
  const std::string alphabet = "{}[]:,\"\\u0123456789eE+-.truefalsn \n\xC3\xA9\xED";
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = seed;
    for (uint32_t edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % text.size();
      const char c = alphabet[random() % alphabet.size()];
      switch (random() % 3) {
        case 0:
          text[at] = c;
          break;
        case 1:
          text.insert(at, 1, c);
          break;
        default:
          text.erase(at, 1);
      }
    }
    ASSERT_EQ(accepts(text), nlohmann::json::accept(text)) << text;
    accepted += accepts(text) ? 1 : 0;
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_LT(accepted, 19000);
}

TEST(JsonSource, DescribesValuesOnOneLine) {
  EXPECT_EQ(describe(parse_json("null")), "null");
  EXPECT_EQ(describe(parse_json("false")), "false");
  EXPECT_EQ(describe(parse_json("1.50")), "1.50");
  EXPECT_EQ(describe(parse_json("\"a\\nb\"")), "\"a\\nb\"");
  EXPECT_EQ(describe(parse_json("[]")), "an empty list");
  EXPECT_EQ(describe(parse_json("[1]")), "a list");
  EXPECT_EQ(describe(parse_json("{}")), "an object");
  EXPECT_LT(describe(parse_json("\"" + std::string(1000, 'x') + "\"")).size(), 80u);
}

}  // namespace
}  // namespace stablemask
