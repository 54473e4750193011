// A token shard on disk. All numbers little-endian; hashes are raw SHA-256.
//
//   offset  bytes  field
//        0      8  magic "SMTOKENS"
//        8      4  version: 1, text; 2, samples, of which some tokens are training targets
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
//      168      8  version 2: tokens that are training targets; version 1: zero
//      176     16  version 2: name of the template, zeros after it; version 1: zero
//      192     32  zero
//      224     32  hash of the 224 bytes before
//      256         tokens, each of `token bytes`
//                  zeros up to a multiple of 8
//                  documents, each 8: index of the document's first token, ascending; a sample of
//                  version 2 is a document, and the first begins at token 0
//                  version 2: bit i % 8 (1: 1 << 0) of byte i / 8 is set when token i is a training
//                  target, which the first of a sample is not; zeros up to a multiple of 8 bytes
//
// The file ends there. Opening checks the header and the document starts; `verify` checks the
// payload. Tokens are read with pread, not mapped: access to a mapping of a file that another
// process shortens ends the process with SIGBUS.
#include "stablemask/data/shards.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "src/data/shard_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/output.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"

namespace stablemask {

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

  /// The bits, in `size` bytes, and their count.
  void write_trained(uint64_t size) {
    std::vector<unsigned char> bits(size);
    for (size_t i = 0; i < trained.size(); ++i) {
      if (!trained[i]) continue;
      bits[i / 8] |= static_cast<unsigned char>(1U << i % 8);
      ++info.trained;
    }
    write_payload(bits.data(), bits.size());
    info.version = kSampleShardVersion;
  }

  OutputFile file;
  ShardInfo info;
  Sha256 payload_hash;
  std::vector<uint64_t> document_starts;
  std::vector<uint16_t> narrow;  // reused by append
  std::vector<bool> trained;     // of each token, when there are samples
  bool document_pending = false;
};

