// A token shard on disk. All numbers little-endian; hashes are raw SHA-256.
//
//   offset  bytes  field
//        0      8  magic "SMTOKENS"
//        8      4  version, 1
//       12      4  header bytes, 256
//       16      4  token bytes, 2 or 4: 2 exactly when the vocabulary has at most 65,536 pieces
//       20      4  zero
//       24      8  vocabulary size
//       32      8  tokens
//       40      8  lines (ends of line, each one EOS token)
//       48      8  words
//       56      8  bytes of the text
//       64      8  documents
//       72     32  hash of the tokenizer's model file
//      104     32  hash of the text
//      136     32  hash of the payload: everything after the header
//      168     56  zero
//      224     32  hash of the 224 bytes before
//      256         tokens, each of `token bytes`
//                  zeros up to a multiple of 8
//                  documents, each 8: index of the document's first token, ascending
//
// The file ends there. Opening checks the header and the document starts; `verify` checks the
// payload. Tokens are read with pread, not mapped: access to a mapping of a file that another
// process shortens ends the process with SIGBUS.
#include "stablemask/data/shards.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/output.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are read and written in place");

constexpr char kMagic[8] = {'S', 'M', 'T', 'O', 'K', 'E', 'N', 'S'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHashBytes = 32;
constexpr uint64_t kMaxCount = uint64_t{1} << 48;  // keeps every size below far from overflow

struct Header {
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
  unsigned char zeros[56];
  unsigned char header_hash[kHashBytes];
};
static_assert(sizeof(Header) == 256 && offsetof(Header, header_hash) == 224);

uint32_t token_bytes_for(uint64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

uint64_t padded_token_bytes(uint64_t tokens, uint32_t token_bytes) {
  return (tokens * token_bytes + 7) / 8 * 8;
}

/// Everything after the header.
uint64_t bytes_of_payload(const ShardInfo& info) {
  return padded_token_bytes(info.tokens, info.token_bytes) + info.documents * sizeof(uint64_t);
}

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

std::string header_hash(const Header& header) {
  return sha256_hex(&header, offsetof(Header, header_hash));
}

Header make_header(const ShardInfo& info) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = info.version;
  header.header_bytes = sizeof(Header);
  header.token_bytes = info.token_bytes;
  header.vocab_size = info.vocab_size;
  header.tokens = info.tokens;
  header.lines = info.lines;
  header.words = info.words;
  header.bytes = info.bytes;
  header.documents = info.documents;
  hex_to_bytes(info.tokenizer_sha256, header.tokenizer_hash);
  hex_to_bytes(info.text_sha256, header.text_hash);
  hex_to_bytes(info.payload_sha256, header.payload_hash);
  hex_to_bytes(header_hash(header), header.header_hash);
  return header;
}

ShardInfo to_info(const Header& header) {
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
  return info;
}

/// The first problem of a header in a file of this size, or nullptr.
const char* header_problem(const Header& header, uint64_t file_bytes) {
  if (header_hash(header) != bytes_to_hex(header.header_hash)) {
    return "its header is damaged (hash differs)";
  }
  if (header.header_bytes != sizeof(Header)) return "its header has another size";
  // A later version may use them.
  const auto is_zero = [](unsigned char byte) { return byte == 0; };
  if (header.zero != 0 || !std::all_of(std::begin(header.zeros), std::end(header.zeros), is_zero)) {
    return "its reserved bytes are not zero";
  }
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
  const uint64_t expected = sizeof(Header) + padded_token_bytes(header.tokens, header.token_bytes) +
                            header.documents * sizeof(uint64_t);
  if (file_bytes < expected) return "it is truncated";
  if (file_bytes > expected) return "it has bytes after its end";
  return nullptr;
}

}  // namespace

struct ShardWriter::State {
  State(const std::string& path, uint64_t vocab, const std::string& tokenizer)
      : file(path, OutputContent::kPatched, ExitCode::kData) {
    info.vocab_size = vocab;
    info.token_bytes = token_bytes_for(vocab);
    info.tokenizer_sha256 = tokenizer;
  }

  void write_payload(const void* data, size_t size) {
    payload_hash.update(data, size);
    file.write(data, size);
  }

  OutputFile file;
  ShardInfo info;
  Sha256 payload_hash;
  std::vector<uint64_t> document_starts;
  std::vector<uint16_t> narrow;  // reused by append
  bool document_pending = false;
};

ShardWriter::ShardWriter(const std::string& path, uint64_t vocab_size,
                         const std::string& tokenizer_sha256)
    : state_(std::make_unique<State>(path, vocab_size, tokenizer_sha256)) {
  const Header placeholder{};  // `finish` overwrites it
  state_->file.write(&placeholder, sizeof(placeholder));
}

ShardWriter::~ShardWriter() = default;

