#include "stablemask/base/sha256.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <vector>

#include "src/base/sha256_compress.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace stablemask {
namespace {

constexpr size_t kBlock = 64;

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
alignas(16) constexpr std::array<uint32_t, 64> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t load_big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

#if defined(__x86_64__)
bool cpu_has_sha() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 29))) return false;
  return __builtin_cpu_supports("sse4.1");
}

// The x86 SHA instructions keep the eight words as (a,b,e,f) and (c,d,g,h), highest lane first, and
// do two rounds at a time.
__attribute__((target("sha,sse4.1"))) void compress_sha_ni(uint32_t* digest, const uint8_t* data,
                                                           size_t blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  auto* stored = reinterpret_cast<__m128i*>(digest);
  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(stored), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(stored + 1), 0x1B);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
  for (; blocks > 0; --blocks, data += kBlock) {
    const __m128i abef_before = abef;
    const __m128i cdgh_before = cdgh;
    __m128i w[4];
#pragma GCC unroll 16
    for (int g = 0; g < 16; ++g) {  // four rounds each
      __m128i& now = w[g & 3];
      if (g < 4) {
        now = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + g), swap);
      } else {
        const __m128i last = w[(g + 3) & 3];
        now = _mm_sha256msg1_epu32(now, w[(g + 1) & 3]);
        now = _mm_add_epi32(now, _mm_alignr_epi8(last, w[(g + 2) & 3], 4));
        now = _mm_sha256msg2_epu32(now, last);
      }
      const auto* constants = reinterpret_cast<const __m128i*>(kRound.data()) + g;
      const __m128i sum = _mm_add_epi32(now, _mm_load_si128(constants));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(stored, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(stored + 1, _mm_alignr_epi8(dchg, feba, 8));
}
#endif

}  // namespace

void sha256_compress_portable(uint32_t* digest, const uint8_t* data, size_t blocks) {
  for (; blocks > 0; --blocks, data += kBlock) {
    std::array<uint32_t, 64> w;
    for (size_t t = 0; t < 16; ++t) w[t] = load_big_endian(data + 4 * t);
    for (size_t t = 16; t < 64; ++t) {
      const uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
      const uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
      w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    std::array<uint32_t, 8> v;
    std::copy_n(digest, 8, v.begin());
    // Word n of round t lives in v[(n - t) mod 8]: renaming costs nothing, moving eight words does.
#pragma GCC unroll 8
    for (size_t t = 0; t < 64; ++t) {
      const auto word = [&](size_t n) -> uint32_t& { return v[(n + 64 - t) % 8]; };
      const uint32_t a = word(0), b = word(1), c = word(2);
      const uint32_t e = word(4), f = word(5), g = word(6);
      const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const uint32_t t1 = word(7) + s1 + ((e & f) ^ (~e & g)) + kRound[t] + w[t];
      const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      word(3) += t1;
      word(7) = t1 + s0 + ((a & b) ^ (a & c) ^ (b & c));
    }
    for (size_t k = 0; k < 8; ++k) digest[k] += v[k];
  }
}

Sha256Compress sha256_compress() {
#if defined(__x86_64__)
  if (cpu_has_sha()) return compress_sha_ni;
#endif
  return sha256_compress_portable;
}

struct Sha256::State {
  Sha256Compress compress = sha256_compress();
  // The first 32 bits of the fractional parts of the square roots of the first 8 primes.
  std::array<uint32_t, 8> digest = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, kBlock> pending;  // the first `size % kBlock` bytes wait for a full block
  uint64_t size = 0;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(const void* data, size_t size) {
  if (size == 0) return;
  State& s = *state_;
  const auto* bytes = static_cast<const uint8_t*>(data);
  const size_t held = s.size % kBlock;
  s.size += size;
  if (held > 0) {
    const size_t take = std::min(size, kBlock - held);
    std::memcpy(s.pending.data() + held, bytes, take);
    bytes += take;
    size -= take;
    if (held + take < kBlock) return;
    s.compress(s.digest.data(), s.pending.data(), 1);
  }
  const size_t blocks = size / kBlock;
  s.compress(s.digest.data(), bytes, blocks);
  if (const size_t rest = size % kBlock) {
    std::memcpy(s.pending.data(), bytes + blocks * kBlock, rest);
  }
}

std::string Sha256::hex() {
  const uint64_t bits = state_->size * 8;
  const size_t held = state_->size % kBlock;
  std::array<uint8_t, kBlock + 8> padding = {0x80};  // a one bit, zeros, the length in 64 bits
  const size_t zeros_end = (held < 56 ? 56 : 120) - held;
  update(padding.data(), zeros_end);
  for (size_t k = 0; k < 8; ++k) padding[k] = static_cast<uint8_t>(bits >> (56 - 8 * k));
  update(padding.data(), 8);

  std::string text;
  for (const uint32_t word : state_->digest) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[(word >> shift) & 15];
  }
  return text;
}

std::string sha256_hex(const void* data, size_t size) {
  Sha256 hash;
  hash.update(data, size);
  return hash.hex();
}

std::string sha256_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (!file) throw std::system_error(errno, std::generic_category(), path);
  std::setvbuf(file.get(), nullptr, _IONBF, 0);
  Sha256 hash;
  std::vector<uint8_t> buffer(size_t{1} << 20);
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    hash.update(buffer.data(), count);
  }
  if (std::ferror(file.get())) throw std::system_error(errno, std::generic_category(), path);
  return hash.hex();
}

}  // namespace stablemask
