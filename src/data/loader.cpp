#include "stablemask/data/loader.h"

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <deque>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

#include "src/data/sequence_order.h"
#include "src/data/sequences.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/random.h"

namespace stablemask {
namespace {

LoaderOptions checked(LoaderOptions options) {
  if (options.rank < 0 || options.rank >= options.size) {
    throw ConfigError(format("loader: no process %lld of %lld",
                             static_cast<long long>(options.rank),
                             static_cast<long long>(options.size)));
  }
  if (options.micro_batch == 0) options.micro_batch = options.batch / options.size;
  if (options.context < 1 || options.batch < 1 || options.micro_batch < 1 || options.prefetch < 0) {
    throw ConfigError(
        "loader: context, batch and micro_batch must be at least 1, prefetch at least 0");
  }
  if (options.batch % options.size != 0 ||
      options.batch / options.size % options.micro_batch != 0) {
    throw ConfigError(
        format("loader: micro_batch %lld times %lld processes does not divide batch "
               "%lld",
               static_cast<long long>(options.micro_batch), static_cast<long long>(options.size),
               static_cast<long long>(options.batch)));
  }
  return options;
}

using Shards = std::vector<std::shared_ptr<const Shard>>;

/// One set of all shards, or in a mixture one of each.
std::vector<Shards> sets_of(Shards shards, const LoaderOptions& options) {
  std::vector<Shards> sets;
  if (options.weights.empty()) {
    sets.push_back(std::move(shards));
    return sets;
  }
  if (options.weights.size() != shards.size()) {
    throw ConfigError(
        format("loader: %zu weights for %zu shards", options.weights.size(), shards.size()));
  }
  for (const auto& shard : shards) {
    shard->require_tokenizer(shards.front()->info().tokenizer_sha256);
    sets.push_back({shard});
  }
  return sets;
}

std::vector<Sequences> sequences_of(Shards shards, const LoaderOptions& options) {
  if (options.context < 1) throw ConfigError("loader: context must be at least 1");
  std::vector<Sequences> sequences;
  for (Shards& set : sets_of(std::move(shards), options)) {
    sequences.emplace_back(std::move(set), options.context, options.document_mask);
  }
  return sequences;
}

std::vector<int64_t> counts_of(const std::vector<Sequences>& sets) {
  std::vector<int64_t> counts;
  for (const Sequences& set : sets) counts.push_back(set.count());
  return counts;
}

/// Throws the DataError of a set that is empty.
std::vector<int64_t> sound_counts_of(const std::vector<Sequences>& sets) {
  for (const Sequences& set : sets) set.require_sequences();
  return counts_of(sets);
}

}  // namespace

struct SequenceSets::State {
  std::vector<Sequences> sets;
  std::vector<double> weights;
  int64_t context;
};

SequenceSets::SequenceSets(std::vector<std::shared_ptr<const Shard>> shards,
                           const LoaderOptions& options)
    : state_(std::make_unique<const State>(
          State{sequences_of(std::move(shards), options), options.weights, options.context})) {}

SequenceSets::~SequenceSets() = default;

std::vector<SetSize> SequenceSets::sizes(int64_t slots, uint64_t seed) const {
  std::vector<SetSize> sizes;
  for (const Sequences& set : state_->sets) sizes.push_back({set.counts(), 0});
  const std::vector<int64_t> counts = counts_of(state_->sets);
  if (std::ranges::any_of(counts, [](int64_t count) { return count < 1; })) return sizes;
  const SequenceOrder order(counts, state_->weights, seed);
  const std::vector<int64_t> taken = order.taken(slots);
  for (size_t set = 0; set < sizes.size(); ++set) sizes[set].taken = taken[set];
  return sizes;
}

SequenceCounts sum_of(const std::vector<SetSize>& sets) {
  SequenceCounts sum;
  double filled = 0;
  for (const SetSize& set : sets) {
    const SequenceCounts& counts = set.sequences;
    sum.text += counts.text;
    sum.packed += counts.packed;
    sum.samples.samples += counts.samples.samples;
    sum.samples.truncated += counts.samples.truncated;
    sum.samples.dropped += counts.samples.dropped;
    sum.samples.inputs += counts.samples.inputs;
    sum.samples.targets += counts.samples.targets;
    filled += counts.fill_rate * static_cast<double>(counts.packed);
  }
  if (sum.packed > 0) sum.fill_rate = filled / static_cast<double>(sum.packed);
  return sum;
}

// A batch is a pure function of its number, so the background thread and `next` share only the
// queue: the thread takes a number under the lock and builds the batch without it. `seek` empties
// the queue and increments `generation`; a batch that was being built at that time is then
// discarded.
struct Loader::State {
  State(std::shared_ptr<const SequenceSets> sequence_sets, const LoaderOptions& loader_options)
      : options(checked(loader_options)),
        kept(std::move(sequence_sets)),
        sets(kept->state_->sets),
        order(sound_counts_of(sets), kept->state_->weights, options.seed) {
    for (const Sequences& set : sets) {
      first_ids.push_back(sequences);
      sequences += set.count();
      has_document_starts = has_document_starts || set.has_document_starts();
    }
    next_number = options.rank;
    if (options.prefetch > 0) worker = std::thread([this] { prefetch(); });
  }

