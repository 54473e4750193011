#include "src/train/summary.h"

#include <algorithm>

#include "src/train/run_inputs.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/nn/parameters.h"

namespace stablemask {
namespace {

std::string commas(int64_t value) { return with_commas(static_cast<uint64_t>(value)); }

/// "1 layer", "2 layers" for " layer".
std::string count_of(int64_t value, const char* what) {
  return commas(value) + what + (value == 1 ? "" : "s");
}

std::string number_text(double value) { return format("%.6g", value); }

/// "1", or "0.25 to 1 by head".
std::string per_head_text(const PerHead& value) {
  const auto [least, most] = std::minmax_element(value.values.begin(), value.values.end());
  if (*least == *most) return number_text(*least);
  return number_text(*least) + " to " + number_text(*most) + " by head";
}

const char* position_name(Position position) {
  switch (position) {
    case Position::kRope:
      return "RoPE";
    case Position::kAlibi:
      return "ALiBi";
    case Position::kLearned:
      return "learned positions";
    case Position::kNone:
      break;
  }
  return "no position encoding";
}

std::string model_text(const ModelConfig& model) {
  std::string heads = count_of(model.heads, " head");
  if (model.resolved_kv_heads() != model.heads) {
    heads += " (" + commas(model.resolved_kv_heads()) + " for keys and values)";
  }
  return count_of(model.layers, " layer") + " x " + commas(model.channels) + " channels, " + heads +
         ", " + position_name(model.position) + ", " + commas(nn::parameter_count(model)) +
         " parameters";
}

std::string mask_length_text(const MaskLengthSpec& length) {
  switch (length.kind) {
    case MaskLengthSpec::Kind::kInfinite:
      return "infinite";
    case MaskLengthSpec::Kind::kSequence:
      return "of each sequence";
    default:
      return commas(length.length);
  }
}

std::string mask_text(const ModelConfig& model) {
  const StableMaskConfig& mask = model.stable_mask;
  std::string text = "causal";
  if (mask.enabled) {
    const GammaSpec gamma = model.resolved_gamma();
    const bool slopes = gamma.kind == GammaSpec::Kind::kSlopes;
    text = "StableMask, gamma " + (slopes ? "slopes" : per_head_text(gamma.value)) + ", p_base " +
           per_head_text(mask.p_base) + (mask.learnable ? " (both learned)" : "") + ", N " +
           mask_length_text(mask.mask_length);
    if (mask.mask_length.kind == MaskLengthSpec::Kind::kFixed) {
      const bool infinite = mask.beyond == BeyondMask::kInfinite;
      text += std::string(", beyond N ") + (infinite ? "infinite" : "none");
    }
  }
  return text + (model.window > 0 ? ", window " + commas(model.window) : "");
}

std::string tokens_text(const TrainConfig& train, const RunSize& size) {
  const std::string epochs = size.epochs ? format(", %.3g epochs", *size.epochs) : "";
  return commas(train.batch) + " x " + commas(train.context) + " = " +
         large_count(size.step_tokens) + " a step, " + commas(train.steps) +
         " steps = " + large_count(size.run_tokens) + epochs;
}

std::string data_text(const DataConfig& data, const RunFacts& facts) {
  std::string train = data.train.empty() ? "" : data.train[0].path;
  if (data.train.size() > 1) train += format(" and %zu more", data.train.size() - 1);
  return train + ", " + commas(facts.train_tokens) + " tokens, " +
         (facts.valid_tokens ? "validation " + commas(*facts.valid_tokens) + " tokens"
                             : "no validation");
}

std::string products_text(const TrainConfig& train, const RunFacts& facts) {
  if (train.precision == Precision::kFp8) return "fp8 products, ";
  if (train.precision != Precision::kBf16 || facts.bf16) return "";
  return facts.bf16_instructions ? "bf16 products, "
                                 : "bf16 products, slow without instructions for them, ";
}

std::string device_text(const TrainConfig& train, const RunFacts& facts) {
  return facts.device + ", " + (facts.bf16 ? "bf16 with fp32 master weights" : "fp32") + ", " +
         products_text(train, facts) + count_of(facts.threads, " CPU thread") +
         (facts.processes > 1 ? " each" : "");
}

/// "4 processes, 2 micro-batches of 16 each, optimizer state sharded".
std::string processes_text(const TrainConfig& train, int64_t processes) {
  const int64_t micro_batch = train.resolved_micro_batch(processes);
  const int64_t count = train.batch / (micro_batch * processes);
  return commas(processes) + " processes, " + commas(count) +
         (count == 1 ? " micro-batch" : " micro-batches") + " of " + commas(micro_batch) +
         " each, optimizer state " +
         (train.shard == ShardKind::kOptimizer ? "sharded" : "on every process") +
         (train.reduce_dtype == ReduceDtype::kBf16 ? ", gradients summed in bf16" : "");
}

std::string output_text(const TrainConfig& train) {
  std::vector<std::string> when;
  if (train.save_every > 0) when.push_back("every " + commas(train.save_every) + " steps");
  if (train.save_minutes > 0)
    when.push_back("every " + number_text(train.save_minutes) + " minutes");
  std::string kept = "last " + commas(train.keep_last) + " kept";
  if (train.keep_every > 0) kept += " and multiples of " + commas(train.keep_every);
  return train.out + ", checkpoints " + (when.empty() ? "at the end" : join(when, " and ")) + ", " +
         kept;
}

/// A row for each set of a mixture, of the first ones where there are many.
void add_mixture(const Config& config, const RunFacts& facts, std::vector<LabelledText>& rows) {
  if (facts.sets.size() < 2) return;
  constexpr size_t kMost = 8;
  const size_t shown = std::min(facts.sets.size(), kMost);
  for (size_t set = 0; set < shown; ++set) {
    rows.push_back({set == 0 ? "mixture" : "", share_text(facts.sets[set], config.train) + ": " +
                                                   config.data.train[set].path});
  }
  if (shown < facts.sets.size()) {
    rows.push_back({"", format("and %zu more", facts.sets.size() - shown)});
  }
}

}  // namespace

std::string share_text(const SetSize& set, const TrainConfig& train) {
  const double slots = static_cast<double>(train.batch) * static_cast<double>(train.steps);
  const auto taken = static_cast<double>(set.taken);
  const auto sequences = static_cast<double>(set.sequences.total());
  return format("%.1f %%, %.3g epochs", 100 * taken / slots, taken / sequences);
}

RunSize run_size(const TrainConfig& train, int64_t sequences) {
  RunSize size;
  size.step_tokens = static_cast<double>(train.batch) * static_cast<double>(train.context);
  size.run_tokens = size.step_tokens * static_cast<double>(train.steps);
  size.sequences = sequences;
  if (size.sequences > 0) {
    size.epochs = static_cast<double>(train.batch) * static_cast<double>(train.steps) /
                  static_cast<double>(size.sequences);
  }
  return size;
}

std::string samples_text(const SequenceCounts& sequences, int64_t context) {
  const PackingCounts& samples = sequences.samples;
  if (samples.samples == 0) return "";
  std::string text = commas(samples.samples) + " in " + count_of(sequences.packed, " sequence") +
                     format(", %.1f %% filled, ", 100 * sequences.fill_rate) +
                     count_of(samples.targets, " training target");
  if (samples.truncated > 0) {
    text += ", " + commas(samples.truncated) + " truncated to " + commas(context + 1) + " tokens";
  }
  if (samples.dropped > 0) {
    text += ", " + commas(samples.dropped) + " dropped because the targets are cut off";
  }
  return text;
}

std::string large_count(double count) {
  constexpr double kExact = 9e15;  // below 2^53, where a double holds every integer
  return count < kExact ? with_commas(static_cast<uint64_t>(count)) : format("%.4g", count);
}

std::vector<LabelledText> run_summary(const Config& config, const RunFacts& facts) {
  const SequenceCounts sequences = sum_of(facts.sets);
  std::vector<LabelledText> rows = {
      {"model", model_text(config.model)},
      {"mask", mask_text(config.model)},
      {"tokens", tokens_text(config.train, run_size(config.train, sequences.total()))},
      {"data", data_text(config.data, facts)},
      {"device", device_text(config.train, facts)}};
  if (const std::string samples = samples_text(sequences, config.train.context); !samples.empty()) {
    rows.insert(rows.end() - 1, {"samples", samples});
  }
  add_mixture(config, facts, rows);
  if (facts.processes > 1) {
    rows.push_back({"group", processes_text(config.train, facts.processes)});
  }
  rows.push_back({"output", output_text(config.train)});
  return rows;
}

}  // namespace stablemask
