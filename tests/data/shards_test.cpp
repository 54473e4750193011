#include "stablemask/data/shards.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <optional>

#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "tests/data/fixtures.h"
#include "tests/io/file_size_limit.h"

namespace stablemask {
namespace {

using test::entries_of;
using test::expect_data_error;
using test::make_shard;

constexpr size_t kHeaderBytes = 256;
constexpr size_t kHashAt = 224;

std::vector<int32_t> some_tokens(size_t count, int32_t below = 1000) {
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(below));
  }
  return tokens;
}

template <typename T>
T field(const std::string& bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

template <typename T>
void set_field(std::string& bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

// Makes a changed header consistent again, so that the check behind the hash is reached.
void rehash(std::string& bytes) {
  bytes.replace(kHashAt, 32, from_hex(sha256_hex(bytes.data(), kHashAt)));
}

void open_and_verify(const std::string& path) { Shard::open(path).verify(); }

TEST(Shard, ReadsWhatWasWritten) {
  const Scratch folder;
  for (const uint64_t vocab :
       {uint64_t{1000}, uint64_t{65536}, uint64_t{65537}, uint64_t{200000}}) {
    const auto tokens = some_tokens(1003, static_cast<int32_t>(vocab));
    const auto shard = make_shard(folder / "shard", tokens, {0, 10, 1002}, vocab);
    EXPECT_EQ(shard->info().token_bytes, vocab <= 65536 ? 2U : 4U);
    EXPECT_EQ(shard->info().vocab_size, vocab);
    EXPECT_EQ(shard->info().tokens, tokens.size());
    EXPECT_EQ(shard->info().lines, 1U);
    EXPECT_EQ(shard->info().words, 2U);
    EXPECT_EQ(shard->info().bytes, 3 * tokens.size());
    EXPECT_EQ(shard->info().documents, 3U);
    EXPECT_EQ(shard->info().tokenizer_sha256, std::string(64, 'a'));
    EXPECT_EQ(shard->info().text_sha256, std::string(64, 'b'));
    EXPECT_EQ(shard->document_starts(), (std::vector<int64_t>{0, 10, 1002}));
    EXPECT_EQ(shard->size(), 1003);
    std::vector<int64_t> all(tokens.size());
    shard->read(0, shard->size(), all.data());
    EXPECT_TRUE(std::equal(all.begin(), all.end(), tokens.begin()));
    EXPECT_EQ(shard->token(1002), tokens[1002]);
    EXPECT_NO_THROW(shard->verify());
  }
  EXPECT_EQ(entries_of(folder), 1U);
}

// The layout in the comment of src/data/shards.cpp, byte by byte.
TEST(Shard, LayoutIsAsDocumented) {
  const Scratch folder;
  make_shard(folder / "shard", {1, 2, 700}, {0, 2}, 1000);
  const std::string bytes = read_bytes(folder / "shard");
  const std::string payload{
      "\x01\x00\x02\x00\xBC\x02\x00\x00"  // tokens, padded
      "\x00\x00\x00\x00\x00\x00\x00\x00"  // document 0
      "\x02\x00\x00\x00\x00\x00\x00\x00",
      24};  // document 2
  ASSERT_EQ(bytes.size(), kHeaderBytes + payload.size());
  EXPECT_EQ(bytes.substr(kHeaderBytes), payload);
  EXPECT_EQ(bytes.substr(0, 8), "SMTOKENS");
  EXPECT_EQ(field<uint32_t>(bytes, 8), 1U);
  EXPECT_EQ(field<uint32_t>(bytes, 12), kHeaderBytes);
  EXPECT_EQ(field<uint32_t>(bytes, 16), 2U);
  EXPECT_EQ(field<uint32_t>(bytes, 20), 0U);
  const uint64_t counts[] = {1000, 3, 1, 2, 9, 2};
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(field<uint64_t>(bytes, 24 + 8 * i), counts[i]);
  EXPECT_EQ(bytes.substr(72, 32), std::string(32, '\xAA'));
  EXPECT_EQ(bytes.substr(104, 32), std::string(32, '\xBB'));
  EXPECT_EQ(bytes.substr(136, 32), from_hex(sha256_hex(payload.data(), payload.size())));
  EXPECT_EQ(bytes.substr(168, 56), std::string(56, '\0'));
  EXPECT_EQ(bytes.substr(kHashAt), from_hex(sha256_hex(bytes.data(), kHashAt)) + payload);
}

TEST(Shard, EveryHeaderProblemHasItsName) {
  const Scratch folder;
  make_shard(folder / "good", some_tokens(100), {0, 50});
  const std::string good = read_bytes(folder / "good");
  const struct {
    const char* complaint;
    std::function<void(std::string&)> damage;
    bool consistent = true;
  } kCases[] = {
      {"not a token shard", [](auto& b) { b[0] = 'X'; }},
      {"written by a newer version of the program: it has version 3, this program reads 1 and 2",
       [](auto& b) { set_field(b, 8, uint32_t{3}); }},
      {"its template has no name", [](auto& b) { set_field(b, 8, uint32_t{2}); }},
      {"reserved bytes", [](auto& b) { b[168] = 1; }},
      {"reserved bytes", [](auto& b) { b[176] = 'a'; }},
      {"it has version 0, this program reads 1 and 2",
       [](auto& b) { set_field(b, 8, uint32_t{0}); }},
      {"its header is damaged", [](auto& b) { b[30] ^= 1; }, false},
      {"its header has another size", [](auto& b) { set_field(b, 12, uint32_t{512}); }},
      {"vocabulary size is out of range", [](auto& b) { set_field(b, 24, uint64_t{0}); }},
      {"vocabulary size is out of range", [](auto& b) { set_field(b, 24, uint64_t{1} << 40); }},
      {"does not fit its vocabulary", [](auto& b) { set_field(b, 16, uint32_t{4}); }},
      {"does not fit its vocabulary", [](auto& b) { set_field(b, 16, uint32_t{3}); }},
      {"it has no tokens", [](auto& b) { set_field(b, 32, uint64_t{0}); }},
      {"counts are out of range", [](auto& b) { set_field(b, 32, UINT64_MAX); }},
      {"counts are out of range", [](auto& b) { set_field(b, 56, UINT64_MAX); }},
      {"counts contradict each other", [](auto& b) { set_field(b, 40, uint64_t{101}); }},
      {"counts contradict each other", [](auto& b) { set_field(b, 48, uint64_t{301}); }},
      {"counts contradict each other", [](auto& b) { set_field(b, 64, UINT64_MAX); }},
      {"it is truncated", [](auto& b) { set_field(b, 32, uint64_t{10000}); }},
      {"it is truncated", [](auto& b) { set_field(b, 64, uint64_t{3}); }},
      {"it has bytes after its end", [](auto& b) { set_field(b, 32, uint64_t{60}); }},
      {"it has bytes after its end", [](auto& b) { set_field(b, 64, uint64_t{1}); }},
      {"reserved bytes", [](auto& b) { b[20] = 1; }},
      {"reserved bytes", [](auto& b) { b[200] = 1; }},
      {"document starts are damaged", [](auto& b) { set_field(b, b.size() - 8, uint64_t{0}); }},
      {"document starts are damaged", [](auto& b) { set_field(b, b.size() - 8, uint64_t{100}); }},
      {"document starts are damaged", [](auto& b) { set_field(b, b.size() - 16, UINT64_MAX); }},
  };
  for (const auto& one : kCases) {
    std::string bytes = good;
    one.damage(bytes);
    if (one.consistent) rehash(bytes);
    write_bytes(folder / "bad", bytes);
    const std::string message =
        expect_data_error([&] { Shard::open(folder / "bad"); }, one.complaint);
    EXPECT_NE(message.find(folder / "bad"), std::string::npos) << message;
  }
}

TEST(Shard, EveryFlippedByteIsDetected) {
  const Scratch folder;
  make_shard(folder / "good", some_tokens(997), {0, 500});
  const std::string good = read_bytes(folder / "good");
  for (size_t at = 0; at < good.size(); at += at < kHeaderBytes ? 1 : 7) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << at % 8));
    write_bytes(folder / "bad", bytes);
    if (at < kHeaderBytes) {
      EXPECT_THROW(Shard::open(folder / "bad"), DataError) << at;
    } else {
      EXPECT_THROW(open_and_verify(folder / "bad"), DataError) << at;
    }
  }
}