  ~State() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    wake_worker.notify_all();
    if (worker.joinable()) worker.join();
  }

  int64_t micro_batches() const { return options.batch / (options.micro_batch * options.size); }
  /// The next micro-batch of this process, counted over the whole run.
  int64_t take_number() {
    const int64_t number = next_number;
    next_number += options.size;
    return number;
  }
  Batch build(int64_t number) const;
  void prefetch();

  const LoaderOptions options;
  const std::shared_ptr<const SequenceSets> kept;
  const std::vector<Sequences>& sets;  // of `kept`
  const SequenceOrder order;
  std::vector<int64_t> first_ids;  // of each set's sequences among all
  int64_t sequences = 0;
  bool has_document_starts = false;

  std::mutex mutex;  // guards all below
  std::condition_variable wake_worker;
  std::condition_variable wake_reader;
  std::deque<Batch> ready;
  std::exception_ptr failure;  // of the batch after those in `ready`; `next` rethrows it
  int64_t next_number = 0;     // of the next micro-batch to build
  uint64_t generation = 0;
  bool stopping = false;

  std::thread worker;
};

Batch Loader::State::build(int64_t number) const {
  Batch batch;
  batch.rows = options.micro_batch;
  batch.columns = kept->state_->context;
  const auto size = static_cast<size_t>(batch.rows * batch.columns);
  batch.tokens.resize(size);
  batch.targets.resize(size);
  if (has_document_starts) batch.document_start.resize(size);
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t global = number * batch.rows + row;
    const auto [set, sequence] = order.at(global);
    batch.sequence_ids.push_back(first_ids[set] + sequence);
    sets[set].fill(sequence, row, batch);
  }
  return batch;
}

void Loader::State::prefetch() {
  std::unique_lock lock(mutex);
  while (true) {
    wake_worker.wait(lock, [&] {
      return stopping || (!failure && ready.size() < static_cast<size_t>(options.prefetch));
    });
    if (stopping) return;
    const uint64_t mine = generation;
    const int64_t number = take_number();
    lock.unlock();
    Batch batch;
    std::exception_ptr error;
    try {
      batch = build(number);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (mine != generation) continue;
    if (error) {
      failure = error;
    } else {
      ready.push_back(std::move(batch));
    }
    wake_reader.notify_one();
  }
}

Loader::Loader(std::vector<std::shared_ptr<const Shard>> shards, const LoaderOptions& options)
    : Loader(std::make_shared<const SequenceSets>(std::move(shards), options), options) {}

Loader::Loader(std::shared_ptr<const SequenceSets> sets, const LoaderOptions& options)
    : state_(std::make_unique<State>(std::move(sets), options)) {}

Loader::~Loader() = default;

int64_t Loader::sequences_per_epoch() const { return state_->sequences; }

int64_t Loader::micro_batches_per_step() const { return state_->micro_batches(); }

void Loader::seek(int64_t step) {
  const int64_t last = std::numeric_limits<int64_t>::max() / 2 / state_->options.batch;
  if (step < 0 || step > last) {
    throw ConfigError(format("loader: there is no step %lld", static_cast<long long>(step)));
  }
  {
    const std::lock_guard lock(state_->mutex);
    state_->ready.clear();
    state_->failure = nullptr;
    const LoaderOptions& options = state_->options;
    state_->next_number = step * state_->micro_batches() * options.size + options.rank;
    ++state_->generation;
  }
  state_->wake_worker.notify_one();
}

Batch Loader::next() {
  std::unique_lock lock(state_->mutex);
  if (state_->options.prefetch == 0) return state_->build(state_->take_number());
  state_->wake_reader.wait(lock, [&] { return !state_->ready.empty() || state_->failure; });
  if (state_->ready.empty()) std::rethrow_exception(state_->failure);
  Batch batch = std::move(state_->ready.front());
  state_->ready.pop_front();
  lock.unlock();
  state_->wake_worker.notify_one();
  return batch;
}

int64_t Loader::sequence_at(uint64_t seed, int64_t epoch, int64_t index, int64_t n) {
  if (n < 1 || index < 0 || index >= n || epoch < 0) {
    throw ConfigError("loader: no such sequence in the permutation");
  }
  // A Feistel network permutes [0, 4^half); walking its cycle until a value falls below n permutes
  // [0, n) (Black and Rogaway, Ciphers with arbitrary finite domains, 2002). 4^half < 4n, so the
  // walk takes fewer than 4 steps on average.
  constexpr int kRounds = 8;
  const auto bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(n - 1)));
  const int half = std::max(1, (bits + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half) - 1;
  const uint64_t key = mix64(mix64(seed + 0x9E3779B97F4A7C15ULL) + static_cast<uint64_t>(epoch));
  auto value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half;
    uint64_t right = value & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t mixed = mix64(key + (round << 56) + right * 0x9E3779B97F4A7C15ULL);
      const uint64_t swapped = left ^ (mixed >> 32 & mask);
      left = right;
      right = swapped;
    }
    value = left << half | right;
  } while (value >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(value);
}

}  // namespace stablemask
