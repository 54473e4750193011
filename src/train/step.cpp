#include "stablemask/train/step.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "src/train/exchange.h"
#include "stablemask/base/error.h"
#include "stablemask/base/random.h"
#include "stablemask/infer/device_batch.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/optimizer.h"

namespace stablemask {

StepOptions step_options(const Config& config) {
  StepOptions options;
  options.clip_norm = config.optimizer.clip_norm;
  options.z_loss = config.train.z_loss;
  options.cuda_graph = config.train.cuda_graph;
  options.activation_checkpointing = config.train.activation_checkpointing;
  options.document_mask = config.data.document_mask;
  options.kernels = config.train.reference_ops                   ? ops::Kernels::kReference
                    : config.train.precision == Precision::kBf16 ? ops::Kernels::kFusedBf16
                                                                 : ops::Kernels::kFused;
  options.reduce_dtype =
      config.train.reduce_dtype == ReduceDtype::kBf16 ? at::kBFloat16 : at::kFloat;
  options.dropout = config.model.lora.rank > 0 && config.model.lora.dropout > 0;
  options.seed = static_cast<uint64_t>(config.train.seed);
  return options;
}

void use_precision(nn::Transformer& model, const TrainConfig& train) {
  const at::Tensor& weight = model->head_weight();
  const bool in_bf16 = weight.scalar_type() == at::kBFloat16;
  if (train.precision == Precision::kBf16 && !in_bf16) {
    if (weight.is_cuda()) {
      throw ConfigError("/train/dtype: train.precision \"bf16\" needs \"bf16\" on a GPU");
    }
    if (train.reference_ops) {
      throw ConfigError(
          "/train/precision: \"bf16\" is not for train.reference_ops, which computes in fp32");
    }
  }
  if (train.precision != Precision::kFp8) return;
  const std::string problem = ops::fp8::problem(weight.device());
  if (!problem.empty()) {
    throw ConfigError("/train/precision: \"fp8\" is not possible: " + problem + "; use \"dtype\"");
  }
  if (weight.is_cuda() && !in_bf16) {
    throw ConfigError("/train/dtype: train.precision \"fp8\" needs \"bf16\" on a GPU");
  }
  const bool wide = train.fp8_gradients == Fp8Gradients::kE5M2;
  nn::use_fp8(model, wide ? ops::fp8::Format::kE5M2 : ops::fp8::Format::kE4M3);
}

namespace {

/// Of the dropouts of one update.
int64_t dropout_number(uint64_t seed, int64_t update) {
  return static_cast<int64_t>(mix64(mix64(seed) + static_cast<uint64_t>(update)));
}

}  // namespace

struct StepProgram::State {
  State(nn::Transformer model_in, std::shared_ptr<FlatParameters> flat_in,
        std::shared_ptr<Optimizer> optimizer_in, const StepOptions& options_in,
        std::shared_ptr<dist::Group> group_in, std::shared_ptr<WeightAverage> average_in)
      : model(std::move(model_in)),
        flat(std::move(flat_in)),
        optimizer(std::move(optimizer_in)),
        group(std::move(group_in)),
        average(std::move(average_in)),
        options(options_in),
        device(flat->weights().device()),
        graph(device),
        // With document masks the shapes inside a step depend on the data; the reference kernels
        // read from the device. Neither can be recorded.
        recordable(device.is_cuda() && options.cuda_graph && !options.document_mask &&
                   options.kernels != ops::Kernels::kReference),
        control(at::zeros({ops::kUpdateControls}, at::TensorOptions(at::kDouble).device(device))),
        scale(at::zeros({}, control.options())),
        numbers(at::zeros({4}, control.options())) {
    if (options.dropout) dropout_key = at::zeros({}, control.options().dtype(at::kLong));
    model->checkpoint_activations(options.activation_checkpointing);
    model->use_kernels(kernels_outside());
    if (group->size() > 1) {
      exchange = std::make_unique<Exchange>(
          model->config(), flat, group, Exchange::Options{options.reduce_dtype, options.kernels});
    }
  }

  /// The step. It reads device memory only: inputs, `control`, `scale`, weights.
  void compute(const std::vector<DeviceBatch>& batches) {
    // 1. The weights that other processes have updated begin to arrive.
    if (exchange) exchange->begin_step();
    // 2. Forward and backward; gradients accumulate in the flat fp32 buffer. Those of multiplied
    //    weights, most of the buffer, are overwritten by the first product and need no zeros.
    flat->zero_accumulated_gradients();
    model->use_kernels(options.kernels);
    model->begin_gradients();
    if (fp8()) fp8()->begin_step();
    at::Tensor loss_sum = at::zeros({}, control.options().dtype(at::kFloat));
    for (size_t i = 0; i < batches.size(); ++i) {
      if (exchange) exchange->begin_micro_batch(i == 0, i + 1 == batches.size(), !first_step);
      const at::Tensor loss =
          model->loss(batches[i].tokens, batches[i].targets, scale,
                      {options.z_loss, batches[i].document_start,
                       /*backward_follows=*/true, exchange.get(), dropout(i, batches[i])});
      loss.backward();
      loss_sum.add_(loss.detach());
    }
    model->finish_gradients();
    if (fp8()) fp8()->finish_passes();
    model->use_kernels(kernels_outside());
    // 3. Sums over all processes, most of them done by now, and the norm.
    at::Tensor norm;
    if (exchange) {
      const Exchange::Sums sums = exchange->finish(loss_sum);
      loss_sum = sums.loss;
      norm = sums.norm;
    } else {
      norm = flat->grad_norm(options.kernels);
    }
    if (fp8()) group->all_reduce(fp8()->maxima(), dist::Reduce::kMax);
    // 4. Clipping, or no update when loss or norm is not finite; decided on the device, and equal
    //    in all processes because their inputs are.
    ops::set_grad_scale_(control, loss_sum, norm, options.clip_norm);
    // 5. Update.
    update_begins();
    if (fp8()) {
      fp8()->update(control, options.kernels);
      numbers.select(0, 3).copy_(fp8()->clipped());
    }
    optimizer->prepare(control, *group);
    const auto update = [&](FlatRange range) { optimizer->update(range, control); };
    if (exchange) {
      exchange->update(update);
    } else {
      update({0, flat->size()});
    }
    if (average) average->update(control);
    numbers.narrow(0, 0, 2).copy_(at::stack({loss_sum, norm}));
    first_step = false;
  }

