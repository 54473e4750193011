#pragma once

// STABLEMASK_SIMD: GCC compiles the function once per instruction set and selects one at load time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STABLEMASK_SIMD \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define STABLEMASK_SIMD
#endif
/// A loop that is compiled for the instruction set of the function that calls it.
#define STABLEMASK_SIMD_PART __attribute__((always_inline)) inline
