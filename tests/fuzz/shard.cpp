// Input: a letter, then for "r" a shard file; for "h" one whose hashes are put right; otherwise the
// description of a file (shard_file.h) and its contents.
#include "stablemask/data/shards.h"

#include <algorithm>

#include "tests/fuzz/shard_file.h"

namespace stablemask::fuzz {
namespace {

std::string file_of(std::string_view input) {
  Numbers numbers(input);
  const char mode = static_cast<char>(numbers.byte());
  if (mode == 'r') return std::string(numbers.rest());
  if (mode == 'h') {
    std::string file(numbers.rest());
    seal_shard(file, true, true);
    return file;
  }
  Numbers description(numbers.take(12));
  return make_shard(description, numbers.rest());
}

void check_targets(const Shard& shard) {
  const std::vector<bool> all = shard.read_trained(0, shard.size());
  require(static_cast<int64_t>(all.size()) == shard.size(), "every token is a target or not");
  const int64_t half = shard.size() / 2;
  const std::vector<bool> end = shard.read_trained(half, shard.size() - half);
  require(std::equal(end.begin(), end.end(), all.begin() + half), "targets are those of any range");
  require(!accepted<DataError>([&] { shard.read_trained(0, shard.size() + 1); }),
          "ranges of targets are checked");
}

void check_ranges(const Shard& shard, size_t size) {
  std::vector<int64_t> all(static_cast<size_t>(shard.size()));
  const bool sound = accepted<DataError>([&] { shard.read(0, shard.size(), all.data()); });
  if (sound) {
    for (const int64_t token : all) {
      require(token >= 0 && static_cast<uint64_t>(token) < shard.info().vocab_size,
              "tokens are in the vocabulary");
    }
    const auto at = static_cast<int64_t>(size) % shard.size();
    require(shard.token(at) == all[static_cast<size_t>(at)], "a token is the same in any range");
  }
  check_targets(shard);
  int64_t token = 0;
  for (const int64_t begin : {int64_t{-1}, shard.size(), INT64_MAX}) {
    require(!accepted<DataError>([&] { shard.read(begin, 1, &token); }), "ranges are checked");
  }
  require(!accepted<DataError>([&] { shard.read(0, -1, &token); }), "counts are checked");
}

void check(const Shard& shard, size_t size) {
  int64_t previous = -1;
  for (const int64_t start : shard.document_starts()) {
    require(start > previous && start < shard.size(), "document starts ascend");
    previous = start;
  }
  check_ranges(shard, size);
  uint64_t read = 0;
  const bool verified =
      accepted<DataError>([&] { shard.verify([&](uint64_t bytes) { read += bytes; }); });
  if (verified) {
    require(read == shard.payload_bytes(), "the whole payload is read");
    std::vector<int64_t> tokens(static_cast<size_t>(shard.size()));
    shard.read(0, shard.size(), tokens.data());  // what is verified can be read
  }
  accepted<DataError>([&] { shard.require_tokenizer(std::string(64, '0')); });
}

void run(std::string_view input) {
  static MemoryFile memory;
  const std::string file = file_of(input);
  memory.write(file);
  const bool is_shard = Shard::is_shard(memory.path());
  accepted<DataError>([&] {
    const Shard shard = Shard::open(memory.path());
    require(is_shard, "a shard begins like one");
    check(shard, input.size());
    memory.shorten(file.size() / 2);
    require(!accepted<DataError>([&] { shard.verify(); }), "a shortened shard is refused");
  });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
