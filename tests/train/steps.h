#pragma once

#include <ATen/ATen.h>

#include <cmath>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "stablemask/train/step.h"
#include "tests/nn/models.h"

/// Training steps without files: a task that a model of a few thousand weights learns.
namespace stablemask::testing_steps {

/// A small model with heads of 64 and products of 192 columns, which the fast kernels serve.
inline ModelConfig fast_model(int64_t columns) {
  ModelConfig model = testing_models::tiny_config(Position::kRope, true, columns);
  model.channels = 128;
  model.heads = 2;
  model.ffn_hidden = 192;
  model.init_std = 0.05;
  return model;
}

using Weights = std::map<std::string, at::Tensor>;

/// The next token is a fixed permutation of the vocabulary applied to the last; `seed` decides
/// where the rows begin. Tokens 0 … 48 of a vocabulary of 50 appear: 49 is left for poison.
inline Batch batch(int64_t rows, int64_t columns, int64_t seed) {
  constexpr int64_t kTokens = 49;
  Batch batch;
  batch.rows = rows;
  batch.columns = columns;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t token = (seed * 31 + row * 11) % kTokens;
    for (int64_t i = 0; i < columns; ++i) {
      batch.tokens.push_back(token);
      token = (token * 5 + 3) % kTokens;
      batch.targets.push_back(token);
    }
  }
  batch.valid_targets = rows * columns;
  return batch;
}

/// The batch as `count` micro-batches.
inline std::vector<Batch> split(const Batch& whole, int64_t count) {
  std::vector<Batch> parts(count);
  const int64_t tokens = whole.rows * whole.columns / count;
  for (int64_t i = 0; i < count; ++i) {
    Batch& part = parts[i];
    part.rows = whole.rows / count;
    part.columns = whole.columns;
    const auto cut = [&](const std::vector<int64_t>& all, std::vector<int64_t>& some) {
      if (!all.empty()) some.assign(all.begin() + i * tokens, all.begin() + (i + 1) * tokens);
    };
    cut(whole.tokens, part.tokens);
    cut(whole.targets, part.targets);
    cut(whole.document_start, part.document_start);
    part.valid_targets = tokens;
  }
  return parts;
}

inline at::Tensor tensor_of(const Batch& batch, const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong).view({batch.rows, batch.columns});
}

inline Weights copy(const Weights& weights) {
  Weights copies;
  for (const auto& [name, tensor] : weights) copies[name] = tensor.to(at::kCPU).clone();
  return copies;
}

/// A model, its parameters, optimizer, average if the config has one, and step program.
struct TinyTraining {
  TinyTraining(const Config& config, at::Device device, at::ScalarType compute,
               std::shared_ptr<dist::Group> group_in = dist::single_process_group())
      : model(testing_models::tiny_model(config.model)),
        group(std::move(group_in)),
        flat(std::make_shared<FlatParameters>(model, device, compute, config.train.freeze_layers,
                                              share_of(*group, config.train.shard))),
        optimizer(make_optimizer(config.optimizer, flat, step_options(config).kernels,
                                 config.train.seed)),
        average(config.train.ema_decay > 0
                    ? std::make_shared<WeightAverage>(config.train.ema_decay, flat,
                                                      step_options(config).kernels)
                    : nullptr),
        program(model, flat, optimizer, step_options(config), group, average) {
    use_precision(model, config.train);
  }

  /// Steps are counted from 1 by this run.
  StepProgram::Result step(const std::vector<Batch>& batches, double lr = 1e-2) {
    return program.run(batches, lr, ++updates);
  }

  /// Every process calls these three; process 0 receives the tensors.
  Weights master() const { return copy(flat->master(*group)); }
  Weights moments() const {
    Weights all;
    for (const auto& [name, buffer] : optimizer->buffers()) {
      all.merge(copy(flat->gather(buffer.values, name + ".", *group, buffer.cover)));
    }
    return all;
  }

  Weights averages() const { return average ? copy(average->gather(*group)) : Weights(); }

  /// From now on a batch with token 49 has no finite loss; others do not notice.
  void poison() {
    const at::Tensor embedding = flat->named_weights().at("embedding").to(at::kFloat).clone();
    embedding.select(0, 49).fill_(INFINITY);
    flat->set_master("embedding", embedding);
  }

  nn::Transformer model;
  std::shared_ptr<dist::Group> group;
  std::shared_ptr<FlatParameters> flat;
  std::shared_ptr<Optimizer> optimizer;
  std::shared_ptr<WeightAverage> average;
  StepProgram program;
  int64_t updates = 0;
};

inline Batch poisoned(Batch batch) {
  batch.tokens[batch.tokens.size() / 2] = 49;
  return batch;
}

inline bool same_bits(const Weights& a, const Weights& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, tensor] : a) {
    if (!tensor.equal(b.at(name))) return false;
  }
  return true;
}

/// ‖a − b‖ over all weights, relative to how far `a` has moved from `start`.
inline double relative_distance(const Weights& a, const Weights& b, const Weights& start) {
  double apart = 0, moved = 0;
  for (const auto& [name, tensor] : a) {
    apart += (tensor - b.at(name)).to(at::kDouble).square().sum().item<double>();
    moved += (tensor - start.at(name)).to(at::kDouble).square().sum().item<double>();
  }
  return std::sqrt(apart / moved);
}

}  // namespace stablemask::testing_steps
