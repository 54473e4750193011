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
constexpr auto lora = at<&Config::model, &ModelConfig::lora, kMember>;
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

// Upper bounds are far beyond use; they keep products of sizes within 64 bits.
constexpr double kCount = 1e9;
constexpr double kSteps = 1e12;
constexpr double kLargestSeed = 9007199254740992.0;  // 2^53: integers that a JSON number can hold
// Values that become fp32: smaller ones would be 0 there, larger ones infinite, and a beta beyond
// kLargestBeta 1.
constexpr double kFp32Min = 1.2e-38;
constexpr double kFp32Max = 3.4e38;
constexpr double kLargestBeta = 0.9999999;
// Divided by 1 - beta1, the smallest of which is 1e-7, a learning rate is still finite in fp32.
constexpr double kLargestRate = 1e30;
// The squares of gradients below about 1e-22 are 0 in fp32, so that eps alone divides their mean: a
// smaller one would make updates of such gradients huge instead of at most about lr.
constexpr double kLeastAdamEps = 1e-20;
// Pseudo scores that fall faster than this are 0 after the first slot in every number format.
constexpr double kLargestGamma = 1e4;

constexpr Range any() { return {}; }
constexpr Range range(double low, double high) { return {low, high}; }
constexpr Range at_least(double low) { return {.low = low}; }
constexpr Range above_up_to(double low, double high) { return {low, high, true}; }

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

