#include "src/io/file.h"

#include <algorithm>
#include <vector>

namespace stablemask {
namespace {

// Small enough to be hashed and written, or read and hashed, while it is in the cache.
constexpr size_t kChunkBytes = size_t{1} << 20;

}  // namespace

void HashedFile::write(const void* data, size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const size_t chunk = std::min(size, kChunkBytes);
    hash_.update(at, chunk);
    file_.write(at, chunk);
    at += chunk;
    size -= chunk;
    bytes_ += chunk;
  }
}

FileDigest HashedFile::finish() {
  file_.finish();
  return {bytes_, hash_.hex()};
}

FileDigest digest_of(const InputFile& file, const std::function<void(uint64_t bytes)>& read_bytes) {
  Sha256 hash;
  std::vector<char> buffer(std::min<uint64_t>(file.size(), kChunkBytes));
  for (uint64_t offset = 0; offset < file.size();) {
    const size_t chunk = std::min<uint64_t>(file.size() - offset, buffer.size());
    file.read(offset, buffer.data(), chunk);
    hash.update(buffer.data(), chunk);
    offset += chunk;
    if (read_bytes) read_bytes(chunk);
  }
  return {file.size(), hash.hex()};
}

}  // namespace stablemask
