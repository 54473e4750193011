#include "stablemask/infer/evaluate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "src/infer/evaluate_graph.h"
#include "src/infer/windows.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/device_batch.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
namespace {

/// Windows per forward pass: enough tokens to use the machine well, and never more windows than
/// there are.
int64_t chosen_batch(const EvalOptions& options, const WindowPlan& plan, bool on_cpu) {
  if (options.batch > 0) return options.batch;
  const int64_t tokens_per_forward = on_cpu ? 4096 : 32768;
  return std::clamp<int64_t>(tokens_per_forward / options.window, 1, plan.count());
}

/// Recording a graph costs about one batch of time and of memory, so fewer equal batches than this
/// run without one.
constexpr int64_t kWorthRecording = 4;

/// Scores batches one after another. On a GPU the first batch runs plainly (library set-up and the
/// choice of algorithms cannot be recorded), the second is recorded as a CUDA graph, and the other
/// batches of that shape replay it.
class Scorer {
 public:
  /// The first `equal` batches must have the same shape.
  Scorer(nn::Transformer& model, int64_t equal, bool may_record)
      : model_(model), device_(model->head_weight().device()), equal_(equal) {
    if (may_record && device_.is_cuda() && equal >= kWorthRecording) {
      graph_ = std::make_unique<ops::Graph>(device_);
    }
  }

  /// NLL of each target: fp32 [B,T], contiguous, in host memory.
  at::Tensor score(const Batch& batch) {
    const int64_t number = scored_++;
    if (number == equal_) forget_graph();
    if (!graph_) return to_host(forward(DeviceBatch(batch, device_)));
    const ops::Graph::OnItsStream on_stream(*graph_);
    if (number == 0) return to_host(forward(DeviceBatch(batch, device_)));
    if (graph_->recorded()) {
      inputs_->copy_from(batch);
    } else {
      inputs_.emplace(batch, device_);
      graph_->record([&] { nll_ = forward(*inputs_); });
      recorded_ = true;
    }
    graph_->replay();
    return to_host(nll_);
  }

  bool recorded() const { return recorded_; }

 private:
  at::Tensor forward(const DeviceBatch& batch) {
    return model_->token_nll(batch.tokens, batch.targets, batch.document_start);
  }

  static at::Tensor to_host(const at::Tensor& nll) {
    return nll.to(at::kCPU, at::kFloat).contiguous();
  }

  /// Frees the graph's memory for the remaining batches.
  void forget_graph() {
    nll_.reset();
    inputs_.reset();
    graph_.reset();
  }

  nn::Transformer& model_;
  const at::Device device_;
  const int64_t equal_;
  int64_t scored_ = 0;
  bool recorded_ = false;
  std::unique_ptr<ops::Graph> graph_;  ///< null: no batch is recorded
  std::optional<DeviceBatch> inputs_;  ///< memory that the graph reads
  at::Tensor nll_;                     ///< memory that the graph writes
};

/// Adds the scored values one by one in text order, so that the sum does not depend on the batch.
void add_scores(const Batch& batch, const at::Tensor& nll, Perplexity& result) {
  const float* values = nll.const_data_ptr<float>();
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] == kIgnoreTarget) continue;
    result.nll += values[i];
    ++result.tokens;
  }
}

}  // namespace

EvalOptions eval_options(const Config& config, int32_t eos_id) {
  EvalOptions options;
  options.window = config.eval.window ? config.eval.window : config.train.context;
  options.stride = config.eval.stride ? config.eval.stride : options.window;
  options.batch = config.eval.batch;
  options.eos_id = eos_id;
  options.document_mask = config.data.document_mask;
  return options;
}

Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options) {
  GraphUse graph;
  return evaluate(model, shard, options, graph);
}

Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options,
                    GraphUse& graph) {
  const WindowPlan plan = window_plan(shard, options, model->config().vocab_size);
  const ShardInfo& info = shard.info();
  Perplexity result;
  result.words = info.words;
  result.lines = info.lines;
  result.documents = info.documents;
  result.bytes = info.bytes;

  const int64_t batch_rows = chosen_batch(options, plan, model->head_weight().is_cpu());
  // With a document mask the shapes inside a forward pass depend on the values.
  Scorer scorer(model, plan.full() / batch_rows, graph.allowed && !options.document_mask);
  at::NoGradGuard no_grad;
  model->eval();
  for (int64_t k = 0, rows; k < plan.count(); k += rows) {
    if (stop_signal() != 0) {
      result.complete = false;
      break;
    }
    rows = k < plan.full() ? std::min(batch_rows, plan.full() - k) : 1;
    const Batch batch = gather_windows(shard, plan, options, k, rows, model->config().vocab_size);
    const at::Tensor nll =
        ops::with_memory_hint("lower eval.batch or eval.window (--batch, --window of eval)",
                              [&] { return scorer.score(batch); });
    add_scores(batch, nll, result);
    if (options.progress) options.progress(static_cast<int64_t>(result.tokens), plan.tokens);
  }
  graph.used = scorer.recorded();
  return result;
}

}  // namespace stablemask
