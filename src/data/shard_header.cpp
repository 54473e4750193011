#include "src/data/shard_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>

#include "stablemask/base/error.h"
#include "stablemask/base/sha256.h"

namespace stablemask {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are read and written in place");

constexpr size_t kHashBytes = ShardHeader::kHashBytes;
constexpr uint64_t kMaxCount = uint64_t{1} << 48;  // keeps every size below far from overflow

uint64_t up_to_eight(uint64_t bytes) { return (bytes + 7) / 8 * 8; }

void hex_to_bytes(const std::string& hex, unsigned char (&bytes)[kHashBytes]) {
  const auto digit = [&](char c) -> unsigned {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
    throw DataError("\"" + hex + "\" is not a SHA-256");
  };
  if (hex.size() != 2 * kHashBytes) throw DataError("\"" + hex + "\" is not a SHA-256");
  for (size_t i = 0; i < kHashBytes; ++i) {
    bytes[i] = static_cast<unsigned char>(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
  }
}

std::string bytes_to_hex(const unsigned char (&bytes)[kHashBytes]) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const unsigned char byte : bytes) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

std::string header_hash(const ShardHeader& header) {
  return sha256_hex(&header, offsetof(ShardHeader, header_hash));
}

template <typename Range>
bool all_zero(const Range& range) {
  return std::all_of(std::begin(range), std::end(range), [](auto byte) { return byte == 0; });
}

/// Lower-case letters, digits and hyphens, then zeros.
bool is_template_name(const char (&name)[16]) {
  const auto* const end = std::find(std::begin(name), std::end(name), '\0');
  return end != std::begin(name) &&
         std::all_of(
             std::begin(name), end,
             [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; }) &&
         std::all_of(end, std::end(name), [](char c) { return c == 0; });
}

const char* sample_problem(const ShardHeader& header) {
  if (header.version == kTextShardVersion) {
    return header.trained == 0 && all_zero(header.sample_template)
               ? nullptr
               : "its reserved bytes are not zero";
  }
  if (!is_template_name(header.sample_template)) return "its template has no name";
  if (header.documents == 0) return "it has no samples";
  if (header.trained == 0) return "none of its tokens is a training target";
  // The first token of a sample is predicted from nothing.
  if (header.trained > header.tokens - header.documents) {
    return "its counts contradict each other";
  }
  return nullptr;
}

}  // namespace

uint32_t token_bytes_for(uint64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

ShardLayout::ShardLayout(const ShardInfo& info)
    : tokens_end(sizeof(ShardHeader) + info.tokens * info.token_bytes),
      documents(sizeof(ShardHeader) + up_to_eight(info.tokens * info.token_bytes)),
      trained(documents + info.documents * sizeof(uint64_t)),
      end(info.has_samples() ? trained + up_to_eight((info.tokens + 7) / 8) : trained) {}

ShardHeader make_shard_header(const ShardInfo& info) {
  ShardHeader header{};
  std::memcpy(header.magic, kShardMagic, sizeof(kShardMagic));
  header.version = info.version;
  header.header_bytes = sizeof(ShardHeader);
  header.token_bytes = info.token_bytes;
  header.vocab_size = info.vocab_size;
  header.tokens = info.tokens;
  header.lines = info.lines;
  header.words = info.words;
  header.bytes = info.bytes;
  header.documents = info.documents;
  header.trained = info.trained;
  if (info.sample_template.size() > sizeof(header.sample_template)) {
    throw DataError("\"" + info.sample_template + "\" is too long for a template's name");
  }
  std::copy(info.sample_template.begin(), info.sample_template.end(), header.sample_template);
  hex_to_bytes(info.tokenizer_sha256, header.tokenizer_hash);
  hex_to_bytes(info.text_sha256, header.text_hash);
  hex_to_bytes(info.payload_sha256, header.payload_hash);
  hex_to_bytes(header_hash(header), header.header_hash);
  return header;
}

ShardInfo shard_info(const ShardHeader& header) {
  ShardInfo info;
  info.version = header.version;
  info.token_bytes = header.token_bytes;
  info.vocab_size = header.vocab_size;
  info.tokenizer_sha256 = bytes_to_hex(header.tokenizer_hash);
  info.tokens = header.tokens;
  info.lines = header.lines;
  info.words = header.words;
  info.bytes = header.bytes;
  info.documents = header.documents;
  info.text_sha256 = bytes_to_hex(header.text_hash);
  info.payload_sha256 = bytes_to_hex(header.payload_hash);
  info.trained = header.trained;
  info.sample_template.assign(
      header.sample_template,
      std::find(std::begin(header.sample_template), std::end(header.sample_template), '\0'));
  return info;
}

const char* shard_header_problem(const ShardHeader& header, uint64_t file_bytes) {
  if (header_hash(header) != bytes_to_hex(header.header_hash)) {
    return "its header is damaged (hash differs)";
  }
  if (header.header_bytes != sizeof(ShardHeader)) return "its header has another size";
  // A later version may use them.
  if (header.zero != 0 || !all_zero(header.zeros)) return "its reserved bytes are not zero";
  if (header.vocab_size == 0 || header.vocab_size > (uint64_t{1} << 31)) {
    return "its vocabulary size is out of range";
  }
  if (header.token_bytes != token_bytes_for(header.vocab_size)) {
    return "its token type does not fit its vocabulary";
  }
  if (header.tokens == 0) return "it has no tokens";
  if (header.tokens > kMaxCount || header.bytes > kMaxCount) return "its counts are out of range";
  if (header.lines > header.tokens || header.documents > header.tokens ||
      header.lines > header.bytes || header.words > header.bytes) {
    return "its counts contradict each other";
  }
  if (const char* problem = sample_problem(header)) return problem;
  const uint64_t expected = ShardLayout(shard_info(header)).end;
  if (file_bytes < expected) return "it is truncated";
  if (file_bytes > expected) return "it has bytes after its end";
  return nullptr;
}

}  // namespace stablemask