constexpr Field kTrain[] = {
    {"out", train<&TrainConfig::out>, any(), kFree,
     "Run folder for config, metrics and checkpoints. Give every run another one; starting again "
     "with the same folder resumes."},
    {"device", train<&TrainConfig::device>, any(), kFree,
     "Device to train on; auto: CUDA if a GPU is usable, else the CPU."},
    {"dtype", train<&TrainConfig::dtype>, any(), kFree,
     "Compute precision of activations and weights; auto: bf16 on CUDA, fp32 on the CPU. The "
     "optimizer always updates fp32 master weights. Use fp32 on a GPU to rule out rounding."},
    {"seed", train<&TrainConfig::seed>, range(0, kLargestSeed), kFrozen,
     "Seed of the initial weights and of the data order. Change it to measure the spread between "
     "runs."},
    {"context", train<&TrainConfig::context>, range(1, 1 << 24), kFrozen,
     "T, tokens per training sequence (sequence length, block size)."},
    {"batch", train<&TrainConfig::batch>, range(1, 1 << 24), kFrozen,
     "Sequences per optimizer step, all micro-batches of all processes together."},
    {"micro_batch", train<&TrainConfig::micro_batch>, range(0, 1 << 24), kFree,
     "Sequences per forward and backward pass of a process, a divisor of `batch`; 0: `batch` / "
     "processes. Lower it when memory runs out: gradients of `batch` / `micro_batch` passes are "
     "accumulated."},
    {"steps",
     train<&TrainConfig::steps>,
     {.low = 1, .high = kSteps, .or_zero = true},
     kFree,
     "Optimizer steps of the run; `--dry-run` prints how many epochs they are. Raise it to "
     "continue a finished run. 0 where `epochs` or `tokens` is stated instead: state one of the "
     "three; one that `--set` states replaces the file's."},
    {"epochs", train<&TrainConfig::epochs>, range(0, kSteps), kFree,
     "Length of the run in passes over the training data instead of `steps`, rounded up to whole "
     "steps; 0: not used. May be a fraction. A run stores the steps that it comes to. Raise it to "
     "continue a finished run. Usual for finetuning: 1 to 3."},
    {"tokens", train<&TrainConfig::tokens>, range(0, kLargestSeed), kFree,
     "Length of the run in tokens instead of `steps`, of which each takes `batch` x `context`; 0: "
     "not used. May be written as 2e9. Use it to compare runs of different batches."},
    {"log_every", train<&TrainConfig::log_every>, range(1, kSteps), kFree,
     "Steps between lines of metrics.jsonl and of the terminal."},
    {"eval_every", train<&TrainConfig::eval_every>, range(0, kSteps), kFree,
     "Steps between validations on `data.valid`, or on its first `eval.tokens`; 0: after the last "
     "step only."},
    {"save_every", train<&TrainConfig::save_every>, range(0, kSteps), kFree,
     "Steps between checkpoints; 0: not by steps. The last step is always saved. Set it when you "
     "need checkpoints of particular steps."},
    {"save_minutes", train<&TrainConfig::save_minutes>, at_least(0), kFree,
     "Minutes of training since the last checkpoint after which another is saved, in addition to "
     "`save_every`; 0: not by time. Lower it when losing 15 minutes costs too much, raise it when "
     "writing a checkpoint takes minutes."},
    {"keep_last", train<&TrainConfig::keep_last>, range(1, kCount), kFree,
     "Number of newest checkpoints to keep; older ones are deleted. Raise it if disk space "
     "allows."},
    {"keep_every", train<&TrainConfig::keep_every>, range(0, kSteps), kFree,
     "Never delete the checkpoints of steps that are multiples of this; 0: none. Set it to "
     "evaluate "
     "the course of training afterwards."},
    {"keep_best", train<&TrainConfig::keep_best>, any(), kFree,
     "Save a checkpoint whenever a validation loss is the lowest of the run so far, and keep the "
     "newest such: `--checkpoint RUN/best`. Turn it on for finetuning, where the loss on other "
     "text rises again."},
    {"patience", train<&TrainConfig::patience>, range(0, kCount), kFree,
     "Early stopping: end the run, with exit code 0, after this many validations in a row that are "
     "not the best so far; 0: never. The same command does not go on then, one with a larger "
     "number does. Validations while the mask warms up do not count, here and for `keep_best`."},
    {"deterministic", train<&TrainConfig::deterministic>, any(), kFree,
     "Bitwise reproducible runs on a GPU, about a quarter slower. Without it, a CPU run is "
     "reproducible bit for bit on the same kind of CPU, with the same LibTorch build and the same "
     "number of threads."},
    {"cuda_graph", train<&TrainConfig::cuda_graph>, any(), kFree,
     "Capture the training step in a CUDA graph and replay it. Turn it off to profile or debug "
     "single kernels."},
    {"reference_ops", train<&TrainConfig::reference_ops>, any(), kFree,
     "Run every op as its unfused LibTorch formula, slow and with more memory. Turn it on to check "
     "whether a fused kernel causes a difference."},
    {"activation_checkpointing", train<&TrainConfig::activation_checkpointing>, any(), kFree,
     "Recompute each block's activations in the backward pass instead of storing them: the same "
     "bits, about a third more computation. Turn it on when a micro-batch of 1 does not fit."},
    {"non_finite", train<&TrainConfig::non_finite>, any(), kFree,
     "When loss or gradient norm is NaN or infinite: stop ends the run with exit code 5, skip "
     "leaves the weights unchanged for this step."},
    {"non_finite_limit", train<&TrainConfig::non_finite_limit>, range(1, kCount), kFree,
     "With `non_finite` skip: end the run after this many consecutive skipped steps."},
    {"z_loss", train<&TrainConfig::z_loss>, range(0, 1), kFrozen,
     "Weight of the squared log-sum-exp of the logits in the loss; 0: none. Use 1e-4 when logits "
     "grow and training becomes unstable."},
    {"threads", train<&TrainConfig::threads>, range(0, 4096), kFree,
     "CPU threads of LibTorch; 0: one per core. The number can change the last bits of CPU "
     "results."},
    {"time_limit_s", train<&TrainConfig::time_limit_s>, at_least(0), kFree,
     "Save and end with exit code 0 after this many seconds; 0: no limit. Set it below the time "
     "limit of a batch system; the same command then resumes."},
    {"stop_on_save_error", train<&TrainConfig::stop_on_save_error>, any(), kFree,
     "End the run when a checkpoint cannot be written; false: warn and continue."},
    {"tensorboard", train<&TrainConfig::tensorboard>, any(), kFree,
     "Also write TensorBoard event files (scalars, the config, sampled texts) to `tensorboard` in "
     "the run folder. Turn it on to watch runs with `tensorboard --logdir`."},
    {.name = "sample_prompts",
     .in = train<&TrainConfig::sample_prompts>,
     .range = any(),
     .frozen = kFree,
     .meaning = "Texts to continue after every validation, with the sampling settings of "
                "`generate`; the results are printed and written to samples.jsonl. Set some to "
                "watch the model learn.",
     .line_ends = true},
    {"shard", train<&TrainConfig::shard>, any(), kFree,
     "With several processes, what each keeps a part of: optimizer (its state and the low-order "
     "bits of the weights: less memory and a faster update) or none. One process is the same "
     "either way."},
    {"reduce_dtype", train<&TrainConfig::reduce_dtype>, any(), kFree,
     "Precision in which gradients are summed over processes: fp32 or bf16. bf16 halves the "
     "traffic and rounds every gradient; use it where the network limits the step."},
    {"peer_timeout_s", train<&TrainConfig::peer_timeout_s>, range(1, 1e6), kFree,
     "Seconds that a process waits for another one before it ends with exit code 6. A process that "
     "died is noticed within seconds whatever this says. Raise it if loading or saving on one "
     "process takes longer."},
    {"init_from", train<&TrainConfig::init_from>, any(), kFree,
     "Finetuning: checkpoint or run folder whose model and weights the run starts from."},
    {"mask_warmup_steps", train<&TrainConfig::mask_warmup_steps>, range(0, kSteps), kFree,
     "Finetuning with StableMask turned on: in step t of the first n the pseudo mass of every row "
     "is t / n of the model's (`p_base` + log(t / n)), so that a causal checkpoint meets it "
     "gradually; 0: all of it from the first step. Shortened, with a warning, to the run. "
     "Validations see the mask of their step; `eval` of a checkpoint always sees all of it."},
    {"freeze_layers", train<&TrainConfig::freeze_layers>, range(0, 1024), kFrozen,
     "Finetuning: freeze the embedding and this many first blocks; 0: train everything. Raise it "
     "to "
     "save memory and to stay closer to the source."},
};

