#include <algorithm>
#include <string>

#include "src/train/run_inputs.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/infer/load.h"
#include "stablemask/nn/model.h"
#include "stablemask/ops/functional.h"
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

/// Parameters by part; norms and mask parameters are what is left of the total.
struct Parameters {
  explicit Parameters(const ModelConfig& model)
      : total(nn::parameter_count(model)),
        embedding(model.vocab_size * model.channels),
        head(model.tied_head ? 0 : embedding) {
    const int64_t query = model.heads * model.resolved_head_dim();
    const int64_t key_value = 2 * model.resolved_kv_heads() * model.resolved_head_dim();
    const int64_t up = (model.ffn == FfnKind::kSwiglu ? 2 : 1) * model.ffn_hidden;
    attention = model.layers * model.channels * (2 * query + key_value);
    ffn = model.layers * model.channels * (up + model.ffn_hidden);
    rest = total - embedding - head - attention - ffn;
  }
  int64_t total, embedding, head, attention, ffn, rest;
};

/// Bytes that the backward pass keeps of one micro-batch: per layer the two sums of the residual
/// stream and their norms, the packed projection, the attention's output, the FFN's packed and
/// activated hidden; and the logits of one chunk, which become their gradient. With checkpointing,
/// per layer its input, and all the rest of one layer at a time.
double activation_bytes(const Config& config, int64_t micro_batch, bool on_gpu, int64_t element) {
  const ModelConfig& model = config.model;
  const int64_t rows = micro_batch * config.train.context;
  const int64_t query = model.heads * model.resolved_head_dim();
  const int64_t packed = query + 2 * model.resolved_kv_heads() * model.resolved_head_dim();
  const int64_t up = (model.ffn == FfnKind::kSwiglu ? 2 : 1) * model.ffn_hidden;
  const int64_t per_layer = 4 * model.channels + packed + query + up + model.ffn_hidden;
  const int64_t chunk = ops::logit_chunk_rows(on_gpu, model.vocab_size, element);
  const int64_t logits = std::min(rows, chunk) * model.vocab_size;
  const int64_t kept = config.train.activation_checkpointing
                           ? model.layers * model.channels + per_layer
                           : model.layers * per_layer;
  return static_cast<double>(element * (rows * (kept + 4 * model.channels) + logits));
}

}  // namespace

std::string dry_run_report(const Config& config_in) {
  const RunInputs inputs = open_inputs(config_in.data);
  const Config config = with_vocabulary(config_in, inputs.tokenizer);
  const TrainConfig& train = config.train;
  const at::Device device = select_device(train.device);
  const bool bf16 = select_dtype(train.dtype, device) == at::kBFloat16;
  const int64_t micro_batch = train.micro_batch ? train.micro_batch : train.batch;
  const Parameters parameters(config.model);
  const double total = static_cast<double>(parameters.total);
  const double flops = nn::flops_per_token(config.model, train.context);
  const int64_t step_tokens = train.batch * train.context;
  const int64_t sequences = std::max<int64_t>(0, (inputs.train_tokens() - 1) / train.context);
  const double activations = activation_bytes(config, micro_batch, !device.is_cpu(), bf16 ? 2 : 4);
  // bf16 weights and their remainders take as much room as fp32 ones.
  const double weights = total * 4, gradients = total * 4, moments = total * 8;

  std::string text;
  text += row("device", device.is_cpu() ? "cpu" : "cuda", bf16 ? "bf16, fp32 master" : "fp32");
  text += row("parameters", with_commas(parameters.total));
  text += row("  embedding", with_commas(parameters.embedding),
              with_commas(config.model.vocab_size) + " token ids");
  text += row("  head", with_commas(parameters.head), config.model.tied_head ? "tied" : "");
  text += row("  attention", with_commas(parameters.attention));
  text += row("  feed-forward", with_commas(parameters.ffn));
  text += row("  norms and masks", with_commas(parameters.rest));
  text += row("FLOPs per token", format("%.4g", flops), "forward and backward");
  text += row("FLOPs of the run", format("%.4g", flops * step_tokens * train.steps));
  text += row("memory, estimated", byte_text(weights + gradients + moments + activations));
  text += row("  weights", byte_text(weights));
  text += row("  gradients", byte_text(gradients));
  text += row("  optimizer", byte_text(moments));
  text += row("  activations", byte_text(activations),
              format("micro-batch of %lld x %lld tokens", static_cast<long long>(micro_batch),
                     static_cast<long long>(train.context)));
  text += row("checkpoint", byte_text(total * 12), "weights and optimizer");
  text += row("steps", with_commas(train.steps), with_commas(step_tokens) + " tokens each");
  text += row("tokens of the run", with_commas(step_tokens * train.steps));
  text += row("training tokens", with_commas(inputs.train_tokens()),
              with_commas(sequences) + " sequences of the context's length");
  if (sequences > 0) {
    text +=
        row("epochs", format("%.3f", static_cast<double>(train.batch) * train.steps / sequences));
  }
  return text;
}

}  // namespace stablemask