void ShardWriter::append(const std::vector<int32_t>& tokens) {
  if (tokens.empty()) return;
  for (const int32_t token : tokens) {
    if (token < 0 || static_cast<uint64_t>(token) >= state_->info.vocab_size) {
      throw DataError(format("%s: token %d is not in the vocabulary of %llu",
                             state_->file.path().c_str(), token,
                             static_cast<unsigned long long>(state_->info.vocab_size)));
    }
  }
  if (state_->document_pending) state_->document_starts.push_back(state_->info.tokens);
  state_->document_pending = false;
  if (state_->info.token_bytes == 2) {
    state_->narrow.assign(tokens.begin(), tokens.end());
    state_->write_payload(state_->narrow.data(), state_->narrow.size() * sizeof(uint16_t));
  } else {
    state_->write_payload(tokens.data(), tokens.size() * sizeof(int32_t));
  }
  state_->info.tokens += tokens.size();
}

void ShardWriter::begin_document() { state_->document_pending = true; }

ShardInfo ShardWriter::finish(const ShardInfo& counts) {
  ShardInfo& info = state_->info;
  if (info.tokens == 0) {
    throw DataError(state_->file.path() + ": no tokens to write; the text is empty");
  }
  const uint64_t zeros = 0;
  const uint64_t written = info.tokens * info.token_bytes;
  state_->write_payload(&zeros, padded_token_bytes(info.tokens, info.token_bytes) - written);
  const std::vector<uint64_t>& starts = state_->document_starts;
  if (!starts.empty()) state_->write_payload(starts.data(), starts.size() * sizeof(uint64_t));

  info.lines = counts.lines;
  info.words = counts.words;
  info.bytes = counts.bytes;
  info.documents = starts.size();
  info.text_sha256 = counts.text_sha256;
  info.payload_sha256 = state_->payload_hash.hex();
  const Header header = make_header(info);
  if (const char* problem = header_problem(header, sizeof(Header) + bytes_of_payload(info))) {
    throw DataError(state_->file.path() + ": the shard would be refused: " + problem);
  }
  state_->file.write_at(0, &header, sizeof(header));
  state_->file.commit();
  return info;
}

struct Shard::State {
  explicit State(const std::string& shard_path)
      : path(shard_path), file(shard_path, ExitCode::kData) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw DataError("shard " + path + ": " + what +
                    "; make it again with \"stablemask data prepare\"");
  }
  /// A damaged payload must not become an index beyond the embedding.
  void require_in_vocabulary(uint64_t token) const {
    if (token < info.vocab_size) return;
    fail(format("token id %llu is not in its vocabulary of %llu",
                static_cast<unsigned long long>(token),
                static_cast<unsigned long long>(info.vocab_size)));
  }

  void read_header();
  void read_document_starts();
  template <typename ReadBlock>
  void verify(ReadBlock read_block) const;

  const std::string path;
  const InputFile file;
  ShardInfo info;
  std::vector<int64_t> document_starts;
};

void Shard::State::read_header() {
  if (file.size() < sizeof(Header)) {
    fail(file.size() == 0 ? "it is empty" : "it is too short for a header");
  }
  Header header;
  file.read(0, &header, sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) fail("it is not a token shard");
  if (header.version > kVersion) {
    fail(
        format("it was written by a newer version of the program: it has version %u, this program "
               "reads %u",
               header.version, kVersion));
  }
  if (header.version != kVersion) {
    fail(format("it has version %u, this program reads %u", header.version, kVersion));
  }
  if (const char* problem = header_problem(header, file.size())) fail(problem);
  info = to_info(header);
}

void Shard::State::read_document_starts() {
  document_starts.resize(info.documents);
  file.read(sizeof(Header) + padded_token_bytes(info.tokens, info.token_bytes),
            document_starts.data(), info.documents * sizeof(uint64_t));
  int64_t previous = -1;
  for (const int64_t start : document_starts) {
    if (start <= previous || start >= static_cast<int64_t>(info.tokens)) {
      fail("its document starts are damaged");
    }
    previous = start;
  }
}

namespace {

/// Calls `take` with each of the `count` tokens at `bytes`.
template <typename Token, typename Take>
void for_each_token(const char* bytes, size_t count, Take take) {
  for (size_t i = 0; i < count; ++i) {
    Token token;
    std::memcpy(&token, bytes + i * sizeof(Token), sizeof(Token));
    take(i, token);
  }
}

uint64_t largest_token(const char* bytes, size_t size, uint32_t token_bytes) {
  uint64_t largest = 0;
  const auto take = [&](size_t, uint64_t token) { largest = std::max(largest, token); };
  if (token_bytes == 2) {
    for_each_token<uint16_t>(bytes, size / 2, take);
  } else {
    for_each_token<uint32_t>(bytes, size / 4, take);
  }
  return largest;
}

}  // namespace