  /// Micro-batches are dealt out to the processes in turn: rows are counted over all of them.
  nn::DropoutStep dropout(size_t i, const DeviceBatch& batch) const {
    const int64_t number = static_cast<int64_t>(i) * group->size() + group->rank();
    return {dropout_key, number * batch.tokens.numel()};
  }

  Result run(const std::vector<Batch>& batches, double lr, int64_t update) {
    const ops::Graph::OnItsStream on_stream(graph);
    if (options.dropout) dropout_key.fill_(dropout_number(options.seed, update));
    control.copy_(ops::update_control(lr, update), /*non_blocking=*/true);
    set_scale(batches);
    if (graph.recorded()) {
      for (size_t i = 0; i < batches.size(); ++i) inputs[i].copy_from(batches[i]);
      replay();
    } else {
      plain_or_record(batches);
    }
    const at::Tensor host = group->read(numbers);
    may_have_changed = false;
    const double loss = host[0].item<double>(), norm = host[1].item<double>();
    const bool updated = std::isfinite(loss) && std::isfinite(norm);
    if (fp8() && updated) fp8()->updated();
    return {loss, norm, updated, static_cast<int64_t>(host[2].item<double>()),
            static_cast<int64_t>(host[3].item<double>())};
  }

  /// scale = 1 / valid targets of all processes.
  void set_scale(const std::vector<Batch>& batches) {
    int64_t targets = 0;
    for (const Batch& batch : batches) targets += batch.valid_targets;
    const at::Tensor count = numbers.select(0, 2);
    count.fill_(static_cast<double>(targets));
    group->all_reduce(count, dist::Reduce::kSum);
    scale.copy_(at::clamp_min(count, 1.0).reciprocal_());
  }

  /// Of validation, between steps.
  ops::Kernels kernels_outside() const {
    return options.kernels == ops::Kernels::kFusedBf16 ? ops::Kernels::kFused : options.kernels;
  }

  nn::Fp8Products* fp8() const { return model->fp8.get(); }

  /// The first steps run without a graph: libraries initialise and choose their algorithms in them,
  /// and fp8 products have no history yet.
  void plain_or_record(const std::vector<Batch>& batches) {
    std::vector<DeviceBatch> on_device;
    for (const Batch& batch : batches) on_device.emplace_back(batch, device);
    const bool slow_scaling = fp8() && fp8()->just_in_time();
    if (!recordable || plain_steps++ < kWarmUpSteps || slow_scaling) {
      compute(on_device);
      return;
    }
    inputs = std::move(on_device);
    graph.record([&] {
      compute(inputs);
      may_have_changed = false;  // recording executes nothing
    });
    replay();
  }

  void replay() {
    update_begins();
    graph.replay();
  }

  void update_begins() {
    may_have_changed = true;
    flat->weights_changed();
  }

  static constexpr int kWarmUpSteps = 3;

  nn::Transformer model;
  const std::shared_ptr<FlatParameters> flat;
  const std::shared_ptr<Optimizer> optimizer;
  const std::shared_ptr<dist::Group> group;
  const std::shared_ptr<WeightAverage> average;  ///< null: none
  const StepOptions options;
  const at::Device device;
  ops::Graph graph;
  const bool recordable;
  std::unique_ptr<Exchange> exchange;  ///< null: this process is alone
  at::Tensor control;                  ///< ops/optimizer.h
  at::Tensor scale;                    ///< of the loss, fp64 0-dim
  at::Tensor dropout_key;              ///< of this step, int64 0-dim; undefined without dropout
  at::Tensor numbers;  ///< fp64: loss and gradient norm of the last step, its targets, clipped
  std::vector<DeviceBatch> inputs;  ///< memory that the recorded graph reads
  bool first_step = true;
  int plain_steps = 0;
  bool may_have_changed = false;  ///< an update was enqueued and its result not read yet
};

StepProgram::StepProgram(nn::Transformer model, std::shared_ptr<FlatParameters> flat,
                         std::shared_ptr<Optimizer> optimizer, const StepOptions& options,
                         std::shared_ptr<dist::Group> group, std::shared_ptr<WeightAverage> average)
    : state_(std::make_unique<State>(std::move(model), std::move(flat), std::move(optimizer),
                                     options, std::move(group), std::move(average))) {}
StepProgram::~StepProgram() = default;

StepProgram::Result StepProgram::run(const std::vector<Batch>& batches, double lr, int64_t update) {
  return state_->run(batches, lr, update);
}

void StepProgram::gather_weights() { state_->flat->gather_weights(*state_->group); }

std::unique_ptr<AveragedWeights> StepProgram::use_averages() {
  gather_weights();
  if (!state_->average) return nullptr;
  return std::make_unique<AveragedWeights>(state_->flat, *state_->average, *state_->group);
}

bool StepProgram::unchanged_after_failure() const { return !state_->may_have_changed; }

bool StepProgram::uses_graph() const { return state_->graph.recorded(); }

}  // namespace stablemask
