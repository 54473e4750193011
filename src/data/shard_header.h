#pragma once

#include <cstddef>
#include <cstdint>

#include "stablemask/data/shards.h"

namespace stablemask {

constexpr char kShardMagic[8] = {'S', 'M', 'T', 'O', 'K', 'E', 'N', 'S'};
constexpr uint32_t kTextShardVersion = 1;
constexpr uint32_t kSampleShardVersion = 2;

/// The first bytes of a shard; src/data/shards.cpp documents them.
struct ShardHeader {
  static constexpr size_t kHashBytes = 32;

  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint32_t token_bytes;
  uint32_t zero;
  uint64_t vocab_size;
  uint64_t tokens;
  uint64_t lines;
  uint64_t words;
  uint64_t bytes;
  uint64_t documents;
  unsigned char tokenizer_hash[kHashBytes];
  unsigned char text_hash[kHashBytes];
  unsigned char payload_hash[kHashBytes];
  uint64_t trained;
  char sample_template[16];
  unsigned char zeros[32];
  unsigned char header_hash[kHashBytes];
};
static_assert(sizeof(ShardHeader) == 256 && offsetof(ShardHeader, header_hash) == 224);

/// Throws DataError for a hash that is not one, and for a template's name that does not fit.
ShardHeader make_shard_header(const ShardInfo& info);
ShardInfo shard_info(const ShardHeader& header);

/// The first problem of a header of a version that this program reads, in a file of this size, or
/// nullptr.
const char* shard_header_problem(const ShardHeader& header, uint64_t file_bytes);

uint32_t token_bytes_for(uint64_t vocab_size);

/// Offsets in a shard file, and its size.
struct ShardLayout {
  explicit ShardLayout(const ShardInfo& info);

  uint64_t tokens_end;  ///< without the zeros after them
  uint64_t documents;
  uint64_t trained;  ///< the bits; the end of the file when there are none
  uint64_t end;
};

}  // namespace stablemask
