#include "stablemask/infer/evaluate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "src/infer/evaluate_graph.h"
#include "src/infer/evaluate_samples.h"
#include "src/infer/windows.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/device_batch.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
namespace {

/// Recording a graph costs about one batch of time and of memory, so fewer equal batches than this
/// run without one.
constexpr int64_t kWorthRecording = 4;

/// Forward pass number `number` of an evaluation: windows [first, first + rows) of equal length.
struct Pass {
  int64_t first, rows;
};

/// The windows in passes of `rows`: first those of full length, then the shorter last one.
class Passes {
 public:
  Passes(const WindowPlan& plan, int64_t rows)
      : windows_(plan.count()), full_(plan.full()), rows_(rows) {}

  int64_t count() const { return (full_ + rows_ - 1) / rows_ + (windows_ > full_ ? 1 : 0); }
  int64_t equal() const { return full_ / rows_; }  ///< the first ones, all of `rows` windows
  Pass at(int64_t number) const {
    const int64_t first = std::min(number * rows_, full_);
    return {first, first < full_ ? std::min(rows_, full_ - first) : 1};
  }

 private:
  int64_t windows_, full_, rows_;
};

/// How many of the numbers 0 … count − 1 are this process's: every size-th from its rank on.
int64_t own_count(const dist::Group& group, int64_t count) {
  return (count + group.size() - 1 - group.rank()) / group.size();
}

/// Scores passes one after another, in rounds of one pass for each process. On a GPU the first pass
/// of a process runs plainly (library set-up and the choice of algorithms cannot be recorded), the
/// second is recorded as a CUDA graph, and its other passes of that shape replay it.
class Scorer {
 public:
  /// The first `equal` passes of this process must have the same shape; `tokens`: of the largest.
  Scorer(nn::Transformer& model, dist::Group& group, int64_t tokens, int64_t equal, bool may_record)
      : model_(model),
        group_(group),
        device_(model->head_weight().device()),
        equal_(equal),
        round_(at::zeros({group.size(), tokens}, at::TensorOptions(at::kFloat).device(device_))) {
    if (may_record && device_.is_cuda() && equal >= kWorthRecording) {
      graph_ = std::make_unique<ops::Graph>(device_);
    }
  }

  /// NLLs of the round's passes: row r, fp32 in host memory, begins with those of process r's pass.
  /// `batch`: this process's pass; null: there is none left for it.
  at::Tensor score(const Batch* batch) {
    std::optional<ops::Graph::OnItsStream> on_stream;
    if (batch != nullptr) {
      if (scored_ == equal_) forget_graph();
      if (graph_) on_stream.emplace(*graph_);
      const at::Tensor nll = nll_of(*batch).reshape({-1});
      round_[group_.rank()].narrow(0, 0, nll.numel()).copy_(nll);
      ++scored_;
    }
    group_.all_gather(round_.view({-1}));
    return group_.read(round_);
  }

  bool recorded() const { return recorded_; }

 private:
  at::Tensor nll_of(const Batch& batch) {
    if (!graph_ || scored_ == 0) return forward(DeviceBatch(batch, device_));
    if (graph_->recorded()) {
      inputs_->copy_from(batch);
    } else {
      inputs_.emplace(batch, device_);
      graph_->record([&] { nll_ = forward(*inputs_); });
      recorded_ = true;
    }
    graph_->replay();
    return nll_;
  }

  at::Tensor forward(const DeviceBatch& batch) {
    return model_->token_nll(batch.tokens, batch.targets, batch.document_start);
  }

  /// Frees the graph's memory for the remaining passes.
  void forget_graph() {
    nll_.reset();
    inputs_.reset();
    graph_.reset();
  }

  nn::Transformer& model_;
  dist::Group& group_;
  const at::Device device_;
  const int64_t equal_;
  int64_t scored_ = 0;
  bool recorded_ = false;
  std::unique_ptr<ops::Graph> graph_;  ///< null: no pass is recorded
  std::optional<DeviceBatch> inputs_;  ///< memory that the graph reads
  at::Tensor nll_;                     ///< memory that the graph writes
  at::Tensor round_;                   ///< [processes, tokens]
};

/// Adds the scored values of a pass one by one in text order, so that the sum depends on neither
/// the batch nor the number of processes. `values` [rows, window's length].
void add_scores(const WindowPlan& plan, const Pass& pass, const float* values, Perplexity& result) {
  for (int64_t k = pass.first; k < pass.first + pass.rows; ++k) {
    const int64_t begin = plan.begin(k), end = plan.end(k);
    for (int64_t i = plan.first_scored(k); i < end; ++i) {
      result.nll += values[i - begin];
      ++result.tokens;
    }
    values += end - begin;
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

EvalOptions eval_options(const Config& config, const Tokenizer& tokenizer) {
  EvalOptions options = eval_options(config, tokenizer.start_id());
  options.lossless = tokenizer.lossless();
  return options;
}

Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options) {
  GraphUse graph;
  return evaluate(model, shard, options, graph);
}

Perplexity evaluate(nn::Transformer& model, const Shard& shard, const EvalOptions& options,
                    GraphUse& graph) {
  if (shard.info().has_samples()) return evaluate_samples(model, shard, options);
  const WindowPlan plan = window_plan(shard, options, model->config().vocab_size);
  const ShardInfo& info = shard.info();
  Perplexity result;
  const bool whole = plan.tokens == shard.size();
  result.text_known = options.lossless && info.bytes > 0 && whole;
  if (whole) {
    result.words = info.words;
    result.lines = info.lines;
    result.documents = info.documents;
    result.bytes = info.bytes;
  }

  const std::shared_ptr<dist::Group> group =
      options.group ? options.group : dist::single_process_group();
  const int64_t batch_rows = windows_of_pass(options, plan.count(), model->head_weight().is_cpu());
  const Passes passes(plan, batch_rows);
  const int64_t vocabulary = model->config().vocab_size;
  const auto with_hint = [](const auto& work) {
    return ops::with_memory_hint("lower eval.batch or eval.window (--batch, --window of eval)",
                                 work);
  };
  at::NoGradGuard no_grad;
  model->eval();
  // With a document mask the shapes inside a forward pass depend on the values.
  Scorer scorer(model, *group, passes.at(0).rows * (plan.end(0) - plan.begin(0)),
                own_count(*group, passes.equal()), graph.allowed && !options.document_mask);
  for (int64_t round = 0; round < passes.count(); round += group->size()) {
    if (group->agree(stop_signal()) != 0) {
      result.complete = false;
      break;
    }
    std::optional<Batch> batch;
    if (const int64_t mine = round + group->rank(); mine < passes.count()) {
      const Pass pass = passes.at(mine);
      batch = gather_windows(shard, plan, options, pass.first, pass.rows, vocabulary);
    }
    const at::Tensor nll =
        with_hint([&] { return scorer.score(batch ? &*batch : nullptr).contiguous(); });
    const int64_t end = std::min(round + group->size(), passes.count());
    for (int64_t number = round; number < end; ++number) {
      add_scores(plan, passes.at(number),
                 nll.const_data_ptr<float>() + (number - round) * nll.size(1), result);
    }
    if (options.progress) options.progress(static_cast<int64_t>(result.tokens), plan.tokens);
  }
  graph.used = scorer.recorded();
  return result;
}

}  // namespace stablemask
