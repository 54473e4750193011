#include "src/config/config_fields.h"

#include "src/config/field_parts.h"

namespace stablemask {
namespace {

using namespace field_parts;

constexpr std::string_view kPresetNames[] = {"", "71m", "160m", "400m", "1.4b"};

constexpr Field kModel[] = {
    {"preset", model<&ModelConfig::preset>, any(), kFree,
     "Model size of the paper: sets the defaults of `layers`, `channels`, `heads`, `ffn_hidden` "
     "and "
     "`vocab_size`; stated fields take precedence. Use it to start from a known size: 71m is 6 x "
     "512 "
     "(layers x channels), 160m 12 x 768, 400m 24 x 1024, 1.4b 24 x 2048.",
     kPresetNames},
    {"vocab_size", model<&ModelConfig::vocab_size>, range(0, kCount), kFrozen,
     "Vocabulary size, rows of the embedding and of the output head; 0: the tokenizer's. Round it "
     "up "
     "to a multiple of 64 for faster matrix products; the added rows are padding."},
    {"layers", model<&ModelConfig::layers>, range(1, 1024), kFrozen,
     "Number of Transformer blocks. More layers add quality, and cost in proportion."},
    {"channels", model<&ModelConfig::channels>, range(1, 1 << 20), kFrozen,
     "Width of the residual stream (d_model, hidden size). Multiples of 64 are fastest on a GPU."},
    {"heads", model<&ModelConfig::heads>, range(1, 4096), kFrozen,
     "Query heads per layer. Usual head sizes, `channels` / `heads`, are 64 and 128."},
    {"kv_heads", model<&ModelConfig::kv_heads>, range(0, 4096), kFrozen,
     "Key and value heads per layer, a divisor of `heads`; 0: equal to `heads`. Lower it "
     "(grouped-query attention) to shrink the KV cache of generation."},
    {"head_dim", model<&ModelConfig::head_dim>, range(0, 4096), kFrozen,
     "Size of a head; 0: `channels` / `heads`. Set it when `channels` is not a multiple of "
     "`heads`."},
    {"ffn_hidden", model<&ModelConfig::ffn_hidden>, range(1, 1 << 24), kFrozen,
     "Hidden size of the feed-forward layer. Usual: 8/3 `channels` for swiglu, 4 `channels` for "
     "gelu."},
    {"ffn", model<&ModelConfig::ffn>, any(), kFrozen,
     "Feed-forward layer: SwiGLU (three matrices) or GELU (two matrices), exact or with the tanh "
     "approximation. Use gelu to compare with GPT-NeoX-like and gelu_tanh with GPT-2-like models."},
    {"norm", model<&ModelConfig::norm>, any(), kFrozen,
     "Normalisation before attention, feed-forward layer and output head: RMSNorm, or LayerNorm "
     "with "
     "weight and bias. Use layer to compare with GPT-2-like models; rms has the faster kernels."},
    {"norm_eps", model<&ModelConfig::norm_eps>, range(kFp32Min, 1), kFrozen,
     "Epsilon added to the mean square (rms) or variance (layer) under the root."},
    {"qk_norm", model<&ModelConfig::qk_norm>, any(), kFrozen,
     "RMSNorm of the queries and keys of each head. Turn it on when training diverges at the "
     "learning rate that you want."},
    {"bias", model<&ModelConfig::bias>, any(), kFrozen,
     "Biases of the linear layers of a block, initially 0: none, of the query, key and value "
     "projections (qkv), or of all projections. Use qkv for Qwen2-like and all for GPT-2-like "
     "models; training without biases is faster. LayerNorm's bias belongs to `norm`."},
    {"parallel_residual", model<&ModelConfig::parallel_residual>, any(), kFrozen,
     "Both layers of a block read its input, x + attention(norm(x)) + ffn(norm(x)), each with its "
     "own norm, instead of one after the other. Use it for GPT-NeoX-like models."},
    {"tied_head", model<&ModelConfig::tied_head>, any(), kFrozen,
     "Use the embedding matrix as the output head too (weight tying). Turn it on for small models, "
     "whose parameters are mostly vocabulary."},
    {"position", model<&ModelConfig::position>, any(), kFrozen,
     "Position encoding: rotary embedding (RoPE), ALiBi's linear biases, none, or a learned vector "
     "for each position, added to the embedding. Use learned for GPT-2-like models only: texts "
     "longer than its table are refused."},
    {"learned_positions", model<&ModelConfig::learned_positions>, range(0, kCount), kFrozen,
     "Positions in the table of `position` learned; 0: `train.context`."},
    {"rope_theta", model<&ModelConfig::rope_theta>, range(kFp32Min, kFp32Max), kFrozen,
     "Base of the RoPE frequencies. Raise it, for example to 500000, for contexts beyond 8192."},
    {"rope_scaling", model<&ModelConfig::rope_scaling>, range(1, 1e6), kFrozen,
     "A number divides RoPE's positions (linear position interpolation): to finetune for a context "
     "k times as long, raise it to k, or raise `rope_theta` instead. An object changes the "
     "frequencies as Llama 3.1 or YaRN do. llama3 takes `factor`, `original_context` (tokens), "
     "`low_freq_factor` (1) and `high_freq_factor` (4); yarn takes `factor`, `original_context`, "
     "`beta_fast` (32), `beta_slow` (1) and `attention_factor` (0: 0.1 ln(`factor`) + 1). Use the "
     "objects for imported models."},
    {"rope_dims", model<&ModelConfig::rope_dims>, range(0, 4096), kFrozen,
     "Dimensions of a head that RoPE rotates, an even number; 0: all. Lower it for partial RoPE."},
    {"window", model<&ModelConfig::window>, range(0, kCount), kFrozen,
     "Sliding-window attention: each query attends to the last `window` positions, its own "
     "included; 0: to all. Set it to bound the cost of long contexts."},
    {"log_length_scale", model<&ModelConfig::log_length_scale>, any(), kFrozen,
     "Multiply attention scores by log(T) / log(1024), T being the sequence length. Turn it on to "
     "reproduce the published StableMask code with RoPE; such a model cannot use a KV cache."},
    {"init_std", model<&ModelConfig::init_std>, range(kFp32Min, 10), kFrozen,
     "Standard deviation of the normal distribution of initial weights; that of the two "
     "projections "
     "into the residual stream is divided by sqrt(2 `layers`)."},
    {"attention", model<&ModelConfig::attention>, any(), kFree,
     "Implementation: reference computes the formula in full, with a T x T matrix; flash uses "
     "fused "
     "kernels; auto takes the fastest that supports the model. Use reference to check results."},
};

constexpr Field kStableMask[] = {
    {"enabled", stable_mask<&StableMaskConfig::enabled>, any(), kFrozen,
     "StableMask; false is plain causal attention. Turn it off for a baseline."},
    {"gamma",
     stable_mask<&StableMaskConfig::gamma>,
     {.low = kFp32Min, .high = kLargestGamma, .or_zero = true},
     kFrozen,
     "Decay of the pseudo scores per position: `\"slopes\"`, the paper's form, takes the ALiBi "
     "slope of each head; or one number, or one per head. `\"auto\"` is `\"slopes\"` with ALiBi "
     "and without position encoding, and 1 with RoPE: with ALiBi slopes lower the perplexity of "
     "a 71m model by 2 %, with RoPE they are 3 % worse than 1 (docs/stablemask.md). Raise it to "
     "give the pseudo slots less weight."},
    {"p_base", stable_mask<&StableMaskConfig::p_base>, range(-1e4, 1e4), kFrozen,
     "Score of the first pseudo slot, one number or one per head. Lower it to give all pseudo "
     "slots "
     "less weight; each unit is a factor of e."},
    {"mask_length", stable_mask<&StableMaskConfig::mask_length>, range(1, kCount), kFrozen,
     "N: row i has pseudo slots at positions i + 1 to N - 1. A number; `\"context\"`: "
     "`train.context` of this config; `\"infinite\"`: the same pseudo mass in every row, without a "
     "position signal; `\"sequence\"`: the length of each input, as in the paper's training, which "
     "excludes generation with a KV cache."},
    {"beyond", stable_mask<&StableMaskConfig::beyond>, any(), kFrozen,
     "Rows at and beyond a fixed `mask_length`: infinite gives them the pseudo mass of an infinite "
     "mask length, none leaves them plain causal rows, which a trained model handles badly. "
     "Frozen only where `train.context` exceeds `mask_length`."},
    {"learnable", stable_mask<&StableMaskConfig::learnable>, any(), kFrozen,
     "Train `gamma` and `p_base` of every head, starting from the values above."},
};

constexpr Field kData[] = {
    {"train", data<&DataConfig::train>, above_up_to(0, kCount), kFree,
     "Token shards to train on, made by `stablemask data prepare`. Objects with weights make a "
     "mixture: of the training sequences each shard supplies its share of the sum of the weights, "
     "exactly over every stretch of the run, each in passes over its own; an epoch is as many "
     "sequences as all shards have. Without weights the shards are one text. A resumed run needs "
     "the same shards and weights in the same order; paths may change."},
    {"valid", data<&DataConfig::valid>, any(), kFree,
     "Token shard for validation; empty: no validation."},
    {"tokenizer", data<&DataConfig::tokenizer>, any(), kFree,
     "SentencePiece model that the shards were encoded with."},
    {"document_mask", data<&DataConfig::document_mask>, any(), kFrozen,
     "Restrict attention to the tokens of the same document and count positions from its start. "
     "Turn it on when short, unrelated documents share training sequences."},
    {"prefetch", data<&DataConfig::prefetch>, range(0, 1024), kFree,
     "Micro-batches that a background thread prepares ahead; 0: no thread. Raise it when the step "
     "waits for a slow disk."},
    {"verify", data<&DataConfig::verify>, any(), kFree,
     "Check of the shards when a run starts: payload reads every shard completely and compares its "
     "hash; headers checks headers and file sizes only. Use headers for large shards on a slow "
     "disk "
     "that have been verified before."},
};

constexpr Field kEval[] = {
    {"window", eval<&EvalConfig::window>, range(0, 1 << 24), kFree,
     "Tokens per forward pass; 0: `train.context`. Raise it to measure length extrapolation."},
    {"stride", eval<&EvalConfig::stride>, range(0, 1 << 24), kFree,
     "Tokens that each window scores, its last ones; 0: `window`, windows that do not overlap. "
     "Lower it for a sliding-window perplexity, which costs `window` / `stride` times as much."},
    {"batch", eval<&EvalConfig::batch>, range(0, 1 << 20), kFree,
     "Windows per forward pass; 0: chosen to fit. Lower it when memory runs out."},
    {"tokens", eval<&EvalConfig::tokens>, range(0, kSteps), kFree,
     "Validation during training: score the first so many tokens of `data.valid`; 0: all. The "
     "validation after the last step scores all of them in any case. Set it where validating takes "
     "a large part of the time. `stablemask eval` always scores all."},
};

constexpr Field kGenerate[] = {
    {"max_tokens", generate<&GenerateConfig::max_tokens>, range(1, kCount), kFree,
     "Tokens to generate. A text goes on after the end-of-text token, which ends a line in "
     "training, "
     "unless told to stop there (`generate --stop-at-line-end`)."},
    {"temperature", generate<&GenerateConfig::temperature>, range(0, 100), kFree,
     "Divides the logits; 0: greedy decoding. Lower it for more likely, less varied text."},
    {"top_k", generate<&GenerateConfig::top_k>, range(0, kCount), kFree,
     "Sample from the k most likely tokens; 0: from all."},
    {"top_p", generate<&GenerateConfig::top_p>, above_up_to(0, 1), kFree,
     "Nucleus sampling: sample from the most likely tokens whose probabilities add up to this."},
    {"min_p", generate<&GenerateConfig::min_p>, range(0, 1), kFree,
     "Sample from tokens with at least this share of the most likely one's probability; 0: from "
     "all. Use it instead of top_p at high temperatures, where it keeps fewer unlikely tokens."},
    {"repetition_penalty", generate<&GenerateConfig::repetition_penalty>, above_up_to(0, 100),
     kFree,
     "Divides positive logits, and multiplies negative ones, of tokens that are in the prompt or "
     "the text so far; 1: none. Raise it a little, to 1.1 or 1.2, against loops in greedy text."},
    {"seed", generate<&GenerateConfig::seed>, range(0, kLargestSeed), kFree,
     "Seed of the sampling. Change it for another text."},
};

constexpr std::string_view kPositionNames[] = {"rope", "alibi", "none", "learned"};
constexpr std::string_view kFfnNames[] = {"swiglu", "gelu", "gelu_tanh"};
constexpr std::string_view kNormNames[] = {"rms", "layer"};
constexpr std::string_view kBiasNames[] = {"none", "qkv", "all"};
constexpr std::string_view kAttentionNames[] = {"auto", "reference", "flash"};
constexpr std::string_view kScheduleNames[] = {"cosine", "linear", "wsd", "constant"};
constexpr std::string_view kDeviceNames[] = {"auto", "cpu", "cuda"};
constexpr std::string_view kDtypeNames[] = {"auto", "fp32", "bf16"};
constexpr std::string_view kPrecisionNames[] = {"dtype", "bf16", "fp8"};
constexpr std::string_view kFp8GradientNames[] = {"e5m2", "e4m3"};
constexpr std::string_view kNonFiniteNames[] = {"stop", "skip"};
constexpr std::string_view kReduceNames[] = {"fp32", "bf16"};
constexpr std::string_view kStateNames[] = {"fp32", "bf16"};
constexpr std::string_view kShardNames[] = {"none", "optimizer"};
constexpr std::string_view kVerifyNames[] = {"payload", "headers"};
constexpr std::string_view kOptimizerNames[] = {"adamw", "muon"};
constexpr std::string_view kBeyondNames[] = {"infinite", "none"};

}  // namespace

std::span<const Section> config_sections() {
  static const Section sections[] = {
      {"/model", "Architecture of the Transformer.", kModel},
      {"/model/stable_mask",
       "StableMask, the refinement of the causal mask; see docs/stablemask.md for the formula. "
       "`true` "
       "or `false` instead of the object sets `enabled`.",
       kStableMask, true},
      {"/data", "Training and validation data.", kData},
      {"/train", "The training run: length, batch, precision, validation, checkpoints.",
       train_fields()},
      {"/lora",
       "Finetuning with low-rank adapters (LoRA, arXiv 2106.09685): the model is frozen, each "
       "target "
       "projection W becomes W + `alpha` / `rank` B A, and only A and B are trained; see "
       "docs/finetuning.md.",
       lora_fields()},
      {"/optimizer", "Optimizer. Its update runs in fp32.", optimizer_fields()},
      {"/schedule", "Learning rate schedule.", schedule_fields()},
      {"/eval", "Validation during training, and `stablemask eval`.", kEval},
      {"/generate", "Sampling of `stablemask generate`.", kGenerate},
  };
  return sections;
}

const Section* find_section(std::string_view pointer) {
  for (const Section& section : config_sections()) {
    if (section.pointer == pointer) return &section;
  }
  return nullptr;
}

const Field* find_field(const Section& section, std::string_view name) {
  for (const Field& field : section.fields) {
    if (field.name == name) return &field;
  }
  return nullptr;
}

std::string field_pointer(const Section& section, const Field& field) {
  return std::string(section.pointer) + "/" + std::string(field.name);
}

std::span<const std::string_view> names_of(Position) { return kPositionNames; }
std::span<const std::string_view> names_of(FfnKind) { return kFfnNames; }
std::span<const std::string_view> names_of(NormKind) { return kNormNames; }
std::span<const std::string_view> names_of(BiasKind) { return kBiasNames; }
std::span<const std::string_view> names_of(AttentionBackend) { return kAttentionNames; }
std::span<const std::string_view> names_of(ScheduleKind) { return kScheduleNames; }
std::span<const std::string_view> names_of(DeviceKind) { return kDeviceNames; }
std::span<const std::string_view> names_of(DtypeKind) { return kDtypeNames; }
std::span<const std::string_view> names_of(Precision) { return kPrecisionNames; }
std::span<const std::string_view> names_of(Fp8Gradients) { return kFp8GradientNames; }
std::span<const std::string_view> names_of(NonFinitePolicy) { return kNonFiniteNames; }
std::span<const std::string_view> names_of(ReduceDtype) { return kReduceNames; }
std::span<const std::string_view> names_of(StateDtype) { return kStateNames; }
std::span<const std::string_view> names_of(ShardKind) { return kShardNames; }
std::span<const std::string_view> names_of(VerifyKind) { return kVerifyNames; }
std::span<const std::string_view> names_of(OptimizerKind) { return kOptimizerNames; }
std::span<const std::string_view> names_of(BeyondMask) { return kBeyondNames; }

}  // namespace stablemask
