#include "src/interop/float_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace stablemask::interop {
namespace {

float decoded(ElementType type, uint16_t bits) {
  float value = 0;
  decode_floats(type, &bits, 1, &value);
  return value;
}

struct Encoded {
  uint16_t bits = 0;
  bool fits = false;
};
Encoded encoded(ElementType type, float value) {
  Encoded result;
  result.fits = encode_floats(type, &value, 1, &result.bits);
  return result;
}

TEST(FloatCodec, EveryValueOf16BitsSurvives) {
  for (const ElementType type : {ElementType::kF16, ElementType::kBf16}) {
    for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
      const float value = decoded(type, static_cast<uint16_t>(bits));
      const Encoded back = encoded(type, value);
      if (std::isnan(value)) {
        EXPECT_TRUE(std::isnan(decoded(type, back.bits))) << bits;
      } else {
        ASSERT_EQ(back.bits, bits) << element_name(type);
      }
      ASSERT_TRUE(back.fits);
    }
  }
}

TEST(FloatCodec, DecodesIeeeHalf) {
  EXPECT_EQ(decoded(ElementType::kF16, 0x3c00), 1.0F);
  EXPECT_EQ(decoded(ElementType::kF16, 0xc000), -2.0F);
  EXPECT_EQ(decoded(ElementType::kF16, 0x0001), 0x1p-24F);
  EXPECT_EQ(decoded(ElementType::kF16, 0x03ff), 1023 * 0x1p-24F);
  EXPECT_EQ(decoded(ElementType::kF16, 0x0400), 0x1p-14F);
  EXPECT_EQ(decoded(ElementType::kF16, 0x7bff), 65504.0F);
  EXPECT_TRUE(std::isinf(decoded(ElementType::kF16, 0x7c00)));
  EXPECT_EQ(decoded(ElementType::kBf16, 0x3f80), 1.0F);
}

TEST(FloatCodec, RoundsToTheNearestTiesToEven) {
  const auto half = [](float value) {
    return decoded(ElementType::kF16, encoded(ElementType::kF16, value).bits);
  };
  EXPECT_EQ(half(1 + 0x1p-11F), 1.0F);
  EXPECT_EQ(half(1 + 0x1.8p-11F), 1 + 0x1p-10F);
  EXPECT_EQ(half(1 + 3 * 0x1p-11F), 1 + 2 * 0x1p-10F);
  EXPECT_EQ(half(0x1p-25F), 0.0F);
  EXPECT_EQ(half(0x1.1p-25F), 0x1p-24F);
  EXPECT_EQ(half(-3 * 0x1p-25F), -2 * 0x1p-24F);
  EXPECT_EQ(half(0x1.ff9p-15F), 0x1.ff8p-15F);  // the largest subnormals
  EXPECT_EQ(half(0x1.fffp-15F), 0x1p-14F);
  const auto brain = [](float value) {
    return decoded(ElementType::kBf16, encoded(ElementType::kBf16, value).bits);
  };
  EXPECT_EQ(brain(1 + 0x1p-8F), 1.0F);
  EXPECT_EQ(brain(1 + 0x1.01p-8F), 1 + 0x1p-7F);
  EXPECT_EQ(brain(-(1 + 3 * 0x1p-8F)), -(1 + 2 * 0x1p-7F));
}

TEST(FloatCodec, ReportsValuesBeyondTheRange) {
  EXPECT_TRUE(encoded(ElementType::kF16, 65519.9F).fits);
  EXPECT_FALSE(encoded(ElementType::kF16, 65520.0F).fits);
  EXPECT_FALSE(encoded(ElementType::kF16, -1e30F).fits);
  EXPECT_TRUE(encoded(ElementType::kBf16, 3.38e38F).fits);
  EXPECT_FALSE(encoded(ElementType::kBf16, std::numeric_limits<float>::max()).fits);
}

}  // namespace
}  // namespace stablemask::interop
