#pragma once

#include <cstddef>
#include <string>

#include "stablemask/io/safetensors.h"

namespace stablemask::interop {

/// Whether the elements are numbers of 32 or 16 bits: F32, BF16, F16.
bool is_float(ElementType type);

/// fp32 values of `count` elements of a type that is_float accepts; exact. `from` may be unaligned.
void decode_floats(ElementType type, const void* from, size_t count, float* to);

/// The reverse, rounded to the nearest value, ties to even. Returns false when a finite value is
/// beyond the type's range.
bool encode_floats(ElementType type, const float* from, size_t count, void* to);

}  // namespace stablemask::interop
