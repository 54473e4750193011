#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/data/shards.h"

namespace stablemask::testing {

/// Writes a shard of `ids`; documents begin at the positions `documents`. Its hashes are invented.
inline Shard text_shard(const std::string& path, int64_t vocabulary,
                        const std::vector<int32_t>& ids, const std::vector<int64_t>& documents) {
  ShardWriter writer(path, vocabulary, std::string(64, '0'));
  auto next = documents.begin();
  for (int64_t i = 0; i < static_cast<int64_t>(ids.size()); ++i) {
    if (next != documents.end() && *next == i) {
      writer.begin_document();
      ++next;
    }
    writer.append({ids[i]});
  }
  ShardInfo counts;
  counts.lines = 3;
  counts.words = 40;
  counts.bytes = 230;
  counts.text_sha256 = std::string(64, '1');
  writer.finish(counts);
  return Shard::open(path);
}

}  // namespace stablemask::testing
