#include "src/config/foreign_keys.h"

#include <algorithm>
#include <cctype>

#include "src/config/config_fields.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/text.h"
#include "stablemask/config/config.h"

namespace stablemask {
namespace {

constexpr std::string_view kPerStep = "sequences per optimizer step, all micro-batches together";
constexpr std::string_view kPerPass = "sequences per forward pass";
constexpr std::string_view kAccumulated =
    "sequences per forward pass; train.batch / train.micro_batch passes are accumulated";
constexpr std::string_view kTokens = "in tokens";
constexpr std::string_view kRatio = "a fraction of optimizer.lr";
constexpr std::string_view kDtype = "\"bf16\", \"fp32\" or \"auto\"";
constexpr std::string_view kShards = "token shards, made by stablemask data prepare";
constexpr std::string_view kEverySteps = "in optimizer steps";
constexpr std::string_view kNoDropout = "dropout; remove it";
constexpr std::string_view kBiasValues = "\"none\", \"qkv\" or \"all\"";
constexpr std::string_view kOneDevice = "a run uses one process on one device; remove it";
constexpr std::string_view kShuffled = "the data order follows from train.seed; remove it";
constexpr std::string_view kResume = "use the option --resume on the command line";
constexpr std::string_view kMetrics = "metrics are written to metrics.jsonl in train.out";

constexpr ForeignKey kForeignKeys[] = {
    // Sections.
    {"", "training", "train", ""},
    {"", "trainer", "train", ""},
    {"", "training_args", "train", ""},
    {"", "dataset", "data", ""},
    {"", "optim", "optimizer", ""},
    {"", "scheduler", "schedule", ""},
    {"", "lr_scheduler", "schedule", ""},
    {"", "evaluation", "eval", ""},
    {"", "generation", "generate", ""},
    {"", "sampling", "generate", ""},
    // Length of the run and of the batch.
    {"", "num_epochs", "train.epochs", ""},
    {"", "max_epochs", "train.epochs", ""},
    {"", "num_train_epochs", "train.epochs", ""},
    {"", "max_steps", "train.steps", ""},
    {"", "num_steps", "train.steps", ""},
    {"", "total_steps", "train.steps", ""},
    {"", "train_steps", "train.steps", ""},
    {"", "num_train_steps", "train.steps", ""},
    {"", "max_iters", "train.steps", ""},
    {"", "train_iters", "train.steps", ""},
    {"", "iterations", "train.steps", ""},
    {"train", "max_tokens", "train.tokens", ""},
    {"", "batch_size", "train.batch", kPerStep},
    {"eval", "batch_size", "eval.batch", ""},
    {"", "global_batch_size", "train.batch", kPerStep},
    {"", "train_batch_size", "train.batch", kPerStep},
    {"", "total_batch_size", "train.batch", kPerStep},
    {"", "micro_batch_size", "train.micro_batch", kPerPass},
    {"", "device_batch_size", "train.micro_batch", kPerPass},
    {"", "per_device_train_batch_size", "train.micro_batch", kPerPass},
    {"", "per_device_eval_batch_size", "eval.batch", ""},
    {"", "eval_batch_size", "eval.batch", ""},
    {"", "gradient_accumulation_steps", "train.micro_batch", kAccumulated},
    {"", "gradient_accumulation", "train.micro_batch", kAccumulated},
    {"", "grad_accum_steps", "train.micro_batch", kAccumulated},
    {"", "accumulate_grad_batches", "train.micro_batch", kAccumulated},
    {"", "seq_len", "train.context", kTokens},
    {"", "seq_length", "train.context", kTokens},
    {"", "sequence_length", "train.context", kTokens},
    {"", "max_seq_len", "train.context", kTokens},
    {"", "max_seq_length", "train.context", kTokens},
    {"", "block_size", "train.context", kTokens},
    {"", "context_length", "train.context", kTokens},
    {"", "n_ctx", "train.context", kTokens},
    {"", "n_positions", "train.context", kTokens},
    {"", "max_position_embeddings", "train.context", kTokens},
    {"generate", "max_length", "generate.max_tokens", "without the prompt"},
    {"", "max_length", "train.context", kTokens},
    {"", "early_stopping", "train.patience", "in validations"},
    {"", "early_stopping_patience", "train.patience", "in validations"},
    {"", "ema", "train.ema_decay", ""},
    {"", "load_best_model_at_end", "train.keep_best", ""},
    {"", "save_best", "train.keep_best", ""},
    {"", "max_time", "train.time_limit_s", "in seconds"},
    {"", "time_limit", "train.time_limit_s", "in seconds"},
    // Model.
    {"", "n_layer", "model.layers", ""},
    {"", "n_layers", "model.layers", ""},
    {"", "num_layers", "model.layers", ""},
    {"", "num_hidden_layers", "model.layers", ""},
    {"", "n_embd", "model.channels", ""},
    {"", "d_model", "model.channels", ""},
    {"", "dim", "model.channels", ""},
    {"", "embed_dim", "model.channels", ""},
    {"", "hidden_dim", "model.channels", ""},
    {"", "hidden_size", "model.channels", ""},
    {"", "n_head", "model.heads", ""},
    {"", "n_heads", "model.heads", ""},
    {"", "num_heads", "model.heads", ""},
    {"", "num_attention_heads", "model.heads", ""},
    {"", "n_kv_heads", "model.kv_heads", ""},
    {"", "num_kv_heads", "model.kv_heads", ""},
    {"", "num_key_value_heads", "model.kv_heads", ""},
    {"", "n_query_groups", "model.kv_heads", ""},
    {"", "head_size", "model.head_dim", ""},
    {"", "d_head", "model.head_dim", ""},
    {"", "intermediate_size", "model.ffn_hidden", ""},
    {"", "ffn_dim", "model.ffn_hidden", ""},
    {"", "d_ff", "model.ffn_hidden", ""},
    {"", "n_inner", "model.ffn_hidden", ""},
    {"", "activation", "model.ffn", "\"swiglu\", \"gelu\" or \"gelu_tanh\""},
    {"", "hidden_act", "model.ffn", "\"swiglu\", \"gelu\" or \"gelu_tanh\""},
    {"", "norm_type", "model.norm", ""},
    {"", "rms_norm_eps", "model.norm_eps", ""},
    {"", "layer_norm_eps", "model.norm_eps", ""},
    {"", "layer_norm_epsilon", "model.norm_eps", ""},
    {"", "use_parallel_residual", "model.parallel_residual", ""},
    {"", "tie_word_embeddings", "model.tied_head", ""},
    {"", "tie_embeddings", "model.tied_head", ""},
    {"", "tied_embeddings", "model.tied_head", ""},
    {"", "weight_tying", "model.tied_head", ""},
    {"", "position_embedding", "model.position", ""},
    {"", "position_embedding_type", "model.position", ""},
    {"", "rope_base", "model.rope_theta", ""},
    {"", "rotary_base", "model.rope_theta", ""},
    {"", "rotary_dim", "model.rope_dims", ""},
    {"", "rotary_pct", "model.rope_dims", "a number of dimensions, not a fraction"},
    {"", "sliding_window", "model.window", kTokens},
    {"", "initializer_range", "model.init_std", ""},
    {"", "attn_implementation", "model.attention", ""},
    {"", "flash_attention", "model.attention", ""},
    {"model", "dropout", "", kNoDropout},
    {"train", "dropout", "", kNoDropout},
    {"", "attention_dropout", "", kNoDropout},
    {"", "attn_dropout", "", kNoDropout},
    {"", "hidden_dropout", "", kNoDropout},
    {"", "attn_pdrop", "", kNoDropout},
    {"", "embd_pdrop", "", kNoDropout},
    {"", "resid_pdrop", "", kNoDropout},
    {"", "use_bias", "model.bias", kBiasValues},
    {"", "attention_bias", "model.bias", kBiasValues},
    {"", "mlp_bias", "model.bias", kBiasValues},
    // Optimizer.
    {"optimizer", "name", "optimizer.kind", ""},
    {"optimizer", "type", "optimizer.kind", ""},
    {"", "optimizer_type", "optimizer.kind", ""},
    {"", "learning_rate", "optimizer.lr", ""},
    {"", "max_lr", "optimizer.lr", "the peak learning rate"},
    {"", "peak_lr", "optimizer.lr", "the peak learning rate"},
    {"", "adam_beta1", "optimizer.beta1", ""},
    {"", "adam_beta2", "optimizer.beta2", ""},
    {"", "betas", "optimizer.beta1", "and optimizer.beta2"},
    {"", "muon_momentum", "optimizer.momentum", ""},
    {"", "adam_eps", "optimizer.eps", ""},
    {"", "adam_epsilon", "optimizer.eps", ""},
    {"", "epsilon", "optimizer.eps", ""},
    {"", "wd", "optimizer.weight_decay", ""},
    {"", "grad_clip", "optimizer.clip_norm", "the global norm"},
    {"", "clip_grad", "optimizer.clip_norm", "the global norm"},
    {"", "gradient_clip_val", "optimizer.clip_norm", "the global norm"},
    {"", "gradient_clipping", "optimizer.clip_norm", "the global norm"},
    {"", "max_grad_norm", "optimizer.clip_norm", "the global norm"},
    {"", "label_smoothing", "", "the loss is the plain cross-entropy; remove it"},
    // Schedule.
    {"schedule", "name", "schedule.kind", ""},
    {"schedule", "type", "schedule.kind", ""},
    {"", "lr_scheduler_type", "schedule.kind", ""},
    {"", "lr_schedule", "schedule.kind", ""},
    {"", "lr_decay_style", "schedule.kind", ""},
    {"", "warmup", "schedule.warmup_steps", kEverySteps},
    {"", "warmup_iters", "schedule.warmup_steps", kEverySteps},
    {"", "num_warmup_steps", "schedule.warmup_steps", kEverySteps},
    {"", "lr_warmup_steps", "schedule.warmup_steps", kEverySteps},
    {"", "warmup_ratio", "schedule.warmup_steps", "in optimizer steps, not a fraction"},
    {"", "min_lr", "schedule.final_lr_ratio", kRatio},
    {"", "min_lr_ratio", "schedule.final_lr_ratio", kRatio},
    {"", "lr_decay_iters", "schedule.decay_steps", "for wsd; other schedules end at train.steps"},
    {"", "lr_decay_steps", "schedule.decay_steps", "for wsd; other schedules end at train.steps"},
    // Data.
    {"", "train_data", "data.train", kShards},
    {"", "train_file", "data.train", kShards},
    {"", "data_path", "data.train", kShards},
    {"", "dataset_name", "data.train", kShards},
    {"", "val_data", "data.valid", kShards},
    {"data", "val", "data.valid", kShards},
    {"data", "validation", "data.valid", kShards},
    {"", "validation_file", "data.valid", kShards},
    {"", "tokenizer_path", "data.tokenizer", "a SentencePiece .model"},
    {"", "tokenizer_name", "data.tokenizer", "a SentencePiece .model"},
    {"", "num_workers", "data.prefetch", "one thread prepares so many micro-batches ahead"},
    {"", "dataloader_num_workers", "data.prefetch", "one thread prepares so many ahead"},
    {"", "shuffle", "", kShuffled},
    // Run.
    {"", "output_dir", "train.out", "the run folder"},
    {"", "out_dir", "train.out", "the run folder"},
    {"", "save_dir", "train.out", "the run folder"},
    {"", "checkpoint_dir", "train.out", "the run folder"},
    {"", "save_steps", "train.save_every", kEverySteps},
    {"", "save_interval", "train.save_every", kEverySteps},
    {"", "checkpoint_interval", "train.save_every", kEverySteps},
    {"", "save_total_limit", "train.keep_last", ""},
    {"", "logging_steps", "train.log_every", kEverySteps},
    {"", "log_interval", "train.log_every", kEverySteps},
    {"", "eval_steps", "train.eval_every", kEverySteps},
    {"", "eval_interval", "train.eval_every", kEverySteps},
    {"", "val_interval", "train.eval_every", kEverySteps},
    {"", "val_check_interval", "train.eval_every", kEverySteps},
    {"", "random_seed", "train.seed", ""},
    {"", "bf16", "train.dtype", kDtype},
    {"", "amp", "train.dtype", kDtype},
    {"", "mixed_precision", "train.dtype", kDtype},
    {"", "torch_dtype", "train.dtype", kDtype},
    {"", "fp16", "", "use train.dtype \"bf16\" or \"fp32\""},
    {"", "fp8", "train.precision", "\"fp8\" or \"dtype\""},
    {"", "gradient_checkpointing", "train.activation_checkpointing", ""},
    {"", "recompute", "train.activation_checkpointing", ""},
    {"", "num_threads", "train.threads", ""},
    {"", "model_name_or_path", "train.init_from", "a checkpoint or run folder"},
    {"", "pretrained_model", "train.init_from", "a checkpoint or run folder"},
    {"", "init_checkpoint", "train.init_from", "a checkpoint or run folder"},
    {"", "resume", "", kResume},
    {"", "resume_from", "", kResume},
    {"", "resume_from_checkpoint", "", kResume},
    {"", "compile", "", "ops are fused already; see train.cuda_graph"},
    {"", "torch_compile", "", "ops are fused already; see train.cuda_graph"},
    {"", "wandb", "", kMetrics},
    {"", "wandb_project", "", kMetrics},
    {"", "report_to", "", kMetrics},
    {"", "deepspeed", "", kOneDevice},
    {"", "fsdp", "", kOneDevice},
    {"", "ddp", "", kOneDevice},
    {"", "devices", "", kOneDevice},
    {"", "num_gpus", "", kOneDevice},
    {"", "world_size", "", kOneDevice},
    {"", "lora_rank", "lora.rank", ""},
    {"", "lora_r", "lora.rank", ""},
    {"lora", "r", "lora.rank", ""},
    {"", "lora_alpha", "lora.alpha", ""},
    {"", "lora_dropout", "lora.dropout", ""},
    {"", "target_modules", "lora.targets", "\"qkv\", \"proj\", \"up\", \"down\""},
    {"", "lora_target_modules", "lora.targets", "\"qkv\", \"proj\", \"up\", \"down\""},
    // Generation.
    {"", "max_new_tokens", "generate.max_tokens", ""},
    {"", "do_sample", "generate.temperature", "0 is greedy"},
    {"", "num_beams", "", "text is sampled or greedy; remove it"},
    {"", "repeat_penalty", "generate.repetition_penalty", ""},
    {"", "presence_penalty", "", "use generate.repetition_penalty"},
    {"", "frequency_penalty", "", "use generate.repetition_penalty"},
};

/// "Learning-Rate" → "learning_rate".
std::string normalised(std::string_view key) {
  std::string name;
  for (const char c : key) {
    name += c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return name;
}

/// nullptr: no entry for this key in this section ("": the entries for anywhere).
const ForeignKey* find_foreign(std::string_view section, std::string_view key) {
  const auto found = std::find_if(
      std::begin(kForeignKeys), std::end(kForeignKeys),
      [&](const ForeignKey& entry) { return entry.section == section && entry.key == key; });
  return found == std::end(kForeignKeys) ? nullptr : found;
}

std::string answer(const ForeignKey& entry) {
  const std::string note(entry.note);
  if (entry.path.empty()) return "not supported: " + note;
  return "unknown key; this is " + std::string(entry.path) + " here" +
         (note.empty() ? "" : " (" + note + ")");
}

/// Names that may stand in the object at `pointer`.
std::vector<std::string> keys_of(std::string_view pointer) {
  std::vector<std::string> keys;
  if (const Section* section = find_section(pointer)) {
    for (const Field& field : section->fields) keys.emplace_back(field.name);
  }
  for (const Section& section : config_sections()) {
    const size_t slash = section.pointer.rfind('/');
    if (section.pointer.substr(0, slash) == pointer) {
      keys.emplace_back(section.pointer.substr(slash + 1));
    }
  }
  return keys;
}

/// Pointers of all fields and sections with this name.
std::vector<std::string> places_of(std::string_view name) {
  std::vector<std::string> pointers;
  for (const Section& section : config_sections()) {
    if (section.pointer.substr(section.pointer.rfind('/') + 1) == name) {
      pointers.emplace_back(section.pointer);
    }
    if (const Field* field = find_field(section, name)) {
      pointers.push_back(field_pointer(section, *field));
    }
  }
  return pointers;
}

}  // namespace

std::span<const ForeignKey> foreign_keys() { return kForeignKeys; }

std::string unknown_key(std::string_view key, const std::string& parent) {
  const std::string name = normalised(key);
  const std::string_view section = parent.empty() ? "" : std::string_view(parent).substr(1);
  const ForeignKey* entry = section.empty() ? nullptr : find_foreign(section, name);
  if (entry) return answer(*entry);
  const std::vector<std::string> places = places_of(key);
  if (!places.empty()) return "unknown key here; it belongs at " + join(places, " or ");
  entry = find_foreign("", name);
  if (entry) return answer(*entry);
  return "unknown key" + did_you_mean(key, keys_of(parent));
}

std::vector<std::string> fields_for_option(std::string_view option) {
  const std::string name = normalised(option);
  std::vector<std::string> paths;
  for (const Section& section : config_sections()) {
    for (const Field& field : section.fields) {
      std::string path = field_pointer(section, field).substr(1);
      std::replace(path.begin(), path.end(), '/', '.');
      if (name == field.name || name == path) paths.push_back(std::move(path));
    }
  }
  const ForeignKey* entry = paths.empty() ? find_foreign("", name) : nullptr;
  if (entry && entry->path.find('.') != std::string_view::npos) paths.emplace_back(entry->path);
  return paths;
}

}  // namespace stablemask