constexpr std::string_view kLoraTargets[] = {"qkv", "proj", "up", "down"};

constexpr Field kLora[] = {
    {"rank", lora<&LoraConfig::rank>, range(0, 4096), kFrozen,
     "Rank of the adapters; 0: none, all weights are trained. 8 to 64 are usual. Raise it when the "
     "training loss stays above that of full finetuning."},
    {"alpha", lora<&LoraConfig::alpha>, range(kFp32Min, 1e6), kFrozen,
     "The adapters' contribution is multiplied by `alpha` / `rank`. Usual: `rank` or twice that."},
    {"dropout",
     lora<&LoraConfig::dropout>,
     {.low = 0, .high = 1, .below_high = true},
     kFrozen,
     "Share of the adapters' inputs that is set to 0 in training. Raise it, to 0.05 or 0.1, when a "
     "small text is overfitted; 0 is faster."},
    {.name = "targets",
     .in = lora<&LoraConfig::targets>,
     .range = any(),
     .frozen = kFrozen,
     .meaning =
         "The projections of each block that have adapters: `qkv` (PEFT's q_proj, k_proj, v_proj), "
         "`proj` (o_proj), `up` (gate_proj, up_proj), `down` (down_proj). Leave some out to save "
         "memory and time.",
     .choices = kLoraTargets},
};

constexpr Field kOptimizer[] = {
    {"kind", optimizer<&OptimizerConfig::kind>, any(), kFrozen,
     "Optimizer. adamw is Adam with decoupled weight decay."},
    {"lr",
     optimizer<&OptimizerConfig::lr>,
     {.low = kFp32Min, .high = kLargestRate, .or_zero = true},
     kFree,
     "Peak learning rate, reached at the end of the warm-up. The first field to tune: lower it for "
     "larger models or when the loss diverges."},
    {"beta1", optimizer<&OptimizerConfig::beta1>, range(0, kLargestBeta), kFrozen,
     "AdamW: decay of the moving average of gradients."},
    {"beta2", optimizer<&OptimizerConfig::beta2>, range(0, kLargestBeta), kFrozen,
     "AdamW: decay of the moving average of squared gradients. Raise it towards 0.999 for small "
     "batches."},
    {"eps", optimizer<&OptimizerConfig::eps>, range(kLeastAdamEps, 1), kFrozen,
     "AdamW: epsilon added to the root of the squared-gradient average."},
    {"weight_decay", optimizer<&OptimizerConfig::weight_decay>, range(0, 10), kFree,
     "Decoupled weight decay, multiplied by the learning rate. Applies to matrices; norm weights, "
     "biases and mask parameters do not decay."},
    {"clip_norm",
     optimizer<&OptimizerConfig::clip_norm>,
     {.low = kFp32Min, .high = kFp32Max, .or_zero = true},
     kFree,
     "Gradient clipping: largest global gradient norm; 0: no clipping. Lower it when single "
     "batches "
     "disturb training."},
};

