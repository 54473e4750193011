#include "src/config/config_fields.h"
#include "src/config/field_parts.h"

namespace stablemask {
namespace {

using namespace field_parts;

constexpr Field kTrain[] = {
    {"out", train<&TrainConfig::out>, any(), kFree,
     "Run folder for config, metrics and checkpoints. Give every run another one; starting again "
     "with the same folder resumes."},
    {"device", train<&TrainConfig::device>, any(), kFree,
     "Device to train on; auto: CUDA if a GPU is usable, else the CPU."},
    {"dtype", train<&TrainConfig::dtype>, any(), kFree,
     "Compute precision of activations and weights; auto: bf16 on CUDA, fp32 on the CPU. The "
     "optimizer always updates fp32 master weights. Use fp32 on a GPU to rule out rounding."},
    {"precision", train<&TrainConfig::precision>, any(), kFree,
     "Precision of products in training steps. dtype: that of `dtype`, which validation always "
     "has. bf16: an fp32 run on a CPU rounds the operands of products with weights and, with "
     "AVX512-BF16 (`lscpu`), of attention's to bf16 and adds up in fp32, in half the time with "
     "these instructions, slowly without; a run in bf16 stays as it is. fp8: the blocks' "
     "projections, faster from about 1,000 channels on; needs a "
     "GPU of compute capability 8.9 or higher with `dtype` bf16, or a CPU, which computes the same "
     "slowly, and sizes that are multiples of 16; see docs/fp8.md."},
    {"fp8_gradients", train<&TrainConfig::fp8_gradients>, any(), kFrozen,
     "With `precision` fp8: format of the gradients. e5m2 has the wider range, e4m3 one more bit."},
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
    {"ema_decay",
     train<&TrainConfig::ema_decay>,
     {.low = 0, .high = 1, .below_high = true},
     kFree,
     "Keep an exponential moving average of the weights with this decay, and use it wherever the "
     "model is used: in validations, samples and every command that reads the checkpoints; 0: no "
     "average. Usual: 0.99 to 0.9999, an average over the last 100 to 10000 updates. Turn it on "
     "when the learning rate is still high at the end of the run. Turned on in a resumed run, the "
     "average starts at the weights of its checkpoint."},
    {"deterministic", train<&TrainConfig::deterministic>, any(), kFree,
     "Bitwise reproducible runs on a GPU, little slower; noticeably where the sequences of a pass "
     "x "
     "`model.heads` x `context`² are more than 2^30, since attention then runs on another kernel. "
     "Without it, a CPU run is reproducible bit for bit on the same kind of CPU, with the same "
     "LibTorch build and the same number of threads."},
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
     "Optimizer. adamw is Adam with decoupled weight decay; muon orthogonalises the momentum of "
     "the blocks' matrices and leaves all other parameters to adamw. Try muon for pretraining, "
     "with "
     "once to twice the learning rate of adamw; what it gave is in "
     "[optimizers.md](optimizers.md)."},
    {"state", optimizer<&OptimizerConfig::state>, any(), kFree,
     "Number format of AdamW's two moments: fp32 or bf16, which takes 4 bytes a parameter less and "
     "less time. bf16 is rounded at random such that the mean is exact, the same in every run of a "
     "seed; each update still computes in fp32. When a run goes on with the other format, the "
     "stored state is rounded to it. Muon's momentum is fp32. Use bf16 when memory runs out."},
    {"lr",
     optimizer<&OptimizerConfig::lr>,
     {.low = kFp32Min, .high = kLargestRate, .or_zero = true},
     kFree,
     "Peak learning rate, reached at the end of the warm-up. The first field to tune: lower it for "
     "larger models or when the loss diverges."},
    {"momentum", optimizer<&OptimizerConfig::momentum>, range(0, kLargestBeta), kFrozen,
     "muon: share of the momentum that a step keeps. Other values than 0.95 have not been tried."},
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

}  // namespace

std::span<const Field> train_fields() { return kTrain; }
std::span<const Field> lora_fields() { return kLora; }
std::span<const Field> optimizer_fields() { return kOptimizer; }
std::span<const Field> schedule_fields() { return kSchedule; }

}  // namespace stablemask
