#pragma once

#include <cstdint>

/// Rounds fp32 matrices to bf16 in the layouts that CPU instructions for bf16 multiply: two numbers
/// that follow each other in the summed dimension are one 32-bit word, the first in the low half.
/// Single-threaded, no framework types.
namespace stablemask::ops::cpu::bf16 {

/// A matrix as words: word (i, j) is the pair (x[i][2j], x[i][2j+1]) or, `down`, (x[2i][j],
/// x[2i+1][j]). A number that an odd size lacks is 0.
struct Words {
  const float* x;
  int64_t rows, cols;  ///< of x
  int64_t stride;      ///< from row to row of x
  bool down;

  int64_t height() const { return down ? (rows + 1) / 2 : rows; }
  int64_t width() const { return down ? cols : (cols + 1) / 2; }
};

/// Writes out[i][j] = word (i, j), or, `transposed`, out[j][i], rows of `out` being `stride` words
/// apart. On a CPU with instructions for bf16, numbers below the smallest normal one become 0, as
/// which its products take them.
void pack(const Words& words, uint32_t* out, int64_t stride, bool transposed);

}  // namespace stablemask::ops::cpu::bf16
