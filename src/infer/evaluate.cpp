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

/// Window k over `tokens` tokens; evaluate() in the header defines the windows.
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

/// Writes to out[c] the column at which the document of input column c starts. The input that
/// precedes a document's first token belongs to the document before, also when it is the EOS at the
/// start of a window.
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

/// Window k as one row of inputs and targets, [plan.end(k) − plan.begin(k)] each.
void fill_row(const Shard& shard, const WindowPlan& plan, int32_t eos_id, int64_t k,
              int64_t* tokens, int64_t* targets) {
  const int64_t begin = plan.begin(k), columns = plan.end(k) - begin;
  const bool starts_with_eos = begin == 0 || !plan.overlaps();
  if (starts_with_eos) {
    shard.read(begin, columns, targets);
    tokens[0] = eos_id;
  } else {
    std::vector<int64_t> ids(columns + 1);
    shard.read(begin - 1, columns + 1, ids.data());
    tokens[0] = ids[0];
    std::copy(ids.begin() + 1, ids.end(), targets);
  }
  std::copy(targets, targets + columns - 1, tokens + 1);
}

void check_ids(const Shard& shard, const std::vector<int64_t>& ids, int64_t vocabulary) {
  const auto [least, most] = std::minmax_element(ids.begin(), ids.end());
  if (*least >= 0 && *most < vocabulary) return;
  throw DataError(
      format("%s: token id %lld is outside the model's vocabulary of %lld; the shard "
             "is damaged, prepare it again",
             shard.path().c_str(), static_cast<long long>(*least < 0 ? *least : *most),
             static_cast<long long>(vocabulary)));
}

/// `rows` windows of equal length from window k on, in host memory.
Batch gather_windows(const Shard& shard, const WindowPlan& plan, const EvalOptions& options,
                     int64_t k, int64_t rows, int64_t vocabulary) {
  Batch batch;
  batch.rows = rows;
  batch.columns = plan.end(k) - plan.begin(k);
  batch.tokens.resize(rows * batch.columns);
  batch.targets.resize(rows * batch.columns);
  if (options.document_mask) batch.document_start.resize(rows * batch.columns);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t first = row * batch.columns;
    fill_row(shard, plan, options.eos_id, k + row, &batch.tokens[first], &batch.targets[first]);
    if (options.document_mask) {
      fill_document_start(shard.document_starts(), plan.begin(k + row), batch.columns,
                          &batch.document_start[first]);
    }
  }
  check_ids(shard, batch.tokens, vocabulary);
  check_ids(shard, batch.targets, vocabulary);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t scored_before = plan.first_scored(k + row) - plan.begin(k + row);
    std::fill_n(&batch.targets[row * batch.columns], scored_before, kIgnoreTarget);
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
        format("evaluation stride %lld: must be from 1 to the window, %lld; a larger stride would "
               "leave tokens unscored",
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
  const WindowPlan plan = checked_plan(model, shard, options);
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