TEST(Shard, EveryOtherLengthIsRefused) {
  const Scratch folder;
  make_shard(folder / "good", some_tokens(301), {0, 7, 150});
  const std::string good = read_bytes(folder / "good");
  for (size_t size = 0; size < good.size(); ++size) {
    write_bytes(folder / "bad", good.substr(0, size));
    EXPECT_THROW(Shard::open(folder / "bad"), DataError) << size;
  }
  for (const size_t more : {1, 2, 8, 4096}) {
    write_bytes(folder / "bad", good + std::string(more, '\0'));
    expect_data_error([&] { Shard::open(folder / "bad"); }, "bytes after its end");
  }
}

TEST(Shard, RefusesWhatIsNoFile) {
  const Scratch folder;
  expect_data_error([&] { Shard::open(folder / "missing"); }, "cannot be opened");
  expect_data_error([&] { Shard::open(folder.path()); }, "not a regular file");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_data_error([&] { Shard::open(folder / "pipe"); }, "not a regular file");
  EXPECT_FALSE(Shard::is_shard(folder / "missing"));
  EXPECT_FALSE(Shard::is_shard(folder.path()));
  EXPECT_FALSE(Shard::is_shard(folder / "pipe"));
}

TEST(Shard, ATokenBeyondTheVocabularyNeverComesOut) {
  const Scratch folder;
  make_shard(folder / "shard", some_tokens(100));
  std::string bytes = read_bytes(folder / "shard");
  set_field(bytes, kHeaderBytes + 20, uint16_t{1000});
  write_bytes(folder / "shard", bytes);
  const Shard shard = Shard::open(folder / "shard");
  EXPECT_NO_THROW(shard.token(9));
  expect_data_error([&] { shard.token(10); }, "is not in its vocabulary");
}

