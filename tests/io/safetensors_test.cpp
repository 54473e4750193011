#include "stablemask/io/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

using Tensors = std::map<std::string, TensorView>;

std::string little_endian(uint64_t value) {
  std::string bytes;
  for (int k = 0; k < 8; ++k) bytes += static_cast<char>(value >> (8 * k));
  return bytes;
}

std::string file_with(const std::string& header, const std::string& data) {
  return little_endian(header.size()) + header + data;
}

/// What the reader says of a file; "" when it takes it.
std::string refusal(const std::string& bytes, size_t max_header = size_t{16} << 20) {
  const Scratch scratch;
  const std::string path = scratch / "x.safetensors";
  write_bytes(path, bytes);
  return message_of<CheckpointError>([&] { SafetensorsFile::open(path, max_header); });
}

TEST(Safetensors, EveryTypeAndShapeSurvivesARoundTrip) {
  const Scratch scratch;
  const std::string path = scratch / "x.safetensors";
  std::vector<char> bytes(256);
  for (size_t k = 0; k < bytes.size(); ++k) bytes[k] = static_cast<char>(k * 37);
  const Tensors written = {{"f64", {ElementType::kF64, {2, 3}, bytes.data()}},
                           {"f32", {ElementType::kF32, {1, 1, 7}, bytes.data() + 1}},
                           {"f16", {ElementType::kF16, {5}, bytes.data() + 2}},
                           {"bf16", {ElementType::kBf16, {3, 3}, bytes.data() + 3}},
                           {"i64", {ElementType::kI64, {}, bytes.data() + 4}},
                           {"i32", {ElementType::kI32, {11}, bytes.data() + 5}},
                           {"u8", {ElementType::kU8, {13}, bytes.data() + 6}},
                           {"bool", {ElementType::kBool, {1}, bytes.data() + 7}},
                           {"empty", {ElementType::kF32, {4, 0, 2}, nullptr}},
                           {"näme \"quoted\" \\", {ElementType::kU8, {1}, bytes.data()}}};
  const std::map<std::string, std::string> metadata = {{"step", "12"}, {"text", "a\n\"b\""}};
  const FileDigest digest = write_safetensors(path, written, metadata);
  EXPECT_EQ(digest.bytes, std::filesystem::file_size(path));
  EXPECT_EQ(digest.sha256, sha256_file(path));

  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), written.size());
  for (const auto& [name, view] : file.tensors()) {
    const TensorView& original = written.at(name);
    EXPECT_EQ(view.type, original.type) << name;
    EXPECT_EQ(view.shape, original.shape) << name;
    ASSERT_EQ(view.bytes(), original.bytes()) << name;
    if (view.bytes() > 0) {
      EXPECT_EQ(std::memcmp(view.data, original.data, view.bytes()), 0) << name;
    }
  }
}

TEST(Safetensors, NoTensorsAtAllSurviveARoundTrip) {
  const Scratch scratch;
  write_safetensors(scratch / "x.safetensors", {});
  EXPECT_TRUE(SafetensorsFile::open(scratch / "x.safetensors").tensors().empty());
}

TEST(Safetensors, WrittenBytesAreTheFormatBitByBit) {
  const Scratch scratch;
  const int32_t a[] = {1, -2};
  const uint8_t b[] = {7, 8, 9};
  write_safetensors(scratch / "x.safetensors",
                    {{"b", {ElementType::kU8, {3, 1}, b}}, {"a", {ElementType::kI32, {2}, a}}});
  std::string header = R"({"a":{"data_offsets":[0,8],"dtype":"I32","shape":[2]},)"
                       R"("b":{"data_offsets":[8,11],"dtype":"U8","shape":[3,1]}})";
  header.resize(120, ' ');  // 8 + 120 is a multiple of 64
  const std::string data("\x01\0\0\0\xFE\xFF\xFF\xFF\x07\x08\x09", 11);
  EXPECT_EQ(read_bytes(scratch / "x.safetensors"),
            std::string("\x78\0\0\0\0\0\0\0", 8) + header + data);
}

TEST(Safetensors, ReadsOtherWritersOrderSpacingAndMisalignedData) {
  const Scratch scratch;
  write_bytes(scratch / "x.safetensors",
              file_with(R"({ "z" : {"shape":[], "dtype":"F32", "data_offsets":[ 1 , 5 ]} ,)"
                        R"("__metadata__":{"format":"pt"},)"
                        R"("a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}  )",
                        std::string("\x01\0\0\x80\x3F", 5)));
  const SafetensorsFile file = SafetensorsFile::open(scratch / "x.safetensors");
  float one = 0;
  std::memcpy(&one, file.tensors().at("z").data, sizeof one);
  EXPECT_EQ(one, 1.0f);
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

