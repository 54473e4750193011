#include "src/config/config_fields.h"

namespace stablemask {
namespace {

/// The address of config.a.b for the members a, b.
template <auto... kPath>
FieldRef at(Config& config) {
  return &(config.*....*kPath);
}

template <auto kMember>
constexpr auto model = at<&Config::model, kMember>;
template <auto kMember>
constexpr auto stable_mask = at<&Config::model, &ModelConfig::stable_mask, kMember>;
template <auto kMember>
constexpr auto data = at<&Config::data, kMember>;
template <auto kMember>
constexpr auto train = at<&Config::train, kMember>;
template <auto kMember>
constexpr auto optimizer = at<&Config::optimizer, kMember>;
template <auto kMember>
constexpr auto schedule = at<&Config::schedule, kMember>;
template <auto kMember>
constexpr auto eval = at<&Config::eval, kMember>;
template <auto kMember>
constexpr auto generate = at<&Config::generate, kMember>;

constexpr bool kFrozen = true, kFree = false;

// Upper bounds are far beyond use; they keep products of sizes inside 64 bits.
constexpr double kCount = 1e9;
constexpr double kSteps = 1e12;

constexpr Range any() { return {}; }
constexpr Range range(double low, double high) { return {low, high}; }
constexpr Range at_least(double low) { return {.low = low}; }
constexpr Range above(double low) { return {.low = low, .above_low = true}; }
constexpr Range above_up_to(double low, double high) { return {low, high, true}; }
constexpr Range from_to_below(double low, double high) { return {low, high, false, true}; }

constexpr Preset kPresets[] = {
    {"71m", 6, 512, 8, 1536, 50257},
    {"160m", 12, 768, 12, 2048, 50257},
    {"400m", 24, 1024, 16, 2816, 50257},
    {"1.4b", 24, 2048, 16, 5632, 50257},
};
constexpr std::string_view kPresetNames[] = {"", "71m", "160m", "400m", "1.4b"};

constexpr Field kModel[] = {
    {"preset", model<&ModelConfig::preset>, any(), kFree,
     "Sizes of the paper's models as defaults for `layers`, `channels`, `heads`, `ffn_hidden` and "
     "`vocab_size`; what the file states goes before.",
     kPresetNames},
    {"vocab_size", model<&ModelConfig::vocab_size>, range(0, kCount), kFrozen,
     "Rows of the embedding and of the head; 0: the tokenizer's. More than the tokenizer has, for "
     "example a multiple of 64, is only padding."},
    {"layers", model<&ModelConfig::layers>, range(1, 1024), kFrozen, "Number of blocks."},
    {"channels", model<&ModelConfig::channels>, range(1, 1 << 20), kFrozen,
     "Width of the residual stream."},
    {"heads", model<&ModelConfig::heads>, range(1, 4096), kFrozen, "Query heads of a layer."},
    {"kv_heads", model<&ModelConfig::kv_heads>, range(0, 4096), kFrozen,
     "Key and value heads of a layer, a divisor of `heads`; 0: as many as `heads`. Fewer make the "
     "cache of generation smaller."},
    {"head_dim", model<&ModelConfig::head_dim>, range(0, 4096), kFrozen,
     "Width of a head; 0: `channels` / `heads`."},
    {"ffn_hidden", model<&ModelConfig::ffn_hidden>, range(1, 1 << 24), kFrozen,
     "Inner width of the feed-forward layer."},
    {"ffn", model<&ModelConfig::ffn>, any(), kFrozen, "Kind of feed-forward layer."},
    {"norm", model<&ModelConfig::norm>, any(), kFrozen,
     "Kind of normalisation: root mean square, or LayerNorm with weight and bias."},
    {"norm_eps", model<&ModelConfig::norm_eps>, above_up_to(0, 1), kFrozen,
     "Added to the variance before its root is taken."},
    {"qk_norm", model<&ModelConfig::qk_norm>, any(), kFrozen,
     "Normalise queries and keys of each head; steadies large learning rates."},
    {"tied_head", model<&ModelConfig::tied_head>, any(), kFrozen,
     "Use the embedding as the weight of the head; saves parameters in small models."},
    {"position", model<&ModelConfig::position>, any(), kFrozen,
     "How attention sees distances: rotary embedding, linear biases, or not at all."},
    {"rope_theta", model<&ModelConfig::rope_theta>, above(0), kFrozen,
     "Base of the rotary frequencies; raise it for long contexts."},
    {"rope_dims", model<&ModelConfig::rope_dims>, range(0, 4096), kFrozen,
     "Rotated dimensions of a head, even; 0: all."},
    {"window", model<&ModelConfig::window>, range(0, kCount), kFrozen,
     "Keys a token may see, itself included; 0: all. Bounds the cost of long contexts."},
    {"log_length_scale", model<&ModelConfig::log_length_scale>, any(), kFrozen,
     "Multiply attention scores by the logarithm of the length to base 1024, as the published code "
     "does with RoPE."},
    {"init_std", model<&ModelConfig::init_std>, above_up_to(0, 10), kFrozen,
     "Standard deviation of initial weights; residual projections get it divided by "
     "sqrt(2 `layers`)."},
    {"attention", model<&ModelConfig::attention>, any(), kFree,
     "Implementation: the literal formula, a flash kernel with the log-sum-exp correction, or the "
     "fastest that can serve."},
};

constexpr Field kStableMask[] = {
    {"enabled", stable_mask<&StableMaskConfig::enabled>, any(), kFrozen,
     "StableMask on; off is plain causal attention."},
    {"gamma", stable_mask<&StableMaskConfig::gamma>, at_least(0), kFrozen,
     "Decay of the pseudo scores per position: ALiBi's slopes, one number, or one per head. Larger "
     "means less pseudo mass."},
    {"p_base", stable_mask<&StableMaskConfig::p_base>, range(-1e4, 1e4), kFrozen,
     "Pseudo score right after the diagonal, one number or one per head. Lower means less pseudo "
     "mass."},
    {"mask_length", stable_mask<&StableMaskConfig::mask_length>, range(1, kCount), kFrozen,
     "N, the position after which a row has no pseudo slots left: a number, `\"context\"` "
     "(`train.context` of this config), `\"infinite\"` (the same mass in every row), or "
     "`\"sequence\"` (the length of the block, as in the paper's training; cannot generate)."},
    {"learnable", stable_mask<&StableMaskConfig::learnable>, any(), kFrozen,
     "Train `gamma` and `p_base` of every head, starting from these values."},
};

constexpr Field kData[] = {
    {"train", data<&DataConfig::train>, any(), kFree, "Token shards to train on, in this order."},
    {"valid", data<&DataConfig::valid>, any(), kFree, "Token shard to validate on; empty: none."},
    {"tokenizer", data<&DataConfig::tokenizer>, any(), kFree,
     "SentencePiece model that the shards were made with."},
    {"document_mask", data<&DataConfig::document_mask>, any(), kFrozen,
     "Attend within a document only; mask positions start again with each."},
    {"prefetch", data<&DataConfig::prefetch>, range(0, 1024), kFree,
     "Micro-batches prepared ahead by a background thread; 0: no thread."},
    {"verify", data<&DataConfig::verify>, any(), kFree,
     "Check of the shards when a run starts: `payload` reads every shard completely and compares "
     "its SHA-256; `headers` checks headers and file sizes only. Use `headers` when the shards are "
     "large, on a slow disk, and already verified once."},
};

constexpr Field kTrain[] = {
    {"out", train<&TrainConfig::out>, any(), kFree, "Run folder: config, metrics, checkpoints."},
    {"device", train<&TrainConfig::device>, any(), kFree,
     "Where to train; auto takes a GPU if there is one."},
    {"dtype", train<&TrainConfig::dtype>, any(), kFree,
     "Type of activations and weight copies; auto: bf16 on a GPU, fp32 on a CPU. Master weights "
     "are fp32 always."},
    {"seed", train<&TrainConfig::seed>, range(0, 9007199254740992.0), kFrozen,
     "Decides initial weights and the order of the data."},
    {"context", train<&TrainConfig::context>, range(1, 1 << 24), kFrozen,
     "T, tokens of a training sequence."},
    {"batch", train<&TrainConfig::batch>, range(1, 1 << 24), kFrozen,
     "Sequences of one optimizer step."},
    {"micro_batch", train<&TrainConfig::micro_batch>, range(0, 1 << 24), kFree,
     "Sequences of one forward pass, a divisor of `batch`; 0: `batch`. Lower it when memory runs "
     "out."},
    {"steps", train<&TrainConfig::steps>, range(1, kSteps), kFree, "Optimizer steps of the run."},
    {"log_every", train<&TrainConfig::log_every>, range(1, kSteps), kFree,
     "Steps between lines of metrics.jsonl."},
    {"eval_every", train<&TrainConfig::eval_every>, range(0, kSteps), kFree,
     "Steps between validations over the whole shard; 0: at the end only."},
    {"save_every", train<&TrainConfig::save_every>, range(0, kSteps), kFree,
     "Steps between checkpoints; 0: none by steps. The last step always saves one."},
    {"save_minutes", train<&TrainConfig::save_minutes>, at_least(0), kFree,
     "Minutes of training since the last checkpoint after which another is saved, in addition to "
     "`save_every`; 0: none by time. Lower it when losing 15 minutes of work costs too much, raise "
     "it when a checkpoint takes minutes to write."},
    {"keep_last", train<&TrainConfig::keep_last>, range(1, kCount), kFree,
     "How many of the newest checkpoints to keep."},
    {"keep_every", train<&TrainConfig::keep_every>, range(0, kSteps), kFree,
     "Keep checkpoints of steps that are multiples of this as well; 0: none."},
    {"deterministic", train<&TrainConfig::deterministic>, any(), kFree,
     "The same bits in every run on a GPU, at some speed; a CPU always gives them."},
    {"cuda_graph", train<&TrainConfig::cuda_graph>, any(), kFree,
     "GPU: record the training step once and replay it; off to look at single kernels."},
    {"reference_ops", train<&TrainConfig::reference_ops>, any(), kFree,
     "Run every op as its formula in plain LibTorch, slow and large, to check the fused kernels "
     "against."},
    {"activation_checkpointing", train<&TrainConfig::activation_checkpointing>, any(), kFree,
     "The backward pass computes each block's activations anew instead of keeping them: the same "
     "bits, about a third more work, far less memory for many layers or long sequences."},
    {"non_finite", train<&TrainConfig::non_finite>, any(), kFree,
     "What to do about a loss or gradient that is not finite: stop, or skip the step."},
    {"non_finite_limit", train<&TrainConfig::non_finite_limit>, range(1, kCount), kFree,
     "With `skip`: stop after this many skipped steps in a row."},
    {"z_loss", train<&TrainConfig::z_loss>, range(0, 1), kFrozen,
     "Weight of the squared log-sum-exp of the logits in the loss; 1e-4 keeps logits small."},
    {"threads", train<&TrainConfig::threads>, range(0, 4096), kFree, "CPU threads; 0: all cores."},
    {"time_limit_s", train<&TrainConfig::time_limit_s>, at_least(0), kFree,
     "Save and end with code 0 after so many seconds; 0: no limit."},
    {"stop_on_save_error", train<&TrainConfig::stop_on_save_error>, any(), kFree,
     "End the run when a checkpoint cannot be written; false: warn and train on."},
    {"init_from", train<&TrainConfig::init_from>, any(), kFree,
     "Finetuning: checkpoint or run folder whose weights the run starts from."},
    {"freeze_layers", train<&TrainConfig::freeze_layers>, range(0, 1024), kFrozen,
     "Finetuning: the embedding and this many first blocks stay as they are; 0: all is trained."},
};

constexpr Field kOptimizer[] = {
    {"kind", optimizer<&OptimizerConfig::kind>, any(), kFrozen,
     "Optimizer. AdamW is the only one so far."},
    {"lr", optimizer<&OptimizerConfig::lr>, at_least(0), kFree, "Highest learning rate."},
    {"beta1", optimizer<&OptimizerConfig::beta1>, from_to_below(0, 1), kFrozen,
     "AdamW: decay of the mean of the gradients."},
    {"beta2", optimizer<&OptimizerConfig::beta2>, from_to_below(0, 1), kFrozen,
     "AdamW: decay of the mean of their squares; closer to 1 for small batches."},
    {"eps", optimizer<&OptimizerConfig::eps>, above_up_to(0, 1), kFrozen,
     "AdamW: added to the root of the mean square."},
    {"weight_decay", optimizer<&OptimizerConfig::weight_decay>, range(0, 10), kFree,
     "Decoupled decay of matrices, times the learning rate; vectors do not decay."},
    {"clip_norm", optimizer<&OptimizerConfig::clip_norm>, at_least(0), kFree,
     "Gradients are scaled down to this global norm; 0: no clipping."},
};

constexpr Field kSchedule[] = {
    {"kind", schedule<&ScheduleConfig::kind>, any(), kFree,
     "Course of the learning rate after the warm-up; wsd stays at the top and falls linearly at "
     "the end."},
    {"warmup_steps", schedule<&ScheduleConfig::warmup_steps>, range(0, kSteps), kFree,
     "Steps of linear rise to the highest learning rate."},
    {"final_lr_ratio", schedule<&ScheduleConfig::final_lr_ratio>, range(0, 1), kFree,
     "Learning rate of the last step over the highest."},
    {"decay_steps", schedule<&ScheduleConfig::decay_steps>, range(0, kSteps), kFree,
     "With `wsd`: steps of the final fall; 0: a fifth of the run."},
};

constexpr Field kEval[] = {
    {"window", eval<&EvalConfig::window>, range(0, 1 << 24), kFree,
     "Tokens a forward pass sees; 0: `train.context`."},
    {"stride", eval<&EvalConfig::stride>, range(0, 1 << 24), kFree,
     "Tokens scored by each window, its last ones; 0: `window`, so that windows do not overlap."},
    {"batch", eval<&EvalConfig::batch>, range(0, 1 << 20), kFree,
     "Windows of one forward pass; 0: chosen. The result does not depend on it."},
};

constexpr Field kGenerate[] = {
    {"max_tokens", generate<&GenerateConfig::max_tokens>, range(1, kCount), kFree,
     "Most tokens to generate."},
    {"temperature", generate<&GenerateConfig::temperature>, range(0, 100), kFree,
     "Logits are divided by it; 0: always the likeliest token."},
    {"top_k", generate<&GenerateConfig::top_k>, range(0, kCount), kFree,
     "Draw from the k likeliest tokens; 0: from all."},
    {"top_p", generate<&GenerateConfig::top_p>, above_up_to(0, 1), kFree,
     "Draw from the likeliest tokens that together have this probability."},
    {"seed", generate<&GenerateConfig::seed>, range(0, 9007199254740992.0), kFree,
     "Another seed, another text."},
};

constexpr Section kSections[] = {
    {"/model", "The Transformer.", kModel},
    {"/model/stable_mask",
     "The refinement of the causal mask. `true` or `false` may stand for the object.", kStableMask,
     true},
    {"/data", "Text as token shards.", kData},
    {"/train", "The run.", kTrain},
    {"/optimizer", "AdamW.", kOptimizer},
    {"/schedule", "The learning rate over the run.", kSchedule},
    {"/eval", "Validation and `stablemask eval`.", kEval},
    {"/generate", "`stablemask generate`.", kGenerate},
};

constexpr std::string_view kPositionNames[] = {"rope", "alibi", "none"};
constexpr std::string_view kFfnNames[] = {"swiglu", "gelu"};
constexpr std::string_view kNormNames[] = {"rms", "layer"};
constexpr std::string_view kAttentionNames[] = {"auto", "reference", "flash"};
constexpr std::string_view kScheduleNames[] = {"cosine", "linear", "wsd", "constant"};
constexpr std::string_view kDeviceNames[] = {"auto", "cpu", "cuda"};
constexpr std::string_view kDtypeNames[] = {"auto", "fp32", "bf16"};
constexpr std::string_view kNonFiniteNames[] = {"stop", "skip"};
constexpr std::string_view kVerifyNames[] = {"payload", "headers"};
constexpr std::string_view kOptimizerNames[] = {"adamw"};

}  // namespace

std::span<const Section> config_sections() { return kSections; }

const Section* find_section(std::string_view pointer) {
  for (const Section& section : kSections) {
    if (section.pointer == pointer) return &section;
  }
  return nullptr;
}

std::string field_pointer(const Section& section, const Field& field) {
  return std::string(section.pointer) + "/" + std::string(field.name);
}

std::span<const std::string_view> names_of(Position) { return kPositionNames; }
std::span<const std::string_view> names_of(FfnKind) { return kFfnNames; }
std::span<const std::string_view> names_of(NormKind) { return kNormNames; }
std::span<const std::string_view> names_of(AttentionBackend) { return kAttentionNames; }
std::span<const std::string_view> names_of(ScheduleKind) { return kScheduleNames; }
std::span<const std::string_view> names_of(DeviceKind) { return kDeviceNames; }
std::span<const std::string_view> names_of(DtypeKind) { return kDtypeNames; }
std::span<const std::string_view> names_of(NonFinitePolicy) { return kNonFiniteNames; }
std::span<const std::string_view> names_of(VerifyKind) { return kVerifyNames; }
std::span<const std::string_view> names_of(OptimizerKind) { return kOptimizerNames; }

std::span<const Preset> model_presets() { return kPresets; }

}  // namespace stablemask
