// Deterministic mutations of safetensors headers: each is taken, and then describes the data
// exactly, or refused by a named CheckpointError.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

constexpr uint64_t kDataBytes = 24;

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> list = {
      "{}",
      R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})",
      R"({"__metadata__":{"format":"pt","\u00e9":""},"a":{"dtype":"BF16","shape":[4],)"
      R"("data_offsets":[0,8]},"b":{"shape":[],"dtype":"I64","data_offsets":[8,16]},)"
      R"("c":{"data_offsets":[16,24],"shape":[8,1],"dtype":"U8"}}     )",
      R"({"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F16","shape":[4],"data_offsets":[16,24]}})",
      R"({"a":{"dtype":"F16","shape":[8],"data_offsets":[0,16]},)"
      R"("b":{"dtype":"F16","shape":[8],"data_offsets":[8,24]}})",
      R"({ "z" : { "dtype" : "F64" , "shape" : [ 3 ] , "data_offsets" : [ 0 , 24 ] } ,)"
      R"( "empty" : { "dtype" : "I32" , "shape" : [ 0 , 7 ] , "data_offsets" : [ 24 , 24 ] } })"};
  return list;
}

const std::vector<std::string>& tokens() {
  static const std::vector<std::string> list = {
      "{",
      "}",
      "[",
      "]",
      ",",
      ":",
      "\"",
      "\\",
      " ",
      "\n",
      std::string(1, '\0'),
      "\xEF\xBB\xBF",
      "\xC0\x80",
      "\xFF",
      "0",
      "1",
      "24",
      "-1",
      "1.5",
      "1e3",
      "9007199254740992",
      "9007199254740993",
      "18446744073709551616",
      "1e999",
      "null",
      "true",
      "\"dtype\"",
      "\"shape\"",
      "\"data_offsets\"",
      "\"__metadata__\"",
      "\"a\"",
      "\"\"",
      "\"F32\"",
      "\"F8_E5M2\"",
      "\"F33\"",
      "\\u0000",
      "\\ud83d",
      "[0,24]",
      "[24,0]",
      "{\"a\":\"b\"}",
      R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)",
      "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,24]",
      "[4294967296,4294967296]"};
  return list;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::string next() {
    std::string text = pick(seeds());
    for (size_t edits = 1 + below(4); edits > 0; --edits) edit(text);
    return text;
  }

 private:
  size_t below(size_t count) { return random_() % count; }
  const std::string& pick(const std::vector<std::string>& list) { return list[below(list.size())]; }

  void edit(std::string& text) {
    const size_t at = below(text.size() + 1);
    const size_t length = std::min(text.size() - at, 1 + below(8));
    switch (below(8)) {
      case 0:
        if (length > 0) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:
        text.insert(at, pick(tokens()));
        break;
      case 2:
        text.replace(at, length, pick(tokens()));
        break;
      case 3:
        text.erase(at, length);
        break;
      case 4:
        text.insert(at, text.substr(at, 5 * length));
        break;
      case 5:
        replace_number(text, at);
        break;
      case 6:
        replace_between(text, at, '[', ']');
        break;
      default:
        replace_between(text, at, '"', '"');
    }
  }

  /// Another number in the place of one; the edits that stay closest to what is accepted.
  void replace_number(std::string& text, size_t at) {
    const size_t begin = text.find_first_of("0123456789", at);
    if (begin == std::string::npos) return;
    const size_t end = text.find_first_not_of("0123456789", begin);
    text.replace(begin, end - begin, std::to_string(below(2) ? below(26) : random_() >> below(64)));
  }

  /// Another token in the place of a list or a string.
  void replace_between(std::string& text, size_t at, char open, char close) {
    const size_t begin = text.find(open, at);
    const size_t end = begin == std::string::npos ? begin : text.find(close, begin + 1);
    if (end != std::string::npos) text.replace(begin, end - begin + 1, pick(tokens()));
  }

  std::mt19937_64 random_;
};

void expect_exact_cover(const SafetensorsHeader& header, const std::string& text) {
  uint64_t total = 0;
  for (const auto& [name, entry] : header.entries) {
    TensorView view{entry.type, entry.shape, nullptr};
    EXPECT_EQ(safetensors_name_problem(name), "") << text;
    EXPECT_LE(entry.end, kDataBytes) << text;
    EXPECT_EQ(entry.end - entry.begin, view.bytes()) << text;
    total += view.bytes();
  }
  EXPECT_EQ(total, kDataBytes) << text;
}

std::string refusal_name(const std::string& message) {
  const size_t begin = message.find("file (");
  const size_t end = message.find("): ");
  return begin == std::string::npos ? message : message.substr(begin + 6, end - begin - 6);
}

TEST(Fuzz, MutatedSafetensorsHeaders) {
  constexpr int kCases = 100'000;
  Mutator mutator(20240917);
  std::map<std::string, int> refusals;
  int accepted = 0;
  for (int k = 0; k < kCases; ++k) {
    const std::string text = mutator.next();
    try {
      expect_exact_cover(parse_safetensors_header(text, kDataBytes, "x"), text);
      ++accepted;
    } catch (const CheckpointError& error) {
      ++refusals[refusal_name(error.what())];
    }
  }
  EXPECT_GT(accepted, kCases / 200);
  std::string summary = format("%d headers, %d accepted", kCases, accepted);
  for (const auto& [name, count] : refusals) summary += format(", %s %d", name.c_str(), count);
  std::printf("%s\n", summary.c_str());
  // Every refusal that concerns the text, but the million tensors.
  for (const char* name :
       {"encoding", "not-an-object", "after-object",      "syntax",     "duplicate-key",
        "depth",    "unknown-field", "missing-field",     "wrong-type", "metadata",
        "number",   "unknown-dtype", "unsupported-dtype", "rank",       "overflow",
        "offsets",  "size-mismatch", "overlap",           "gap",        "trailing-data",
        "name"}) {
    EXPECT_GT(refusals[name], 0) << name;
  }
  EXPECT_EQ(refusals.size(), 21u) << summary;
}

TEST(Fuzz, MutatedSafetensorsFiles) {
  const Scratch scratch;
  const std::string path = scratch / "x.safetensors";
  Mutator mutator(7);
  std::mt19937_64 random(8);
  for (int k = 0; k < 3000; ++k) {
    const std::string header = mutator.next();
    uint64_t length = header.size();
    if (k % 3 == 0) length = random() >> (random() % 64);
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
    bytes += header + std::string(random() % 4 ? kDataBytes : random() % 64, 'd');
    if (k % 5 == 0) bytes.resize(random() % (bytes.size() + 1));
    write_bytes(path, bytes);
    message_of<CheckpointError>([&] { SafetensorsFile::open(path); });
  }
}

}  // namespace
}  // namespace stablemask