struct Refusal {
  const char* name;
  std::string header;
  std::string data;
  const char* test = nullptr;  // the test's name where one refusal has several
};

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

std::string two_tensors(const std::string& first, const std::string& second) {
  return R"({"x":{"dtype":"U8","shape":[2],"data_offsets":)" + first +
         R"(},"y":{"dtype":"U8","shape":[2],"data_offsets":)" + second + "}}";
}

const std::string kGood = tensor("U8", "[4]", "[0,4]");
const std::string kRest = R"("shape":[4],"data_offsets":[0,4]}})";  // what follows a dtype
const std::string kFour = "abcd";

/// The text of the header.
std::vector<Refusal> refusals_of_text() {
  return {
      {"encoding", "{\"\xFF\":1}", "", "NotUtf8"},
      {"encoding", "{\"\xC0\x80\":1}", "", "OverlongUtf8"},
      {"encoding", "\xEF\xBB\xBF" + kGood, kFour, "ByteOrderMark"},
      {"encoding", kGood + std::string(1, '\0'), kFour, "Nul"},
      {"not-an-object", "", "", "EmptyHeader"},
      {"not-an-object", "[]", "", "List"},
      {"not-an-object", " " + kGood, kFour, "SpaceFirst"},
      {"after-object", kGood + "\n", kFour, "NewlineAfter"},
      {"after-object", kGood + "{}", kFour, "SecondObject"},
      {"after-object", kGood + "x ", kFour, "JunkAfter"},
      {"syntax", "{", "", "Unclosed"},
      {"syntax", "{\"x\":}", "", "NoValue"},
      {"syntax", R"({"__metadata__":{},})", "", "TrailingComma"},
      {"syntax", "{'x':1}", "", "SingleQuotes"},
      {"syntax", R"({"a\ud800":1})", "", "LoneSurrogate"},
      {"syntax", tensor("U8", "[04]", "[0,4]"), kFour, "LeadingZero"},
      {"syntax", tensor("U8", "[+4]", "[0,4]"), kFour, "PlusSign"},
  };
}

