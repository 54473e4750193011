#include "src/interop/float_codec.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace stablemask::interop {
namespace {

float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// IEEE binary16: 1 bit of sign, 5 of exponent (bias 15), 10 of mantissa.
float from_fp16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f, mantissa = bits & 0x3ff;
  if (exponent == 0) {
    const float value = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -value : value;
  }
  const uint32_t wide = exponent == 0x1f ? 0xff : exponent + (127 - 15);
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

uint16_t to_fp16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0F) return sign | 0x7c00;  // rounds to 65536, beyond the largest
  if (magnitude < 0x1p-14F) {                       // subnormal: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24F)));
  }
  const uint32_t rebased = (bits & 0x7fffffff) - (uint32_t{127 - 15} << 23);
  return static_cast<uint16_t>(sign | ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13));
}

template <float (*decode)(uint16_t)>
void decode_all(const void* from, size_t count, float* to) {
  const auto* at = static_cast<const char*>(from);
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, at + i * sizeof bits, sizeof bits);
    to[i] = decode(bits);
  }
}

template <uint16_t (*encode)(float), float (*decode)(uint16_t)>
bool encode_all(const float* from, size_t count, void* to) {
  auto* at = static_cast<char*>(to);
  bool fits = true;
  for (size_t i = 0; i < count; ++i) {
    const uint16_t bits = encode(from[i]);
    std::memcpy(at + i * sizeof bits, &bits, sizeof bits);
    fits = fits && (std::isfinite(decode(bits)) || !std::isfinite(from[i]));
  }
  return fits;
}

}  // namespace

bool is_float(ElementType type) {
  return type == ElementType::kF32 || type == ElementType::kBf16 || type == ElementType::kF16;
}

void decode_floats(ElementType type, const void* from, size_t count, float* to) {
  if (count == 0) return;
  switch (type) {
    case ElementType::kF32:
      std::memcpy(to, from, count * sizeof(float));
      return;
    case ElementType::kBf16:
      return decode_all<from_bf16>(from, count, to);
    case ElementType::kF16:
      return decode_all<from_fp16>(from, count, to);
    default:
      throw std::logic_error("decode_floats: no float type");
  }
}

bool encode_floats(ElementType type, const float* from, size_t count, void* to) {
  if (count == 0) return true;
  switch (type) {
    case ElementType::kF32:
      std::memcpy(to, from, count * sizeof(float));
      return true;
    case ElementType::kBf16:
      return encode_all<to_bf16, from_bf16>(from, count, to);
    case ElementType::kF16:
      return encode_all<to_fp16, from_fp16>(from, count, to);
    default:
      throw std::logic_error("encode_floats: no float type");
  }
}

}  // namespace stablemask::interop
