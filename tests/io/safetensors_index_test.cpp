#include <gtest/gtest.h>

#include <string>

#include "stablemask/base/error.h"
#include "stablemask/io/safetensors.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

/// Two files: 1.safetensors with a and b, 2.safetensors with c.
class SafetensorsIndex : public testing::Test {
 protected:
  SafetensorsIndex() {
    write_safetensors(scratch_ / "1.safetensors", {{"a", tensor()}, {"b", tensor()}});
    write_safetensors(scratch_ / "2.safetensors", {{"c", tensor()}});
  }

  TensorView tensor() const { return {ElementType::kF32, {1}, &value_}; }

  std::string open(const std::string& index) {
    const std::string path = scratch_ / "model.safetensors.index.json";
    write_bytes(path, index);
    return message_of<CheckpointError>([&] { files_ = open_safetensors_index(path); });
  }

  std::string open_map(const std::string& weight_map) {
    return open(R"({"metadata":{"total_size":12},"weight_map":{)" + weight_map + "}}");
  }

  Scratch scratch_;
  std::map<std::string, SafetensorsFile> files_;

 private:
  const float value_ = 1.5f;
};

constexpr const char* kGood = R"("a":"1.safetensors","c":"2.safetensors","b":"1.safetensors")";

TEST_F(SafetensorsIndex, OpensEveryFile) {
  EXPECT_EQ(open_map(kGood), "");
  ASSERT_EQ(files_.size(), 2u);
  EXPECT_EQ(files_.at("1.safetensors").tensors().size(), 2u);
  EXPECT_EQ(files_.at("2.safetensors").tensors().count("c"), 1u);
}

TEST_F(SafetensorsIndex, RefusalsHaveNames) {
  const auto expect = [](const std::string& message, const std::string& name) {
    EXPECT_NE(message.find("bad safetensors index (" + name + "): "), std::string::npos)
        << name << ": " << message;
  };
  expect(open("{"), "not-json");
  expect(open("\xEF\xBB\xBF{}"), "not-json");
  expect(open_map(R"("a":"1.safetensors","a":"1.safetensors")"), "duplicate-key");
  expect(open(R"({"weight_map":{},"weight_map":{}})"), "duplicate-key");
  expect(open(R"({"metadata":{"a":1,"a":1},"weight_map":{}})"), "duplicate-key");
  expect(open("[]"), "fields");
  expect(open(R"({"metadata":{}})"), "fields");
  expect(open(R"({"weight_map":{},"more":{}})"), "fields");
  expect(open(R"({"weight_map":[]})"), "wrong-type");
  expect(open_map(R"("a":1)"), "wrong-type");
  for (const char* name : {"", "../1.safetensors", "/etc/passwd", "x/1.safetensors", "..",
                           ".hidden", "x\\\\1.safetensors", "a\\nb", "a\\u007F"}) {
    expect(open_map("\"a\":\"" + std::string(name) + "\""), "file-name");
  }
  expect(open_map(R"("a":"1.safetensors","b":"1.safetensors","d":"2.safetensors")"),
         "missing-tensors");
  expect(open_map(R"("a":"1.safetensors","c":"2.safetensors")"), "extra-tensors");
}

TEST_F(SafetensorsIndex, AnAbsentFileIsNamed) {
  EXPECT_NE(open_map(R"("a":"3.safetensors")").find("3.safetensors: cannot be opened"),
            std::string::npos);
}

}  // namespace
}  // namespace stablemask
