#include "src/train/disk_need.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>
#include <system_error>
#include <vector>

#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/optim/optimizer.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

constexpr double kSlackBytes = 1 << 20;  // manifests, headers, folders, LATEST
constexpr double kLineBytes = 512;       // of metrics.jsonl, generously
constexpr double kEventBytes = 1024;     // of a line's scalars in an event file
constexpr double kTokenBytes = 8;        // of a sample's text

/// Multiples of `of` in (from, to].
int64_t multiples(int64_t of, int64_t from, int64_t to) {
  return of > 0 && to > from ? to / of - from / of : 0;
}

double bytes_of_checkpoint(const Config& config, const Tokenizer& tokenizer) {
  double total = static_cast<double>(tokenizer.bytes().size());
  for (const auto& [name, bytes] : tokenizer.companions()) {
    total += static_cast<double>(bytes.size());
  }
  for (const nn::Parameter& parameter : nn::parameters(config.model)) {
    if (!parameter.trainable) continue;
    const auto count = static_cast<double>(parameter.numel());
    total += (config.train.ema_decay > 0 ? 8 : 4) * count;  // trained weights beside averages
    if (parameter.is_frozen(config.train.freeze_layers)) continue;
    total += static_cast<double>(optimizer_bytes(config.optimizer, parameter).state);
  }
  return total;
}

/// The least common multiple, or 0 if one is 0 or the multiple is more than `most`.
int64_t common_multiple(int64_t a, int64_t b, int64_t most) {
  if (a <= 0 || b <= 0) return 0;
  // No product: that of two large numbers could overflow.
  const int64_t factor = b / std::gcd(a, b);
  return a > most / factor ? 0 : a * factor;
}

/// Saves after `step` at multiples of `every`, when every validation is the best one: by
/// save_every, of the best one, and the last one. Without those by time.
int64_t saves_at(const TrainConfig& train, int64_t step, int64_t every) {
  if (train.steps <= step) return 0;
  const int64_t best_every = train.keep_best ? train.eval_every : 0;
  const auto count = [&](int64_t of) {
    return multiples(common_multiple(of, every, train.steps), step, train.steps);
  };
  const auto has_last = [&](int64_t of) { return of > 0 && train.steps % of == 0; };
  const bool last_alone = has_last(every) && !has_last(train.save_every) && !has_last(best_every);
  return count(train.save_every) + count(best_every) -
         count(common_multiple(train.save_every, best_every, train.steps)) + (last_alone ? 1 : 0);
}

/// Saves of the steps after `step`, at most.
int64_t saves_after(const TrainConfig& train, int64_t step) {
  const int64_t steps = std::max<int64_t>(train.steps - step, 0);
  auto saves = static_cast<double>(saves_at(train, step, 1));
  if (train.save_minutes > 0) {
    saves += train.time_limit_s > 0 ? train.time_limit_s / (60 * train.save_minutes)
                                    : static_cast<double>(steps);
  }
  return saves < static_cast<double>(steps) ? static_cast<int64_t>(saves) : steps;
}

double bytes_of_logs(const Config& config, int64_t step) {
  const TrainConfig& train = config.train;
  const auto steps = static_cast<double>(std::max<int64_t>(train.steps - step, 0));
  const double validations =
      config.data.valid.empty()
          ? 0
          : 1 + (train.eval_every > 0 ? steps / static_cast<double>(train.eval_every) : 0);
  const double lines = 1 + steps / static_cast<double>(train.log_every) + validations;
  double sample = 0;
  for (const std::string& prompt : train.sample_prompts) {
    sample += kLineBytes + static_cast<double>(prompt.size()) +
              kTokenBytes * static_cast<double>(config.generate.max_tokens);
  }
  const double copies = train.tensorboard ? 2 : 1;
  return lines * (kLineBytes + (train.tensorboard ? kEventBytes : 0)) +
         validations * sample * copies;
}

/// Of the files that a resume writes anew.
double bytes_of_rewritten(const std::string& out) {
  double total = 0;
  for (const char* name : {"metrics.jsonl", "samples.jsonl"}) {
    std::error_code error;
    const uintmax_t size = fs::file_size(out + "/" + name, error);
    if (!error) total += static_cast<double>(size);
  }
  std::error_code error;
  fs::directory_iterator entry(out + "/tensorboard", error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    std::error_code unknown;
    const uintmax_t size = entry->file_size(unknown);
    if (!unknown) total += static_cast<double>(size);
  }
  return total;
}

/// Those of `present` that are gone when `saves` more have been written and the next one is being.
double bytes_freed(const std::vector<CheckpointSummary>& present, const TrainConfig& train,
                   int64_t saves) {
  double freed = 0;
  const int64_t keep_last = saves > 0 ? std::max<int64_t>(train.keep_last - saves, 0) : INT64_MAX;
  int64_t newer = 0;
  for (auto one = present.rbegin(); one != present.rend(); ++one) {
    std::string stem;
    const bool leftover = is_temporary_name(fs::path(one->folder).filename().string(), stem);
    const bool kept = train.keep_every > 0 && one->step % train.keep_every == 0;
    const bool old = one->complete && newer >= keep_last && !kept;
    if (leftover || old) freed += static_cast<double>(one->bytes);
    newer += one->complete;
  }
  return freed;
}

}  // namespace

DiskNeed::DiskNeed(const Config& config, const Tokenizer& tokenizer, int64_t step)
    : out_(config.train.out),
      checkpoint_bytes_(bytes_of_checkpoint(config, tokenizer)),
      log_bytes_(bytes_of_logs(config, step) + bytes_of_rewritten(out_)) {
  const TrainConfig& train = config.train;
  const std::vector<CheckpointSummary> present = list_checkpoints(out_ + "/checkpoints");
  const int64_t saves = saves_after(train, step);
  if (saves > 0) {
    const int64_t good = train.keep_every > 0 ? saves_at(train, step, train.keep_every) : 0;
    const int64_t most =
        train.keep_last > saves ? saves : train.keep_last + 1 + good + train.keep_best;
    checkpoints_ = std::min(saves, most);
    // While the first one is written all the others are still there.
    const double first = checkpoint_bytes_ - bytes_freed(present, train, 0);
    const double last = static_cast<double>(checkpoints_) * checkpoint_bytes_ -
                        bytes_freed(present, train, saves - 1);
    bytes_ = std::max({first, last, 0.0});
  }
  bytes_ += log_bytes_ + (saves > 0 ? kSlackBytes : 0);
}

std::string DiskNeed::problem() const {
  const std::optional<uint64_t> free = free_space(out_);
  if (!free || static_cast<double>(*free) >= bytes_) return "";
  constexpr double kMega = 1e6;
  return format(
      "%s: not enough space for this run: %.1f MB needed, %.1f MB free; the need: %lld more "
      "checkpoint%s of %.1f MB at a time, less what they replace, and %.1f MB of logs; free some "
      "space, keep fewer checkpoints (train.keep_last, train.keep_every), or choose another "
      "train.out",
      out_.c_str(), bytes_ / kMega, static_cast<double>(*free) / kMega,
      static_cast<long long>(checkpoints_), checkpoints_ == 1 ? "" : "s", checkpoint_bytes_ / kMega,
      log_bytes_ / kMega);
}

}  // namespace stablemask
