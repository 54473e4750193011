#include "stablemask/io/finite.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"

namespace stablemask {
namespace {

/// Bit patterns of each floating-point type: the largest finite number of each sign, the smallest
/// numbers, and infinities and NaNs.
template <typename Bits>
void expect_bits(ElementType type, const std::vector<Bits>& finite,
                 const std::vector<Bits>& not_finite) {
  // One byte off, as a tensor in a file may be; long enough for several blocks of the search.
  constexpr int64_t kCount = 10000;
  std::vector<char> memory(1 + kCount * sizeof(Bits));
  char* data = memory.data() + 1;
  const TensorView view{type, {kCount}, data};
  const auto place = [&](int64_t at, Bits bits) {
    std::memcpy(data + at * sizeof(Bits), &bits, sizeof(Bits));
  };
  for (const int64_t at : {int64_t{0}, int64_t{4095}, int64_t{4096}, kCount - 1}) {
    for (const Bits bits : finite) {
      place(at, bits);
      EXPECT_TRUE(is_finite(view)) << element_name(type) << " " << +bits << " at " << at;
    }
    for (const Bits bits : not_finite) {
      place(at, bits);
      EXPECT_FALSE(is_finite(view)) << element_name(type) << " " << +bits << " at " << at;
    }
    place(at, 0);
  }
}

TEST(Finite, KnowsTheInfinitiesAndNansOfEveryType) {
  expect_bits<uint32_t>(ElementType::kF32, {0x7F7FFFFF, 0xFF7FFFFF, 1, 0x80000000},
                        {0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFFFFFFF});
  expect_bits<uint64_t>(ElementType::kF64, {0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 1},
                        {0x7FF0000000000000, 0xFFF0000000000000, 0x7FF0000000000001, ~0ULL});
  expect_bits<uint16_t>(ElementType::kF16, {0x7BFF, 0xFBFF, 1}, {0x7C00, 0xFC00, 0x7C01, 0xFFFF});
  expect_bits<uint16_t>(ElementType::kBf16, {0x7F7F, 0xFF7F, 1}, {0x7F80, 0xFF80, 0x7F81, 0xFFFF});
}

TEST(Finite, TakesIntegersAndEmptyTensors) {
  const std::vector<int64_t> ones(4, -1);
  for (const ElementType type :
       {ElementType::kI64, ElementType::kI32, ElementType::kU8, ElementType::kBool}) {
    EXPECT_TRUE(is_finite({type, {4}, ones.data()}));
  }
  EXPECT_TRUE(is_finite({ElementType::kF32, {0, 3}, nullptr}));
}

TEST(Finite, NamesTheFirstTensorInMemoryAndInAFile) {
  const Scratch scratch;
  std::vector<float> sound(300000, 1.0f), bad(300000, 1.0f);
  const std::map<std::string, TensorView> tensors = {
      {"a", {ElementType::kF32, {300000}, sound.data()}},
      {"b", {ElementType::kF32, {300, 1000}, bad.data()}},
      {"c", {ElementType::kF32, {300000}, bad.data()}}};
  write_safetensors(scratch / "sound", tensors);
  EXPECT_EQ(first_not_finite(tensors), "");
  EXPECT_EQ(first_not_finite(scratch / "sound"), "");
  bad.back() = std::nanf("");  // in the second piece that is read of the file
  write_safetensors(scratch / "bad", tensors);
  EXPECT_EQ(first_not_finite(tensors), "b");
  EXPECT_EQ(first_not_finite(scratch / "bad"), "b");
  EXPECT_THROW(first_not_finite(scratch / "absent"), CheckpointError);
}

TEST(Finite, RefusesTheWeightsOfACheckpointByName) {
  const Scratch scratch;
  TinyCheckpoint tiny(10);
  const std::vector<float> norm = {1, 2, -std::numeric_limits<float>::infinity(), 4};
  tiny.content().model["norm"].data = norm.data();
  const std::string folder = save_checkpoint(scratch.path(), tiny.content(), {});
  EXPECT_EQ(message_of<NonFiniteError>([&] { require_finite_weights(load_checkpoint(folder)); }),
            "checkpoint " + folder +
                ": norm holds values that are not finite; use an earlier checkpoint");
}

}  // namespace
}  // namespace stablemask