constexpr Field kSchedule[] = {
    {"kind", schedule<&ScheduleConfig::kind>, any(), kFree,
     "Learning rate after the warm-up: cosine or linear decay until the last step, wsd (constant, "
     "then a linear decay of `decay_steps`), or constant. Use wsd when the length of the run is "
     "not "
     "settled yet."},
    {"warmup_steps", schedule<&ScheduleConfig::warmup_steps>, range(0, kSteps), kFree,
     "Steps of linear warm-up from 0 to `optimizer.lr`; shortened, with a warning, to "
     "`train.steps`. "
     "Raise it when the loss diverges early."},
    {"final_lr_ratio", schedule<&ScheduleConfig::final_lr_ratio>, range(0, 1), kFree,
     "Learning rate of the last step divided by `optimizer.lr`."},
    {"decay_steps", schedule<&ScheduleConfig::decay_steps>, range(0, kSteps), kFree,
     "With wsd: steps of the final decay; 0: a fifth of `train.steps`. Shortened, with a warning, "
     "to the steps after the warm-up."},
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

constexpr Section kSections[] = {
    {"/model", "Architecture of the Transformer.", kModel},
    {"/model/stable_mask",
     "StableMask, the refinement of the causal mask; see docs/stablemask.md for the formula. "
     "`true` "
     "or `false` instead of the object sets `enabled`.",
     kStableMask, true},
    {"/data", "Training and validation data.", kData},
    {"/train", "The training run: length, batch, precision, validation, checkpoints.", kTrain},
    {"/lora",
     "Finetuning with low-rank adapters (LoRA, arXiv 2106.09685): the model is frozen, each target "
     "projection W becomes W + `alpha` / `rank` B A, and only A and B are trained; see "
     "docs/finetuning.md.",
     kLora},
    {"/optimizer", "Optimizer. Its update runs in fp32.", kOptimizer},
    {"/schedule", "Learning rate schedule.", kSchedule},
    {"/eval", "Validation during training, and `stablemask eval`.", kEval},
    {"/generate", "Sampling of `stablemask generate`.", kGenerate},
};

constexpr std::string_view kPositionNames[] = {"rope", "alibi", "none", "learned"};
constexpr std::string_view kFfnNames[] = {"swiglu", "gelu", "gelu_tanh"};
constexpr std::string_view kNormNames[] = {"rms", "layer"};
constexpr std::string_view kBiasNames[] = {"none", "qkv", "all"};
constexpr std::string_view kAttentionNames[] = {"auto", "reference", "flash"};
constexpr std::string_view kScheduleNames[] = {"cosine", "linear", "wsd", "constant"};
constexpr std::string_view kDeviceNames[] = {"auto", "cpu", "cuda"};
constexpr std::string_view kDtypeNames[] = {"auto", "fp32", "bf16"};
constexpr std::string_view kNonFiniteNames[] = {"stop", "skip"};
constexpr std::string_view kReduceNames[] = {"fp32", "bf16"};
constexpr std::string_view kShardNames[] = {"none", "optimizer"};
constexpr std::string_view kVerifyNames[] = {"payload", "headers"};
constexpr std::string_view kOptimizerNames[] = {"adamw"};
constexpr std::string_view kBeyondNames[] = {"infinite", "none"};

}  // namespace

std::span<const Section> config_sections() { return kSections; }

const Section* find_section(std::string_view pointer) {
  for (const Section& section : kSections) {
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
std::span<const std::string_view> names_of(NonFinitePolicy) { return kNonFiniteNames; }
std::span<const std::string_view> names_of(ReduceDtype) { return kReduceNames; }
std::span<const std::string_view> names_of(ShardKind) { return kShardNames; }
std::span<const std::string_view> names_of(VerifyKind) { return kVerifyNames; }
std::span<const std::string_view> names_of(OptimizerKind) { return kOptimizerNames; }
std::span<const std::string_view> names_of(BeyondMask) { return kBeyondNames; }

}  // namespace stablemask