ShardWriter::ShardWriter(const std::string& path, uint64_t vocab_size,
                         const std::string& tokenizer_sha256)
    : state_(std::make_unique<State>(path, vocab_size, tokenizer_sha256)) {
  const ShardHeader placeholder{};  // `finish` overwrites it
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

void ShardWriter::append(const std::vector<int32_t>& tokens, const std::vector<bool>& trained) {
  if (tokens.empty()) return;
  const bool begins = state_->document_pending;
  if (trained.size() != tokens.size() || state_->trained.size() != state_->info.tokens ||
      (state_->trained.empty() && !begins) || (begins && trained.front())) {
    throw DataError(state_->file.path() +
                    ": every token of a shard of samples belongs to a sample and is a training "
                    "target or not; the first token of a sample is none");
  }
  append(tokens);
  state_->trained.insert(state_->trained.end(), trained.begin(), trained.end());
}

void ShardWriter::begin_document() { state_->document_pending = true; }

ShardInfo ShardWriter::finish(const ShardInfo& counts) {
  ShardInfo& info = state_->info;
  if (info.tokens == 0) {
    throw DataError(state_->file.path() + ": no tokens to write; the text is empty");
  }
  const std::vector<uint64_t>& starts = state_->document_starts;
  info.documents = starts.size();
  info.sample_template = counts.sample_template;
  if (info.has_samples() != (state_->trained.size() == info.tokens)) {
    throw DataError(state_->file.path() +
                    ": samples have a template and training targets, "
                    "text has neither");
  }
  const ShardLayout layout(info);
  const uint64_t zeros = 0;
  state_->write_payload(&zeros, layout.documents - layout.tokens_end);
  if (!starts.empty()) state_->write_payload(starts.data(), starts.size() * sizeof(uint64_t));
  if (info.has_samples()) state_->write_trained(layout.end - layout.trained);

  info.lines = counts.lines;
  info.words = counts.words;
  info.bytes = counts.bytes;
  info.text_sha256 = counts.text_sha256;
  info.payload_sha256 = state_->payload_hash.hex();
  const ShardHeader header = make_shard_header(info);
  if (const char* problem = shard_header_problem(header, layout.end)) {
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

  void require_range(int64_t begin, int64_t count) const {
    if (begin >= 0 && count >= 0 && begin <= static_cast<int64_t>(info.tokens) - count) return;
    throw DataError(format("shard %s has no %lld tokens from %lld on", path.c_str(),
                           static_cast<long long>(count), static_cast<long long>(begin)));
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
  if (file.size() < sizeof(ShardHeader)) {
    fail(file.size() == 0 ? "it is empty" : "it is too short for a header");
  }
  ShardHeader header;
  file.read(0, &header, sizeof(header));
  if (std::memcmp(header.magic, kShardMagic, sizeof(kShardMagic)) != 0) {
    fail("it is not a token shard");
  }
  const std::string versions = format("it has version %u, this program reads %u and %u",
                                      header.version, kTextShardVersion, kSampleShardVersion);
  if (header.version > kSampleShardVersion) {
    fail("it was written by a newer version of the program: " + versions);
  }
  if (header.version < kTextShardVersion) fail(versions);
  if (const char* problem = shard_header_problem(header, file.size())) fail(problem);
  info = shard_info(header);
}

void Shard::State::read_document_starts() {
  document_starts.resize(info.documents);
  file.read(ShardLayout(info).documents, document_starts.data(), info.documents * sizeof(uint64_t));
  int64_t previous = -1;
  for (const int64_t start : document_starts) {
    if (start <= previous || start >= static_cast<int64_t>(info.tokens)) {
      fail("its document starts are damaged");
    }
    previous = start;
  }
  if (info.has_samples() && document_starts.front() != 0) fail("its first sample is damaged");
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
  char magic[sizeof(kShardMagic)] = {};
  if (file.size() < sizeof(magic)) return false;
  file.read(0, magic, sizeof(magic));
  return std::memcmp(magic, kShardMagic, sizeof(magic)) == 0;
} catch (const DataError&) {
  return false;
}

const ShardInfo& Shard::info() const { return state_->info; }
uint64_t Shard::payload_bytes() const {
  return ShardLayout(state_->info).end - sizeof(ShardHeader);
}
const std::string& Shard::path() const { return state_->path; }
int64_t Shard::size() const { return static_cast<int64_t>(state_->info.tokens); }
const std::vector<int64_t>& Shard::document_starts() const { return state_->document_starts; }

int32_t Shard::token(int64_t index) const {
  int64_t token = 0;
  read(index, 1, &token);
  return static_cast<int32_t>(token);
}

void Shard::read(int64_t begin, int64_t count, int64_t* out) const {
  state_->require_range(begin, count);
  // The packed tokens go to the end of `out` and are widened from its front: token i is read before
  // out[i] or anything behind it is written.
  const uint64_t token_bytes = state_->info.token_bytes;
  const auto n = static_cast<size_t>(count);
  char* packed = reinterpret_cast<char*>(out + count) - n * token_bytes;
  state_->file.read(sizeof(ShardHeader) + static_cast<uint64_t>(begin) * token_bytes, packed,
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

std::vector<bool> Shard::read_trained(int64_t begin, int64_t count) const {
  state_->require_range(begin, count);
  std::vector<bool> trained(static_cast<size_t>(count), !state_->info.has_samples());
  if (count == 0 || !state_->info.has_samples()) return trained;
  const auto first = static_cast<uint64_t>(begin) / 8;
  const auto last = static_cast<uint64_t>(begin + count - 1) / 8;
  std::vector<unsigned char> bits(last - first + 1);
  state_->file.read(ShardLayout(state_->info).trained + first, bits.data(), bits.size());
  for (size_t i = 0; i < trained.size(); ++i) {
    const size_t bit = static_cast<size_t>(begin) % 8 + i;
    trained[i] = (bits[bit / 8] >> bit % 8 & 1) != 0;
  }
  return trained;
}

/// Calls `read_block` with the size of each block before it is hashed.
template <typename ReadBlock>
void Shard::State::verify(ReadBlock read_block) const {
  constexpr uint64_t kBlock = uint64_t{1} << 20;  // in the cache for the hash and the range check
  const ShardLayout layout(info);
  const uint64_t token_end = layout.tokens_end - sizeof(ShardHeader);
  const uint64_t trained_begin = layout.trained - sizeof(ShardHeader);
  const uint64_t end = layout.end - sizeof(ShardHeader);
  Sha256 hash;
  uint64_t largest = 0;
  uint64_t trained = 0;
  std::vector<char> block(std::min(kBlock, end));
  for (uint64_t at = 0; at < end; at += kBlock) {
    const uint64_t size = std::min(kBlock, end - at);
    read_block(size);
    file.read(sizeof(ShardHeader) + at, block.data(), size);
    hash.update(block.data(), size);
    const uint64_t tokens_here = std::min(size, token_end - std::min(at, token_end));
    largest = std::max(largest, largest_token(block.data(), tokens_here, info.token_bytes));
    for (uint64_t i = std::max(at, trained_begin) - at; i < size; ++i) {
      trained += static_cast<uint64_t>(std::popcount(static_cast<unsigned char>(block[i])));
    }
  }
  if (hash.hex() != info.payload_sha256) fail("its payload is damaged (hash differs)");
  require_in_vocabulary(largest);
  if (trained != info.trained) fail("its training targets are not as many as its header says");
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