Shard::Shard(std::unique_ptr<State> state) : state_(std::move(state)) {}
Shard::Shard(Shard&&) noexcept = default;
Shard& Shard::operator=(Shard&&) noexcept = default;
Shard::~Shard() = default;

Shard Shard::open(const std::string& path) {
  auto state = std::make_unique<State>(path);
  state->read_header();
  state->read_document_starts();
  return Shard(std::move(state));
}

bool Shard::is_shard(const std::string& path) try {
  const InputFile file(path, ExitCode::kData);
  char magic[sizeof(kMagic)] = {};
  if (file.size() < sizeof(magic)) return false;
  file.read(0, magic, sizeof(magic));
  return std::memcmp(magic, kMagic, sizeof(magic)) == 0;
} catch (const DataError&) {
  return false;
}

const ShardInfo& Shard::info() const { return state_->info; }
uint64_t Shard::payload_bytes() const { return bytes_of_payload(state_->info); }
const std::string& Shard::path() const { return state_->path; }
int64_t Shard::size() const { return static_cast<int64_t>(state_->info.tokens); }
const std::vector<int64_t>& Shard::document_starts() const { return state_->document_starts; }

int32_t Shard::token(int64_t index) const {
  int64_t token = 0;
  read(index, 1, &token);
  return static_cast<int32_t>(token);
}

void Shard::read(int64_t begin, int64_t count, int64_t* out) const {
  if (begin < 0 || count < 0 || begin > size() - count) {
    throw DataError(format("shard %s has no %lld tokens from %lld on", path().c_str(),
                           static_cast<long long>(count), static_cast<long long>(begin)));
  }
  // The packed tokens go to the end of `out` and are widened from its front: token i is read before
  // out[i] or anything behind it is written.
  const uint64_t token_bytes = state_->info.token_bytes;
  const auto n = static_cast<size_t>(count);
  char* packed = reinterpret_cast<char*>(out + count) - n * token_bytes;
  state_->file.read(sizeof(Header) + static_cast<uint64_t>(begin) * token_bytes, packed,
                    n * token_bytes);
  uint64_t largest = 0;
  const auto take = [&](size_t i, uint64_t token) {
    largest = std::max(largest, token);
    out[i] = static_cast<int64_t>(token);
  };
  if (token_bytes == 2) {
    for_each_token<uint16_t>(packed, n, take);
  } else {
    for_each_token<uint32_t>(packed, n, take);
  }
  state_->require_in_vocabulary(largest);
}

/// Calls `read_block` with the size of each block before it is hashed.
template <typename ReadBlock>
void Shard::State::verify(ReadBlock read_block) const {
  constexpr uint64_t kBlock = uint64_t{1} << 20;  // in the cache for the hash and the range check
  const uint64_t token_end = info.tokens * info.token_bytes;
  const uint64_t end = bytes_of_payload(info);
  Sha256 hash;
  uint64_t largest = 0;
  std::vector<char> block(std::min(kBlock, end));
  for (uint64_t at = 0; at < end; at += kBlock) {
    const uint64_t size = std::min(kBlock, end - at);
    read_block(size);
    file.read(sizeof(Header) + at, block.data(), size);
    hash.update(block.data(), size);
    const uint64_t tokens_here = std::min(size, token_end - std::min(at, token_end));
    largest = std::max(largest, largest_token(block.data(), tokens_here, info.token_bytes));
  }
  if (hash.hex() != info.payload_sha256) fail("its payload is damaged (hash differs)");
  require_in_vocabulary(largest);
}

void Shard::verify(const std::function<void(uint64_t bytes)>& read_bytes) const {
  uint64_t before = 0;
  state_->verify([&](uint64_t size) {
    check_stop("verifying token shards");
    if (read_bytes && before > 0) read_bytes(before);
    before = size;
  });
  if (read_bytes && before > 0) read_bytes(before);
}

void Shard::verify_again(FileStamps& known) const {
  const FileStamps now = state_->file.stamps();
  if (now == known) return;
  try {
    state_->verify([](uint64_t) {});
  } catch (const DataError&) {
    throw DataError("shard " + path() +
                    ": was overwritten while the run read it; restore the file, or make it again, "
                    "and run the same command, which goes on from the newest checkpoint");
  }
  known = now;
}

const FileStamps& Shard::stamps_at_open() const { return state_->file.stamps_at_open(); }
bool Shard::is_named() const { return state_->file.is_named(); }

void Shard::require_tokenizer(const std::string& tokenizer_sha256) const {
  if (tokenizer_sha256 == state_->info.tokenizer_sha256) return;
  throw DataError("shard " + path() + " was made with another tokenizer (" +
                  state_->info.tokenizer_sha256.substr(0, 12) + "…, not " +
                  tokenizer_sha256.substr(0, 12) + "…); prepare it again with this one");
}

}  // namespace stablemask
