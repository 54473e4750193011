#pragma once

#include <cstdint>

/// Tensor-core instructions of a warp group (wgmma) and matrix fragment moves between registers and
/// shared memory. Source: PTX ISA 9.0, "wgmma", "ldmatrix", "stmatrix".

namespace stablemask::ops::cuda::hopper {

/// wgmma descriptor of a matrix in shared memory: rows of 128 bytes in the 128-byte swizzle, 8 rows
/// every 1,024 bytes. `leading`: for an MN-major operand the distance in bytes from one group of 64
/// columns to the next; ignored for a K-major one.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t leading) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(address) | field(leading) << 16 | field(1024) << 32 | uint64_t{1} << 62;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

#define STABLEMASK_R8(i)                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define STABLEMASK_R64(i)                                                               \
  STABLEMASK_R8(i), STABLEMASK_R8(i + 8), STABLEMASK_R8(i + 16), STABLEMASK_R8(i + 24), \
      STABLEMASK_R8(i + 32), STABLEMASK_R8(i + 40), STABLEMASK_R8(i + 48), STABLEMASK_R8(i + 56)

/// wgmma of a kind with 128 accumulators: descriptors %128 and %129, %130: whether it adds.
#define STABLEMASK_WGMMA(kind, options)                                                            \
  "{\n"                                                                                            \
  ".reg .pred p;\n"                                                                                \
  "setp.ne.b32 p, %130, 0;\n"                                                                      \
  "wgmma.mma_async.sync.aligned.m64n256" kind                                                      \
  " {"                                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "               \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "               \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "   \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
  "}, %128, %129, p, 1, 1" options                                                                 \
  ";\n"                                                                                            \
  "}\n"

/// d (+)= a·b for 64 x 16 by 16 x 256, bf16 to fp32, by a warp group. Lane l of warp w holds
/// columns 8j + 2(l%4) (+ 1) of row 16w + l/4 (+ 8): d[4j + 2·(+8) + (+1)]. kMnMajorB: b is stored
/// [K, N] in groups of 64 columns.
template <bool kMnMajorB>
__device__ __forceinline__ void wgmma_64x256x16(float (&d)[128], uint64_t a, uint64_t b,
                                                int accumulate) {
  asm volatile(STABLEMASK_WGMMA("k16.f32.bf16.bf16", ", 0, %131")
               : STABLEMASK_R64(0), STABLEMASK_R64(64)
               : "l"(a), "l"(b), "r"(accumulate), "n"(kMnMajorB ? 1 : 0));
}

/// The same for 64 x 32 by 32 x 256 of e4m3, both K-major.
__device__ __forceinline__ void wgmma_64x256x32(float (&d)[128], uint64_t a, uint64_t b,
                                                int accumulate) {
  asm volatile(STABLEMASK_WGMMA("k32.f32.e4m3.e4m3", "")
               : STABLEMASK_R64(0), STABLEMASK_R64(64)
               : "l"(a), "l"(b), "r"(accumulate));
}

/// Compiler barrier after the wait for the last wgmma: no read of the accumulators moves before it.
__device__ __forceinline__ void fence_accumulators(float (&d)[128]) {
  asm volatile("" : STABLEMASK_R64(0), STABLEMASK_R64(64)::"memory");
}

#undef STABLEMASK_WGMMA
#undef STABLEMASK_R64
#undef STABLEMASK_R8

__device__ __forceinline__ void store_word(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

/// Four 8 x 8 fragments of bf16 from and to shared memory; each lane gives the address of one
/// 16-byte row.
__device__ __forceinline__ void load_fragments(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void store_fragments(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// The transpose of an 8 x 8 fragment of bf16.
__device__ __forceinline__ uint32_t transposed_fragment(uint32_t r) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(r));
  return result;
}

}  // namespace stablemask::ops::cuda::hopper
