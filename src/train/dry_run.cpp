#include <algorithm>
#include <optional>
#include <string>

#include "src/train/disk_need.h"
#include "src/train/run_inputs.h"
#include "src/train/summary.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/infer/load.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/ops/functional.h"
#include "stablemask/optim/optimizer.h"
#include "stablemask/optim/weight_average.h"
#include "stablemask/train/trainer.h"

namespace stablemask {
namespace {

std::string byte_text(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  for (; bytes >= 1024 && unit < 4; ++unit) bytes /= 1024;
  return format(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

std::string row(const char* name, const std::string& value, const std::string& note = "") {
  return format("%-22s %18s", name, value.c_str()) + (note.empty() ? "" : "   " + note) + "\n";
}

std::string count_row(const char* name, int64_t count, const std::string& note = "") {
  return row(name, with_commas(count), note);
}

/// Parameters by role, and those that are trained.
struct ParameterCounts {
  explicit ParameterCounts(const Config& config) {
    for (const nn::Parameter& parameter : nn::parameters(config.model)) {
      const int64_t count = parameter.numel();
      total += count;
      if (!parameter.is_frozen(config.train.freeze_layers)) trained += count;
      switch (parameter.role) {
        case nn::Role::kEmbedding:
        case nn::Role::kPositions:
          embedding += count;
          break;
        case nn::Role::kHead:
          head += count;
          break;
        case nn::Role::kProjection:
          projections += count;
          break;
        case nn::Role::kAdapter:
          adapters += count;
          break;
        default:
          rest += count;
      }
    }
  }
  int64_t total = 0, trained = 0, embedding = 0, head = 0, projections = 0, rest = 0, adapters = 0;
};

/// Numbers that a layer keeps per token for the backward pass. With fp8 products, of which none has
/// an adapter, they keep of their inputs, the attention's output among them, a byte each.
double kept_by_layer(const Config& config, int64_t element) {
  const ModelConfig& model = config.model;
  const int64_t kept = nn::kept_per_token(model);
  if (config.train.precision != Precision::kFp8) return static_cast<double>(kept);
  const int64_t inputs = 2 * model.channels + model.ffn_hidden;
  const int64_t bytes = inputs + model.heads * model.resolved_head_dim();
  return static_cast<double>(kept - inputs) +
         static_cast<double>(bytes) / static_cast<double>(element);
}

/// Bytes that one micro-batch keeps for the backward pass: kept_by_layer of each layer and the
/// logits of one chunk. With activation checkpointing: the input of each layer, and all of the
/// above for one layer.
double activation_bytes(const Config& config, int64_t micro_batch, bool on_gpu, int64_t element) {
  const ModelConfig& model = config.model;
  const double rows = static_cast<double>(micro_batch) * static_cast<double>(config.train.context);
  const double per_layer = kept_by_layer(config, element);
  const auto layers = static_cast<double>(model.layers),
             channels = static_cast<double>(model.channels);
  const auto chunk = static_cast<double>(
      ops::logit_chunk_rows(on_gpu, model.vocab_size, element, model.lora.rank > 0));
  const double logits = std::min(rows, chunk) * static_cast<double>(model.vocab_size);
  const double kept =
      config.train.activation_checkpointing ? layers * channels + per_layer : layers * per_layer;
  return static_cast<double>(element) * (rows * (kept + 4 * channels) + logits);
}

/// Of a process. `split`: number of processes that the optimizer's state and the low-order bits of
/// the weights are split among.
struct MemoryEstimate {
  MemoryEstimate(const Config& config, const ParameterCounts& parameters, int64_t split,
                 bool on_gpu, bool bf16) {
    const auto total = static_cast<double>(parameters.total);
    const auto trained = static_cast<double>(parameters.trained);
    const auto parts = static_cast<double>(split);
    // fp32, or bf16 with the low-order bits beside them, which those under adapters lack.
    const double exact = config.model.lora.rank > 0 ? trained : total;
    weights = bf16 ? 2 * total + 2 * exact / parts : 4 * total;
    // fp8 copies, as they are and transposed.
    if (config.train.precision == Precision::kFp8) {
      weights += 2 * static_cast<double>(parameters.projections);
    }
    gradients = 4 * trained;
    const int64_t element = bf16 && on_gpu ? 2 : 4;
    for (const nn::Parameter& parameter : nn::parameters(config.model)) {
      if (parameter.is_frozen(config.train.freeze_layers)) continue;
      const OptimizerBytes bytes = optimizer_bytes(config.optimizer, parameter, element);
      optimizer += static_cast<double>(bytes.state) / parts + static_cast<double>(bytes.working);
    }
    if (config.train.ema_decay > 0) average = kAverageBytesPerParameter * trained / parts;
  }
  double sum() const { return weights + gradients + optimizer + average; }
  double weights, gradients, optimizer = 0, average = 0;
};

std::string memory_rows(const Config& config, const ParameterCounts& parameters, int64_t processes,
                        bool on_gpu, bool bf16) {
  const int64_t split = config.train.shard == ShardKind::kOptimizer ? processes : 1;
  const MemoryEstimate memory(config, parameters, split, on_gpu, bf16);
  const int64_t micro_batch = config.train.resolved_micro_batch(processes);
  const double activations = activation_bytes(config, micro_batch, on_gpu, bf16 ? 2 : 4);
  std::string text;
  text += row("memory, estimated", byte_text(memory.sum() + activations),
              processes > 1 ? "of each process" : "");
  text += row("  weights", byte_text(memory.weights));
  text += row("  gradients", byte_text(memory.gradients));
  text += row("  optimizer", byte_text(memory.optimizer),
              split > 1 ? format("split among %lld processes", static_cast<long long>(split)) : "");
  if (memory.average > 0) text += row("  average", byte_text(memory.average), "of the weights");
  text += row("  activations", byte_text(activations),
              format("micro-batch of %lld x %lld tokens", static_cast<long long>(micro_batch),
                     static_cast<long long>(config.train.context)));
  return text;
}

/// For a run that goes on from the newest checkpoint of train.out, if there is one.
std::string disk_rows(const Config& config, const Tokenizer& tokenizer) {
  int64_t step = 0;
  for (const CheckpointSummary& present : list_checkpoints(config.train.out + "/checkpoints")) {
    if (present.complete) step = std::max(step, present.step);
  }
  const DiskNeed need(config, tokenizer, step);
  std::string note =
      format("%lld more checkpoint%s and logs; ", static_cast<long long>(need.checkpoints()),
             need.checkpoints() == 1 ? "" : "s");
  const std::optional<uint64_t> free = free_space(config.train.out);
  note += free ? byte_text(static_cast<double>(*free)) + " free" : "free space not known";
  if (!need.problem().empty()) note += ": NOT ENOUGH";
  const bool averaged = config.train.ema_decay > 0;
  return row("checkpoint", byte_text(need.checkpoint_bytes()),
             averaged ? "averages, weights and optimizer" : "weights and optimizer") +
         row("disk, at most", byte_text(need.bytes()), note);
}

std::string run_rows(const Config& config, int64_t processes, const RunInputs& inputs,
                     const std::vector<SetSize>& sets) {
  const TrainConfig& train = config.train;
  const SequenceCounts sequences = sum_of(sets);
  const RunSize size = run_size(train, sequences.total());
  std::string text;
  text += count_row("steps", train.steps, large_count(size.step_tokens) + " tokens each");
  if (processes > 1) {
    const int64_t micro_batch = train.resolved_micro_batch(processes);
    text +=
        count_row("processes", processes,
                  format("%lld x %lld of the %lld sequences of a step each",
                         static_cast<long long>(train.batch / processes / micro_batch),
                         static_cast<long long>(micro_batch), static_cast<long long>(train.batch)));
  }
  text += row("tokens of the run", large_count(size.run_tokens));
  text += count_row("training tokens", inputs.train_tokens(),
                    with_commas(size.sequences) + " sequences of the context's length");
  if (const std::string samples = samples_text(sequences, train.context); !samples.empty()) {
    text += row("samples", "", samples);
  }
  if (size.epochs) text += row("epochs", format("%.3f", *size.epochs));
  for (size_t set = 0; sets.size() > 1 && set < sets.size(); ++set) {
    text += count_row("  sequences of a set", sets[set].sequences.total(),
                      share_text(sets[set], train) + ", " + config.data.train[set].path);
  }
  return text;
}

}  // namespace

std::string dry_run_report(const Config& config_in, int64_t processes) {
  require_equal_shares(config_in.train, processes);
  const RunInputs inputs = open_inputs(config_in);
  Config config = with_document_mask(with_vocabulary(config_in, inputs.tokenizer), inputs);
  resolve(config);
  if (resolve_length(config, inputs)) {
    for (const std::string& warning : config_warnings(config)) log_warning(warning);
  }
  const TrainConfig& train = config.train;
  const at::Device device = select_device(train.device);
  const bool bf16 = select_dtype(train.dtype, device) == at::kBFloat16;
  const ParameterCounts parameters(config);
  const double flops = nn::flops_per_token(config.model, train.context);
  const std::vector<SetSize> sets = inputs.sets(train);
  const RunSize size = run_size(train, sum_of(sets).total());
  std::string text;
  text += row("device", device.is_cpu() ? "cpu" : "cuda", bf16 ? "bf16, fp32 master" : "fp32");
  text += count_row("parameters", parameters.total);
  const int64_t padding = config.model.vocab_size - inputs.tokenizer.vocab_size();
  text += count_row("  embedding", parameters.embedding,
                    with_commas(config.model.vocab_size) + " token ids" +
                        (padding > 0 ? ", " + with_commas(padding) + " of them padding" : ""));
  text += count_row("  head", parameters.head, config.model.tied_head ? "tied" : "");
  text += count_row("  projections", parameters.projections, "attention and feed-forward layers");
  text += count_row("  norms and masks", parameters.rest);
  if (parameters.adapters > 0) text += count_row("  adapters", parameters.adapters);
  if (parameters.trained != parameters.total) text += count_row("  trained", parameters.trained);
  text += row("FLOPs per token", format("%.4g", flops), "forward and backward");
  text += row("FLOPs of the run", format("%.4g", flops * size.run_tokens));
  text += memory_rows(config, parameters, processes, !device.is_cpu(), bf16);
  text += disk_rows(config, inputs.tokenizer);
  text += run_rows(config, processes, inputs, sets);
  return text;
}

}  // namespace stablemask