/// Keys and types.
std::vector<Refusal> refusals_of_structure() {
  return {
      {"duplicate-key",
       R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       "ab", "Tensor"},
      {"duplicate-key", R"({"x":{"dtype":"U8","dtype":"U8",)" + kRest, kFour, "Dtype"},
      {"duplicate-key", R"({"x":{"shape":[4],"dtype":"U8",)" + kRest, kFour, "Shape"},
      {"duplicate-key", R"({"x":{"data_offsets":[0,4],"dtype":"U8",)" + kRest, kFour, "Offsets"},
      {"duplicate-key", R"({"__metadata__":{"a":"1","a":"1"}})", "", "InMetadata"},
      {"duplicate-key", R"({"__metadata__":{},"__metadata__":{}})", "", "Metadata"},
      {"duplicate-key",
       R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("\u0078":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       "ab", "EscapedTheSame"},
      {"depth", tensor("U8", "[[4]]", "[0,4]"), kFour, "ListInShape"},
      {"depth", tensor("U8", "[{}]", "[0,4]"), kFour, "ObjectInShape"},
      {"unknown-field", R"({"x":{"strides":[1],"dtype":"U8",)" + kRest, kFour},
      {"missing-field", R"({"x":{)" + kRest, kFour, "Dtype"},
      {"missing-field", R"({"x":{"dtype":"U8","data_offsets":[0,4]}})", kFour, "Shape"},
      {"missing-field", R"({"x":{"dtype":"U8","shape":[4]}})", kFour, "Offsets"},
      {"wrong-type", R"({"x":1})", "", "TensorIsNumber"},
      {"wrong-type", R"({"x":[1]})", "", "TensorIsList"},
      {"wrong-type", R"({"x":null})", "", "TensorIsNull"},
      {"wrong-type", R"({"x":{"dtype":4,)" + kRest, kFour, "DtypeIsNumber"},
      {"wrong-type", R"({"x":{"dtype":["U8"],)" + kRest, kFour, "DtypeIsList"},
      {"wrong-type", R"({"x":{"dtype":{},)" + kRest, kFour, "DtypeIsObject"},
      {"wrong-type", tensor("U8", "4", "[0,4]"), kFour, "ShapeIsNumber"},
      {"wrong-type", tensor("U8", "\"4\"", "[0,4]"), kFour, "ShapeIsString"},
      {"wrong-type", tensor("U8", "[\"4\"]", "[0,4]"), kFour, "DimensionIsString"},
      {"wrong-type", tensor("U8", "[true]", "[0,4]"), kFour, "DimensionIsBool"},
      {"metadata", R"({"__metadata__":"a"})", "", "IsString"},
      {"metadata", R"({"__metadata__":[]})", "", "IsList"},
      {"metadata", R"({"__metadata__":{"a":1}})", "", "HoldsNumber"},
      {"metadata", R"({"__metadata__":{"a":{"b":"c"}}})", "", "HoldsObject"},
      {"metadata", R"({"__metadata__":{"a":null}})", "", "HoldsNull"},
  };
}

/// Numbers and types of elements.
std::vector<Refusal> refusals_of_values() {
  return {
      {"number", tensor("U8", "[4.0]", "[0,4]"), kFour, "Fraction"},
      {"number", tensor("U8", "[4e0]", "[0,4]"), kFour, "Exponent"},
      {"number", tensor("U8", "[-4]", "[0,4]"), kFour, "Negative"},
      {"number", tensor("U8", "[-0]", "[0,4]"), kFour, "MinusZero"},
      {"number", tensor("U8", "[9007199254740993]", "[0,4]"), kFour, "AboveTwoTo53"},
      {"number", tensor("U8", "[18446744073709551620]", "[0,4]"), kFour, "Above64Bits"},
      {"number", tensor("U8", "[1e999]", "[0,4]"), kFour, "Infinite"},
      {"number", tensor("U8", "[4]", "[0,4.0]"), kFour, "FractionInOffsets"},
      {"unknown-dtype", tensor("FLOAT", "[4]", "[0,4]"), kFour, "Word"},
      {"unknown-dtype", tensor("", "[4]", "[0,4]"), kFour, "Empty"},
      {"unknown-dtype", tensor("f32", "[1]", "[0,4]"), kFour, "LowerCase"},
      {"unsupported-dtype", tensor("I8", "[4]", "[0,4]"), kFour, "I8"},
      {"unsupported-dtype", tensor("F8_E4M3", "[4]", "[0,4]"), kFour, "F8"},
  };
}

/// Where tensors lie, and their names.
std::vector<Refusal> refusals_of_layout() {
  return {
      {"rank", tensor("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,4]", "[0,4]"), kFour},
      {"overflow", tensor("U8", "[9007199254740992,9007199254740992]", "[0,4]"), kFour, "Elements"},
      {"overflow", tensor("F64", "[9007199254740992,128]", "[0,4]"), kFour, "Bytes"},
      {"offsets", tensor("U8", "[4]", "[4,0]"), kFour, "BeginAfterEnd"},
      {"offsets", tensor("U8", "[5]", "[0,5]"), kFour, "EndBeyondData"},
      {"offsets", tensor("U8", "[4]", "[0]"), kFour, "One"},
      {"offsets", tensor("U8", "[4]", "[0,4,4]"), kFour, "Three"},
      {"size-mismatch", tensor("U8", "[3]", "[0,4]"), kFour, "Smaller"},
      {"size-mismatch", tensor("F32", "[4]", "[0,4]"), kFour, "Larger"},
      {"overlap", two_tensors("[0,2]", "[1,3]"), "abc", "Partly"},
      {"overlap", two_tensors("[0,2]", "[0,2]"), "ab", "Wholly"},
      {"gap", two_tensors("[0,2]", "[3,5]"), "abcde", "Between"},
      {"gap", two_tensors("[1,3]", "[3,5]"), "abcde", "BeforeTheFirst"},
      {"trailing-data", kGood, "abcde", "Byte"},
      {"trailing-data", "{}", "a", "WithoutTensors"},
      {"name", R"({"":{"dtype":"U8",)" + kRest, kFour, "Empty"},
      {"name", "{\"" + std::string(513, 'n') + R"(":{"dtype":"U8",)" + kRest, kFour, "TooLong"},
      {"name", R"({"a\nb":{"dtype":"U8",)" + kRest, kFour, "Newline"},
      {"name", R"({"a\u0000b":{"dtype":"U8",)" + kRest, kFour, "EscapedNul"},
      {"name", R"({"a\u007fb":{"dtype":"U8",)" + kRest, kFour, "Delete"},
  };
}

class SafetensorsRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(SafetensorsRefusal, HasItsName) {
  const Refusal& bad = GetParam();
  const std::string message = refusal(file_with(bad.header, bad.data));
  EXPECT_NE(message.find(std::string("bad safetensors file (") + bad.name + "): "),
            std::string::npos)
      << bad.header << "\ngave: " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

std::string test_name(const testing::TestParamInfo<Refusal>& info) {
  std::string name = std::string(info.param.name) + "_" + (info.param.test ? info.param.test : "");
  std::erase(name, '-');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Text, SafetensorsRefusal, testing::ValuesIn(refusals_of_text()),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Structure, SafetensorsRefusal, testing::ValuesIn(refusals_of_structure()),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Values, SafetensorsRefusal, testing::ValuesIn(refusals_of_values()),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Layout, SafetensorsRefusal, testing::ValuesIn(refusals_of_layout()),
                         test_name);

TEST(SafetensorsFileRefusal, TooShort) {
  EXPECT_NE(refusal("").find("(too-short)"), std::string::npos);
  EXPECT_NE(refusal("1234567").find("(too-short)"), std::string::npos);
}

TEST(SafetensorsFileRefusal, HeaderBeyondTheCapOrTheFile) {
  const std::string huge(8, '\xFF');
  EXPECT_NE(refusal(huge + "{}").find("(header-too-long)"), std::string::npos);
  EXPECT_NE(refusal(little_endian(3) + "{}").find("(header-truncated)"), std::string::npos);
  EXPECT_EQ(refusal(little_endian(2) + "{}"), "");
  EXPECT_NE(refusal(little_endian(2) + "{}", 1).find("(header-too-long)"), std::string::npos);
}

TEST(SafetensorsFileRefusal, MoreThanAMillionTensors) {
  std::string header = "{";
  for (int k = 0; k <= 1'000'000; ++k) {
    if (k > 0) header += ',';
    header += format(R"("%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})", k);
  }
  header += "}";
  const std::string message =
      message_of<CheckpointError>([&] { parse_safetensors_header(header, 0, "many.safetensors"); });
  EXPECT_NE(message.find("(too-many-tensors)"), std::string::npos) << message;
}

TEST(SafetensorsFileRefusal, WhatIsNotARegularFile) {
  const Scratch scratch;
  const std::string pipe = scratch / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {scratch.path(), pipe, std::string("/dev/zero")}) {
    const std::string message = message_of<CheckpointError>([&] { SafetensorsFile::open(path); });
    EXPECT_NE(message.find(path + ": is not a regular file"), std::string::npos) << message;
  }
  const std::string missing = scratch / "missing";
  EXPECT_NE(message_of<CheckpointError>([&] {
              SafetensorsFile::open(missing);
            }).find(missing + ": cannot be opened: No such file"),
            std::string::npos);
}

TEST(SafetensorsFileRefusal, FileThatShrinksWhileItIsRead) {
  const Scratch scratch;
  const std::string path = scratch / "x.safetensors";
  write_bytes(path, file_with(tensor("U8", "[4]", "[0,4]"), "abcd"));
  const InputFile file(path, ExitCode::kCheckpoint);
  std::filesystem::resize_file(path, file.size() - 2);
  const std::string message = message_of<CheckpointError>([&] { file.text(file.size()); });
  EXPECT_NE(message.find("was shortened while in use"), std::string::npos) << message;
}

TEST(Safetensors, TensorsOutliveTheFile) {
  const Scratch scratch;
  const std::string path = scratch / "x.safetensors";
  write_bytes(path, file_with(tensor("U8", "[4]", "[0,4]"), "abcd"));
  const SafetensorsFile file = SafetensorsFile::open(path);
  std::filesystem::resize_file(path, 0);
  EXPECT_EQ(std::memcmp(file.tensors().at("x").data, "abcd", 4), 0);
}

TEST(SafetensorsWriter, RefusesWhatTheReaderWouldRefuse) {
  const Scratch scratch;
  const char byte = 0;
  const auto message = [&](const std::string& name, std::vector<int64_t> shape, const void* data) {
    return message_of<CheckpointError>([&] {
      write_safetensors(scratch / "x.safetensors",
                        {{name, {ElementType::kU8, std::move(shape), data}}});
    });
  };
  EXPECT_NE(message("", {1}, &byte).find("is empty"), std::string::npos);
  EXPECT_NE(message("a\tb", {1}, &byte).find("control characters"), std::string::npos);
  EXPECT_NE(message("\xFF", {1}, &byte).find("not UTF-8"), std::string::npos);
  EXPECT_NE(message(std::string(513, 'n'), {1}, &byte).find("longer than 512"), std::string::npos);
  EXPECT_NE(message("__metadata__", {1}, &byte).find("reserved"), std::string::npos);
  EXPECT_NE(message("x", std::vector<int64_t>(17, 1), &byte).find("dimensions"), std::string::npos);
  EXPECT_NE(message("x", {-1}, &byte).find("negative"), std::string::npos);
  EXPECT_NE(message("x", {int64_t{1} << 62, 4}, &byte).find("too many"), std::string::npos);
  EXPECT_NE(message("x", {1}, nullptr).find("no data"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(scratch / "x.safetensors"));
}

TEST(SafetensorsWriter, NeverOverwrites) {
  const Scratch scratch;
  write_bytes(scratch / "x.safetensors", "precious");
  EXPECT_NE(message_of<CheckpointError>([&] {
              write_safetensors(scratch / "x.safetensors", {});
            }).find("File exists"),
            std::string::npos);
  EXPECT_EQ(read_bytes(scratch / "x.safetensors"), "precious");
}

}  // namespace
}  // namespace stablemask
