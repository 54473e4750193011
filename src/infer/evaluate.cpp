#include "stablemask/infer/evaluate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "src/infer/evaluate_graph.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/device_batch.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
namespace {

/// The windows over N tokens as a pure function of their number k; see evaluate() in the header.
struct WindowPlan {
  int64_t tokens, length, stride;

  int64_t count() const {
    return tokens <= length ? 1 : 1 + (tokens - length + stride - 1) / stride;
  }
  int64_t begin(int64_t k) const { return k * stride; }
  int64_t end(int64_t k) const { return std::min(begin(k) + length, tokens); }
  int64_t first_scored(int64_t k) const { return k == 0 ? 0 : end(k - 1); }
  bool overlaps() const { return stride < length; }
  /// Windows of full length; at most one more, the last, is short.
  int64_t full() const {
    return end(count() - 1) - begin(count() - 1) == length ? count() : count() - 1;
  }
};

/// Column at which the document of each input starts, [length]. The input before a token that
/// begins a document belongs to the document before it, also when it is the EOS that opens a
/// window.
void fill_document_start(const std::vector<int64_t>& starts, int64_t begin, int64_t length,
                         int64_t* out) {
  // Input column c is token begin + c − 1; documents that start in (begin − 1, …] start a column.
  auto next = std::lower_bound(starts.begin(), starts.end(), begin);
  int64_t column = 0;
  for (int64_t c = 0; c < length; ++c) {
    while (next != starts.end() && *next <= begin + c - 1) {
      column = *next - begin + 1;
      ++next;
    }
    out[c] = column;
  }
}

/// `rows` windows of equal length from window k on, in host memory.
Batch gather_windows(const Shard& shard, const WindowPlan& plan, const EvalOptions& options,
                     int64_t k, int64_t rows) {
  Batch batch;
  batch.rows = rows;
  batch.columns = plan.end(k) - plan.begin(k);
  batch.tokens.resize(rows * batch.columns);
  batch.targets.resize(rows * batch.columns);
  if (options.document_mask) batch.document_start.resize(rows * batch.columns);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = plan.begin(k + row);
    int64_t* tokens = batch.tokens.data() + row * batch.columns;
    int64_t* targets = batch.targets.data() + row * batch.columns;
    shard.read(begin, batch.columns, targets);
    const bool opens_with_eos = begin == 0 || !plan.overlaps();
    tokens[0] = opens_with_eos ? options.eos_id : shard.token(begin - 1);
    std::copy(targets, targets + batch.columns - 1, tokens + 1);
    std::fill(targets, targets + (plan.first_scored(k + row) - begin), kIgnoreTarget);
    if (options.document_mask) {
      fill_document_start(shard.document_starts(), begin, batch.columns,
                          batch.document_start.data() + row * batch.columns);
    }
  }
  return batch;
}

WindowPlan checked_plan(const nn::Transformer& model, const Shard& shard,
                        const EvalOptions& options) {
  const int64_t stride = options.stride == 0 ? options.window : options.stride;
  if (options.window < 1) {
    throw ConfigError(format("evaluation window %lld: must be at least 1",
                             static_cast<long long>(options.window)));
  }
  if (stride < 1 || stride > options.window) {
    throw ConfigError(
        format("evaluation stride %lld: must lie in 1 … %lld, the window; a larger one "
               "would leave tokens out",
               static_cast<long long>(stride), static_cast<long long>(options.window)));
  }
  if (options.batch < 0) throw ConfigError("evaluation batch: must not be negative");
  if (shard.size() == 0) throw DataError(shard.path() + ": no tokens to evaluate on");
  const int64_t vocabulary = model->config().vocab_size;
  if (static_cast<int64_t>(shard.info().vocab_size) > vocabulary) {
    throw DataError(
        format("%s: made for %lld token ids, but the model has %lld; use the shard made "
               "with the model's tokenizer",
               shard.path().c_str(), static_cast<long long>(shard.info().vocab_size),
               static_cast<long long>(vocabulary)));
  }
  if (options.eos_id < 0 || options.eos_id >= vocabulary) {
    throw ConfigError(format("evaluation: EOS id %d is not one of the model's %lld token ids",
                             options.eos_id, static_cast<long long>(vocabulary)));
  }
  return {shard.size(), options.window, stride};
}

/// Windows per forward that keep a machine busy without much memory; never more than there are.
int64_t chosen_batch(const EvalOptions& options, const WindowPlan& plan, bool on_cpu) {
  if (options.batch > 0) return options.batch;
  const int64_t tokens_per_forward = on_cpu ? 4096 : 32768;
  return std::clamp<int64_t>(tokens_per_forward / options.window, 1, plan.count());
}

/// Recording takes about the time of a batch and the memory of one more; fewer equal batches than
/// this do not earn it back.
constexpr int64_t kWorthRecording = 4;

/// Runs the model over one batch after another. On a GPU the second of the equal batches is
/// recorded as a CUDA graph, which the later ones replay; the first warms up the libraries' caches
/// and chooses their algorithms.
class Scorer {
 public:
  /// The first `equal` batches have one shape, and nothing but their values tells them apart.
  Scorer(nn::Transformer& model, int64_t equal, bool may_record)
      : model_(model), device_(model->head_weight().device()), equal_(equal) {
    if (may_record && device_.is_cuda() && equal >= kWorthRecording) {
      graph_ = std::make_unique<ops::Graph>(device_);
    }
  }

  /// NLL of each target in host memory, fp32 [B,T], contiguous.
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

  /// The batches that are left need the memory.
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
  std::unique_ptr<ops::Graph> graph_;  ///< null: every batch runs plainly
  std::optional<DeviceBatch> inputs_;  ///< the memory that the graph reads
  at::Tensor nll_;                     ///< and writes
};

}  // namespace

Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options) {
  GraphUse graph;
  return evaluate(model, shard, options, graph);
}

Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options,
                    GraphUse& graph) {
  const WindowPlan plan = checked_plan(model, shard, options);
  const ShardInfo& info = shard.info();
  Perplexity result;
  result.words = info.words;
  result.lines = info.lines;
  result.documents = info.documents;
  result.bytes = info.bytes;

  const int64_t batch_rows = chosen_batch(options, plan, model->head_weight().is_cpu());
  // Where documents lie decides the shapes inside a forward: nothing to record.
  Scorer scorer(model, plan.full() / batch_rows, graph.allowed && !options.document_mask);
  at::NoGradGuard no_grad;
  model->eval();
  for (int64_t k = 0, rows; k < plan.count(); k += rows) {
    if (stop_signal() != 0) {
      result.complete = false;
      break;
    }
    rows = k < plan.full() ? std::min(batch_rows, plan.full() - k) : 1;
    const Batch batch = gather_windows(shard, plan, options, k, rows);
    const at::Tensor nll =
        ops::with_memory_hint("lower eval.batch or eval.window (--batch, --window of eval)",
                              [&] { return scorer.score(batch); });
    // Added one by one in text order, so that the sum does not depend on the batch.
    const float* values = nll.const_data_ptr<float>();
    for (size_t i = 0; i < batch.targets.size(); ++i) {
      if (batch.targets[i] == kIgnoreTarget) continue;
      result.nll += values[i];
      ++result.tokens;
    }
  }
  graph.used = scorer.recorded();
  return result;
}

}  // namespace stablemask
