#include "stablemask/train/step.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "stablemask/infer/device_batch.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

int64_t count_targets(const std::vector<Batch>& batches) {
  int64_t count = 0;
  for (const Batch& batch : batches) count += batch.valid_targets;
  return std::max<int64_t>(1, count);
}

}  // namespace

struct StepProgram::State {
  State(nn::Transformer& model_in, FlatState& flat_in, const Config& config_in)
      : model(model_in),
        flat(flat_in),
        config(config_in),
        device(model->head_weight().device()),
        graph(device),
        // Where documents lie decides the shapes inside a step: nothing to record. The reference
        // reads from the device.
        recordable(device.is_cuda() && config.train.cuda_graph && !config.data.document_mask &&
                   !config.train.reference_ops),
        control(at::zeros({ops::kUpdateControls}, at::TensorOptions(at::kDouble).device(device))),
        numbers(at::zeros({2}, at::TensorOptions(at::kFloat).device(device))),
        loss_scale(at::zeros({}, control.options())),
        kernels(config.train.reference_ops ? ops::Kernels::kReference : ops::Kernels::kFused) {
    model->checkpoint_activations(config.train.activation_checkpointing);
    model->use_kernels(kernels);
  }

  /// The step itself, reading nothing but device memory: inputs, `control`, `loss_scale`, weights.
  void compute(const std::vector<DeviceBatch>& batches) {
    // 1. Forward and backward; gradients add up in the flat fp32 buffer. Those of multiplied
    //    weights, most of the buffer, are overwritten by the first product and need no zeros.
    flat.zero_added_grad();
    model->begin_gradients();
    at::Tensor loss_sum = at::zeros({}, numbers.options());
    for (const DeviceBatch& batch : batches) {
      const at::Tensor loss =
          model->loss(batch.tokens, batch.targets, loss_scale,
                      {config.train.z_loss, batch.document_start, /*backward_follows=*/true});
      loss.backward();
      loss_sum.add_(loss.detach());
    }
    model->finish_gradients();
    // 2. What is not finite never touches a weight; the device decides, the host hears of it later.
    const at::Tensor norm = flat.grad_norm(kernels);
    ops::set_grad_scale_(control, loss_sum, norm, config.optimizer.clip_norm);
    // 3. Clip and update.
    flat.update(config.optimizer, control, kernels);
    numbers.copy_(at::stack({loss_sum, norm}));
  }

  Result run(const std::vector<Batch>& batches, double lr, int64_t update) {
    const ops::Graph::OnItsStream on_stream(graph);
    control.copy_(ops::update_control(lr, update), /*non_blocking=*/true);
    loss_scale.fill_(1.0 / static_cast<double>(count_targets(batches)));
    if (graph.recorded()) {
      for (size_t i = 0; i < batches.size(); ++i) inputs[i].copy_from(batches[i]);
      graph.replay();
    } else {
      plain_or_record(batches);
    }
    const at::Tensor host = numbers.to(at::kCPU);
    const double loss = host[0].item<float>(), norm = host[1].item<float>();
    return {loss, norm, std::isfinite(loss) && std::isfinite(norm)};
  }

  /// The first steps run plainly: they warm up the libraries' caches and choose their algorithms.
  void plain_or_record(const std::vector<Batch>& batches) {
    std::vector<DeviceBatch> on_device;
    for (const Batch& batch : batches) on_device.emplace_back(batch, device);
    if (!recordable || plain_steps++ < kWarmUpSteps) {
      compute(on_device);
      return;
    }
    inputs = std::move(on_device);
    graph.record([&] { compute(inputs); });
    graph.replay();
  }

  static constexpr int kWarmUpSteps = 3;

  nn::Transformer& model;
  FlatState& flat;
  const Config config;
  const at::Device device;
  ops::Graph graph;
  const bool recordable;
  at::Tensor control;     ///< ops/optimizer.h
  at::Tensor numbers;     ///< loss and gradient norm of the last step
  at::Tensor loss_scale;  ///< 1 / valid targets of the step, fp64
  const ops::Kernels kernels;
  std::vector<DeviceBatch> inputs;  ///< of the recorded graph: the memory it reads
  int plain_steps = 0;
};

StepProgram::StepProgram(nn::Transformer& model, FlatState& state, const Config& config)
    : state_(std::make_unique<State>(model, state, config)) {}
StepProgram::~StepProgram() = default;

StepProgram::Result StepProgram::run(const std::vector<Batch>& batches, double lr, int64_t update) {
  return state_->run(batches, lr, update);
}

bool StepProgram::uses_graph() const { return state_->graph.recorded(); }

}  // namespace stablemask
