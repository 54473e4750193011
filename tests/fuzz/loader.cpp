// Input: 13 bytes of options, then for each of up to three shards its description (shard_file.h),
// then their contents.
#include "stablemask/data/loader.h"

#include <algorithm>
#include <set>

#include "tests/fuzz/shard_file.h"

namespace stablemask::fuzz {
namespace {

struct Run {
  LoaderOptions options;
  int64_t step = 0;
  std::vector<std::shared_ptr<const Shard>> shards;
  std::vector<int64_t> corpus;
  bool of_samples = false;
};

/// Small numbers, some not allowed: −2 to 29.
int64_t small(Numbers& numbers) { return numbers.byte() % 32 - 2; }

Run read_run(Numbers& numbers) {
  Run run;
  run.options.context = small(numbers);
  run.options.batch = small(numbers);
  run.options.micro_batch = small(numbers);
  run.options.seed = numbers.integer(2);
  const uint8_t switches = numbers.byte();
  run.options.document_mask = switches & 1;
  run.options.prefetch = switches & 2 ? switches >> 6 : 0;
  run.options.size = 1 + (switches >> 2 & 3);
  run.options.rank = switches & 128 ? small(numbers) : numbers.byte() % run.options.size;
  run.step = static_cast<int64_t>(numbers.integer(4));
  if (switches & 16) run.step = static_cast<int64_t>(static_cast<uint64_t>(run.step) << 32);
  const size_t count = numbers.byte() % 4;
  std::vector<Numbers> descriptions;
  for (size_t i = 0; i < count; ++i) descriptions.emplace_back(numbers.take(12));
  const std::string_view contents = numbers.rest();
  static MemoryFile files[3];
  for (size_t i = 0; i < count; ++i) {
    files[i].write(make_shard(descriptions[i], contents));
    run.shards.push_back(std::make_shared<const Shard>(Shard::open(files[i].path())));
    run.of_samples = run.of_samples || run.shards.back()->info().has_samples();
    std::vector<int64_t> tokens(static_cast<size_t>(run.shards.back()->size()));
    run.shards.back()->read(0, run.shards.back()->size(), tokens.data());
    run.corpus.insert(run.corpus.end(), tokens.begin(), tokens.end());
  }
  return run;
}

/// A batch with sequences of samples.
void check_packed(const Batch& batch, const Run& run) {
  int64_t targets = 0;
  for (int64_t i = 0; i < batch.rows * batch.columns; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t start = batch.document_start.at(at);
    require(start >= 0 && start <= i % batch.columns, "documents start before their tokens");
    targets += batch.targets[at] != kIgnoreTarget;
    const bool next =
        i % batch.columns + 1 < batch.columns && batch.document_start[at + 1] == start;
    require(batch.targets[at] == kIgnoreTarget || !next || !run.of_samples ||
                batch.targets[at] == batch.tokens[at + 1],
            "a target is the next token of its sample");
  }
  require(batch.columns == run.options.context && targets == batch.valid_targets,
          "targets are counted");
}

void check(const Batch& batch, const Run& run) {
  if (run.of_samples) return check_packed(batch, run);
  const int64_t T = run.options.context;
  require(batch.columns == T && batch.rows * T == batch.valid_targets, "a batch is full");
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t first = batch.sequence_ids[static_cast<size_t>(row)] * T;
    for (int64_t column = 0; column < T; ++column) {
      const auto at = static_cast<size_t>(row * T + column);
      const auto place = static_cast<size_t>(first + column);
      require(batch.tokens[at] == run.corpus.at(place), "tokens are those of the shards");
      require(batch.targets[at] == run.corpus.at(place + 1), "targets are the next tokens");
      if (!run.options.document_mask) continue;
      const int64_t start = batch.document_start[at];
      require(start >= 0 && start <= column, "documents start before their tokens");
    }
  }
}

bool equal(const Batch& a, const Batch& b) {
  return a.tokens == b.tokens && a.targets == b.targets && a.sequence_ids == b.sequence_ids &&
         a.document_start == b.document_start;
}

void check_epoch(const Loader& loader, const Run& run) {
  const int64_t n = loader.sequences_per_epoch();
  std::set<int64_t> seen;
  for (int64_t index = 0; index < std::min<int64_t>(n, 64); ++index) {
    const int64_t id = Loader::sequence_at(run.options.seed, run.step, index, n);
    require(id >= 0 && id < n, "a sequence is one of the epoch");
    require(seen.insert(id).second, "an epoch has each sequence once");
  }
}

void run(std::string_view input) {
  Numbers numbers(input);
  const auto load = [&] {
    const Run run = read_run(numbers);
    Loader loader(run.shards, run.options);
    check_epoch(loader, run);
    loader.seek(run.step);
    LoaderOptions plain = run.options;
    plain.prefetch = 0;
    Loader other(run.shards, plain);
    other.seek(run.step);
    for (int k = 0; k < 2; ++k) {
      const Batch batch = loader.next();
      check(batch, run);
      require(equal(batch, other.next()), "batches do not depend on prefetching");
    }
    loader.seek(0);
    check(loader.next(), run);
  };
  accepted<DataError>([&] { accepted<ConfigError>(load); });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
