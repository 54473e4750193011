#pragma once

#include <cstddef>
#include <cstdint>

namespace stablemask {

/// Folds `blocks` blocks of 64 bytes into the eight words of a SHA-256 digest.
using Sha256Compress = void (*)(uint32_t* digest, const uint8_t* data, size_t blocks);

void sha256_compress_portable(uint32_t* digest, const uint8_t* data, size_t blocks);

/// The fastest one that this CPU can run.
Sha256Compress sha256_compress();

}  // namespace stablemask