TEST(Shard, ReadsWithinItsTokensOnly) {
  const Scratch folder;
  const auto shard = make_shard(folder / "shard", some_tokens(100));
  std::vector<int64_t> out(200);
  for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{
           {-1, 1}, {0, 101}, {100, 1}, {0, -1}, {INT64_MAX, 1}, {1, INT64_MAX}}) {
    expect_data_error([&, b = begin, n = count] { shard->read(b, n, out.data()); },
                      "has no " + std::to_string(count) + " tokens from");
  }
  EXPECT_NO_THROW(shard->read(100, 0, out.data()));
}

TEST(Shard, AShardShortenedWhileItIsOpenIsADataError) {
  const Scratch folder;
  const auto shard = make_shard(folder / "shard", some_tokens(5000), {0, 4000});
  std::filesystem::resize_file(folder / "shard", kHeaderBytes + 2 * 1000);
  std::vector<int64_t> out(5000);
  EXPECT_NO_THROW(shard->read(0, 1000, out.data()));
  for (const auto& read : std::vector<std::function<void()>>{
           [&] { shard->read(990, 20, out.data()); }, [&] { shard->read(4000, 1000, out.data()); },
           [&] { shard->token(4999); }, [&] { shard->verify(); },
           [&] { verify_shards({shard}, 1); }}) {
    const std::string message = expect_data_error(read, "was shortened while in use");
    EXPECT_EQ(message.rfind(folder / "shard", 0), 0U) << message;
  }
}

TEST(Shard, ReadsFromSeveralThreads) {
  const Scratch folder;
  const std::vector<int32_t> tokens = some_tokens(20000);
  const auto shard = make_shard(folder / "shard", tokens);
  std::vector<std::future<bool>> readers;
  for (int64_t first = 0; first < 4; ++first) {
    readers.push_back(std::async(std::launch::async, [&, first] {
      std::vector<int64_t> out(100);
      bool same = true;
      for (int64_t begin = first; begin + 100 <= shard->size(); begin += 37) {
        shard->read(begin, 100, out.data());
        same = same && std::equal(out.begin(), out.end(), tokens.begin() + begin);
      }
      return same;
    }));
  }
  for (auto& reader : readers) EXPECT_TRUE(reader.get());
}

