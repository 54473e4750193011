#include "tests/fuzz/shard_file.h"

#include <algorithm>
#include <cstring>

#include "stablemask/base/sha256.h"

namespace stablemask::fuzz {
namespace {

constexpr size_t kHeaderBytes = 256;

template <typename Number>
void put(std::string& file, size_t offset, Number number) {
  std::memcpy(file.data() + offset, &number, sizeof number);
}

void put_hash(std::string& file, size_t offset, std::string_view hashed) {
  const std::string hex = sha256_hex(hashed.data(), hashed.size());
  for (size_t i = 0; i < 32; ++i) {
    file[offset + i] = static_cast<char>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  }
}

/// What a description does to the file; several at a time.
enum Damage : uint8_t {
  kPayloadSize = 1,  // bytes too many or too few
  kPayloadHash = 2,
  kHeaderHash = 4,
  kTokenizer = 8,   // not the one of other shards
  kRawTokens = 16,  // also beyond the vocabulary
  kRawStarts = 32,  // document starts in any order
  kHugeCounts = 64,
  kField = 128,  // one of the fixed fields
};

void damage_field(std::string& file, uint8_t which) {
  const size_t offsets[] = {0, 8, 12, 16, 20, 24, 168, 223};
  file[offsets[which % std::size(offsets)]] ^= static_cast<char>(which | 1);
}

std::string make_payload(uint64_t tokens, uint32_t width, uint64_t vocab, uint64_t documents,
                         std::string_view contents, uint8_t damage) {
  std::string payload((tokens * width + 7) / 8 * 8 + documents * 8, '\0');
  const auto byte_at = [&](uint64_t i) -> uint32_t {
    return contents.empty() ? 0 : static_cast<unsigned char>(contents[i % contents.size()]);
  };
  for (uint64_t i = 0; i < tokens; ++i) {
    uint32_t token = byte_at(2 * i) | byte_at(2 * i + 1) << 8 | byte_at(3 * i) << 16;
    if (!(damage & kRawTokens)) token %= static_cast<uint32_t>(std::max<uint64_t>(vocab, 1));
    std::memcpy(payload.data() + i * width, &token, width);
  }
  uint64_t start = 0;
  for (uint64_t i = 0; i < documents; ++i) {
    const uint64_t step = byte_at(i);
    start = damage & kRawStarts ? step : i == 0 ? step % 2 : start + 1 + step % 4;
    std::memcpy(payload.data() + payload.size() - (documents - i) * 8, &start, 8);
  }
  return payload;
}

/// The fields and the bits of version 2. A sound shard begins with a sample.
void add_targets(std::string& file, uint64_t tokens, uint64_t documents, std::string_view contents,
                 uint8_t damage) {
  if (!(damage & kRawStarts)) {
    uint64_t start = 0;
    std::memcpy(file.data() + file.size() - documents * 8, &start, 8);
  }
  std::string bits((tokens + 63) / 64 * 8, '\0');
  uint64_t trained = 0;
  for (uint64_t i = 1; i < tokens; ++i) {
    const char byte = contents.empty() ? '\1' : contents[i % contents.size()];
    if (byte % 2 == 0 && !(damage & kRawStarts)) continue;
    bits[i / 8] = static_cast<char>(bits[i / 8] | 1 << i % 8);
    ++trained;
  }
  file += bits;
  put(file, 168, trained);
  std::memcpy(file.data() + 176, "prompt", 6);
}

}  // namespace

void seal_shard(std::string& file, bool payload, bool header) {
  if (file.size() < kHeaderBytes) return;
  if (payload) put_hash(file, 136, std::string_view(file).substr(kHeaderBytes));
  if (header) put_hash(file, 224, std::string_view(file).substr(0, 224));
}

std::string make_shard(Numbers& description, std::string_view contents) {
  const uint8_t damage = description.byte();
  const uint8_t which = description.byte();
  uint64_t vocab = description.integer(3);
  const uint64_t tokens = description.integer(2) % 300;
  const uint64_t documents = description.byte();
  const uint64_t lines = description.byte();
  const uint64_t words = description.byte();
  const uint64_t bytes = description.integer(2);
  // A shard of samples, when the description has room for it: its last bit decides.
  const bool samples = documents > 0 && bytes % 4 == 3;
  const uint32_t width = vocab <= 65536 ? 2 : 4;
  std::string file(kHeaderBytes, '\0');
  std::memcpy(file.data(), "SMTOKENS", 8);
  put(file, 8, samples ? uint32_t{2} : uint32_t{1});
  put(file, 12, static_cast<uint32_t>(kHeaderBytes));
  put(file, 16, width);
  put(file, 24, vocab);
  const uint64_t huge = damage & kHugeCounts ? uint64_t{which} << (which % 64) : 0;
  put(file, 32, tokens + huge);
  put(file, 40, lines);
  put(file, 48, words);
  put(file, 56, bytes);
  put(file, 64, which % 2 ? documents + huge : documents);
  file[72] = static_cast<char>(damage & kTokenizer ? which : 0);
  file += make_payload(tokens, width, vocab, documents, contents, damage);
  if (samples) add_targets(file, tokens, documents, contents, damage);
  if (damage & kPayloadSize) file.resize(file.size() - std::min<size_t>(which, 64) + 32);
  if (damage & kField) damage_field(file, which);
  seal_shard(file, !(damage & kPayloadHash), !(damage & kHeaderHash));
  return file;
}

}  // namespace stablemask::fuzz