// A payload of several blocks, whose token types end at any place of a block.
TEST(Shard, VerifyFindsADamagedTokenInAnyBlock) {
  const Scratch folder;
  for (const int32_t vocab : {1000, 100000}) {
    const size_t token_bytes = vocab <= 65536 ? 2 : 4;
    const auto shard = make_shard(folder / "shard", some_tokens(1'100'001, vocab), {0, 9},
                                  static_cast<uint64_t>(vocab));
    uint64_t bytes = 0;
    shard->verify([&](uint64_t block) { bytes += block; });
    EXPECT_EQ(bytes, std::filesystem::file_size(folder / "shard") - kHeaderBytes);
    const std::string good = read_bytes(folder / "shard");
    for (const size_t token : {0, 600'000, 1'100'000}) {
      std::string bad = good;
      bad[kHeaderBytes + token * token_bytes + token_bytes / 2] = '\xFF';
      write_bytes(folder / "bad", bad);
      expect_data_error([&] { open_and_verify(folder / "bad"); }, "hash differs");
      // With a hash that fits, the range check is what remains.
      const std::string hash = sha256_hex(bad.data() + kHeaderBytes, bad.size() - kHeaderBytes);
      bad.replace(136, 32, from_hex(hash));
      rehash(bad);
      write_bytes(folder / "bad", bad);
      expect_data_error([&] { open_and_verify(folder / "bad"); }, "not in its vocabulary");
    }
  }
}

class VerifyShards : public testing::Test {
 protected:
  VerifyShards() {
    for (const size_t tokens : {10, 700'000, 3, 300'000, 1}) {
      shards_.push_back(make_shard(path(shards_.size()), some_tokens(tokens)));
    }
  }
  void TearDown() override { request_stop(0); }
  std::string path(size_t k) const { return folder_ / ("shard" + std::to_string(k)); }
  void damage(size_t k) {
    std::string bytes = read_bytes(path(k));
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    write_bytes(path(k), bytes);
  }

  Scratch folder_;
  std::vector<std::shared_ptr<const Shard>> shards_;
};

TEST_F(VerifyShards, ReportsProgressUpToTheTotal) {
  uint64_t expected = 0;
  for (size_t k = 0; k < shards_.size(); ++k) {
    expected += std::filesystem::file_size(path(k)) - kHeaderBytes;
  }
  for (const int threads : {0, 1, 3, 100}) {
    uint64_t last = 0;
    verify_shards(shards_, threads, [&](uint64_t done, uint64_t total) {
      EXPECT_EQ(total, expected);
      EXPECT_GE(done, last);
      last = done;
    });
    EXPECT_EQ(last, expected) << threads << " threads";
  }
  EXPECT_NO_THROW(verify_shards({}, 2));
}

TEST_F(VerifyShards, NamesTheDamagedShard) {
  for (const int threads : {1, 4}) {
    for (const size_t k : {0, 1, 4}) {
      damage(k);
      const std::string message =
          expect_data_error([&] { verify_shards(shards_, threads); }, "hash differs");
      EXPECT_NE(message.find(path(k) + ":"), std::string::npos) << message;
      damage(k);
    }
  }
  EXPECT_NO_THROW(verify_shards(shards_, 2));
}

TEST_F(VerifyShards, AStopSignalEndsIt) {
  request_stop(SIGTERM);
  EXPECT_EQ(message_of<Stopped>([&] { verify_shards(shards_, 2); }),
            "stopped by SIGTERM while verifying token shards");
}

TEST(Shard, RequiresItsTokenizer) {
  const Scratch folder;
  const auto shard = make_shard(folder / "shard", some_tokens(10));
  EXPECT_NO_THROW(shard->require_tokenizer(std::string(64, 'a')));
  expect_data_error([&] { shard->require_tokenizer(std::string(64, 'c')); }, "another tokenizer");
}

TEST(ShardWriter, TheFileAppearsWhenItIsFinished) {
  const Scratch folder;
  const std::string path = folder / "shard";
  make_shard(path, some_tokens(10));
  const std::string before = read_bytes(path);
  {
    ShardWriter writer(path, 1000, std::string(64, 'a'));
    writer.append(some_tokens(100000));
    EXPECT_EQ(entries_of(folder), 2U);
    EXPECT_EQ(read_bytes(path), before);
  }
  EXPECT_EQ(entries_of(folder), 1U) << "an unfinished writer leaves its temporary file";
  EXPECT_EQ(read_bytes(path), before);
}

TEST(ShardWriter, RefusesForeignTokensAndEmptyShards) {
  const Scratch folder;
  {
    ShardWriter writer(folder / "shard", 1000, std::string(64, 'a'));
    expect_data_error([&] { writer.append({1000}); }, "token 1000 is not in the vocabulary");
    expect_data_error([&] { writer.append({-1}); }, "token -1 is not in the vocabulary");
    expect_data_error([&] { writer.finish({}); }, "no tokens to write");
  }
  EXPECT_EQ(entries_of(folder), 0U);
}

TEST(ShardWriter, RefusesAnUnwritablePlace) {
  const Scratch folder;
  const auto write = [](const std::string& path) {
    return [path] { ShardWriter(path, 1000, std::string(64, 'a')); };
  };
  expect_data_error(write(folder / "no/such/shard"), "cannot be created");
  expect_data_error(write(folder.path()), "is a folder");
  expect_data_error(write("-"), "must be a file");
  EXPECT_EQ(entries_of(folder), 0U);
}

TEST(ShardWriter, AFailedWriteLeavesNothingBehind) {
  const Scratch folder;
  std::optional<FileSizeLimit> limit(10000);
  const std::string message = expect_data_error(
      [&] {
        ShardWriter writer(folder / "shard", 1000, std::string(64, 'a'));
        for (int i = 0; i < 100; ++i) writer.append(some_tokens(100));
      },
      "cannot be written");
  limit.reset();
  EXPECT_NE(message.find("file size limit"), std::string::npos) << message;
  EXPECT_EQ(entries_of(folder), 0U);
}

}  // namespace
}  // namespace stablemask
