#include "stablemask/infer/score.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>
#include <tuple>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/nn/linear.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/memory.h"
#include "stablemask/ops/reference.h"

namespace stablemask::infer {
namespace {

constexpr int64_t kTokensOfAPass = 32768;  ///< on a GPU, if the batch is chosen
constexpr int64_t kHeadRows = 1024;        ///< rows that the head multiplies at a time on a GPU

long long ll(int64_t value) { return value; }

/// Inputs [begin, end) of a text x = EOS, id_0, … that predict the ids [begin, end), of which those
/// from `first` on are scored.
struct Window {
  size_t text;
  int64_t begin, end, first;
  int64_t columns;  ///< of the pass that scores it
  bool greedy;

  int64_t scored() const { return end - first; }
  /// Windows with equal shapes can share a pass.
  auto shape() const { return std::tuple(greedy, columns); }
};

/// The smallest of 16, 24, 32, 48, 64, 96, … that holds `length`, but not more than `longest`.
int64_t padded(int64_t length, int64_t longest) {
  int64_t columns = 16;
  while (columns < length && columns / 2 * 3 < length) columns *= 2;
  if (columns < length) columns = columns / 2 * 3;
  return std::clamp(columns, length, std::max(length, longest));
}

void check_options(const ScoreOptions& options, int64_t vocabulary) {
  if (options.window < 1) {
    throw ConfigError(format("score: window %lld: must be at least 1", ll(options.window)));
  }
  if (options.stride < 0 || options.stride > options.window) {
    throw ConfigError(format("score: stride %lld: must be from 1 to the window, %lld, or 0",
                             ll(options.stride), ll(options.window)));
  }
  if (options.batch < 0) throw ConfigError("score: batch: must not be negative");
  if (options.eos_id < 0 || options.eos_id >= vocabulary) {
    throw ConfigError(format("score: EOS id %d is not one of the model's %lld token ids",
                             options.eos_id, ll(vocabulary)));
  }
  if (options.vocab_size < 0 || options.vocab_size > vocabulary) {
    throw ConfigError(format("score: vocabulary of %lld ids: the model has %lld",
                             ll(options.vocab_size), ll(vocabulary)));
  }
}

void check_texts(const std::vector<ScoreText>& texts, int64_t vocabulary) {
  for (size_t number = 0; number < texts.size(); ++number) {
    const ScoreText& text = texts[number];
    if (text.context < 0 || text.context >= static_cast<int64_t>(text.ids.size())) {
      throw DataError(
          format("score: text %zu: no token to score; it needs at least one after its "
                 "context",
                 number + 1));
    }
    const auto [least, most] = std::ranges::minmax(text.ids);
    if (least < 0 || most >= vocabulary) {
      throw DataError(
          format("score: text %zu: token id %d is outside the model's vocabulary of "
                 "%lld; use the model's tokenizer",
                 number + 1, least < 0 ? least : most, ll(vocabulary)));
    }
  }
}

/// Whether what a row sees depends on the number of columns.
bool length_matters(const ModelConfig& config) {
  return config.log_length_scale ||
         (config.stable_mask.enabled &&
          config.stable_mask.mask_length.kind == MaskLengthSpec::Kind::kSequence);
}

/// The windows of the texts, those of equal shape together. `pads`: a pass may have more columns
/// than its windows.
std::vector<Window> windows_of(const std::vector<ScoreText>& texts, const ScoreOptions& options,
                               bool pads) {
  std::vector<Window> windows;
  for (size_t number = 0; number < texts.size(); ++number) {
    const ScoreText& text = texts[number];
    const auto size = static_cast<int64_t>(text.ids.size());
    int64_t next = text.context, count = options.window;
    while (next < size) {
      const int64_t end = std::min(next + count, size);
      const int64_t begin = std::max<int64_t>(0, end - options.window);
      const int64_t columns = pads ? padded(end - begin, options.window) : end - begin;
      windows.push_back({number, begin, end, next, columns, text.greedy});
      next = end;
      count = options.stride ? options.stride : options.window;
    }
  }
  // The windows of a text stay in order: those before the last one have one shape.
  std::ranges::stable_sort(windows, {}, &Window::shape);
  return windows;
}

/// The inputs of a pass and what is scored of it, in host memory.
struct Inputs {
  std::vector<int64_t> tokens;  ///< [rows, columns]
  std::vector<int64_t> starts;  ///< document_start, as tokens; empty without a document mask
  std::vector<int64_t> picked, targets;  ///< positions in `tokens` and the ids that follow them
};

Inputs gather(std::span<const Window> windows, int64_t rows, const std::vector<ScoreText>& texts,
              const ScoreOptions& options) {
  const int64_t columns = windows.front().columns;
  Inputs inputs;
  inputs.tokens.resize(rows * columns, options.eos_id);
  if (options.document_mask) inputs.starts.resize(rows * columns);
  for (size_t row = 0; row < windows.size(); ++row) {
    const Window& window = windows[row];
    const std::vector<int32_t>& ids = texts[window.text].ids;
    const int64_t offset = static_cast<int64_t>(row) * columns;
    for (int64_t i = window.begin; i < window.end; ++i) {
      const int64_t at = offset + i - window.begin;
      if (i > 0) inputs.tokens[at] = ids[i - 1];
      if (i < window.first) continue;
      inputs.picked.push_back(at);
      inputs.targets.push_back(ids[i]);
    }
    // The EOS before a text is not part of its document.
    if (options.document_mask && window.begin == 0) {
      std::fill_n(inputs.starts.begin() + offset + 1, columns - 1, 1);
    }
  }
  return inputs;
}

class Scorer {
 public:
  Scorer(nn::Transformer& model, const std::vector<ScoreText>& texts, const ScoreOptions& options)
      : model_(model),
        texts_(texts),
        options_(options),
        device_(model->head_weight().device()),
        likeliest_(options.vocab_size ? options.vocab_size : model->config().vocab_size) {}

  std::vector<Score> run() {
    const bool pads = !device_.is_cpu() && !length_matters(model_->config());
    const std::vector<Window> windows = windows_of(texts_, options_, pads);
    std::vector<Score> scores(texts_.size());
    for (size_t i = 0; i < texts_.size(); ++i) scores[i].greedy = texts_[i].greedy;
    std::vector<double> last(texts_.size(), 0.0);
    for (size_t begin = 0; begin < windows.size();) {
      check_stop("scoring texts");
      const Window& first = windows[begin];
      const size_t limit =
          std::min(begin + static_cast<size_t>(rows_of(first.columns)), windows.size());
      size_t end = begin + 1;
      while (end < limit && windows[end].shape() == first.shape()) ++end;
      score_pass({&windows[begin], end - begin}, scores, last);
      begin = end;
    }
    for (size_t i = 0; i < scores.size(); ++i) scores[i].nll += last[i];
    return scores;
  }

 private:
  /// Rows of a pass: one on the CPU, where more are hardly faster and the bits of a row's products
  /// depend on the number of rows.
  int64_t rows_of(int64_t columns) const {
    if (device_.is_cpu()) return 1;
    return options_.batch ? options_.batch : std::max<int64_t>(1, kTokensOfAPass / columns);
  }

  /// Adds the windows' sums to the scores. The window at a text's end, which may be of another
  /// shape and come before the others, goes to `last`: sums are added in the order of the text.
  void score_pass(std::span<const Window> windows, std::vector<Score>& scores,
                  std::vector<double>& last) {
    const auto [nll, hits] =
        ops::with_memory_hint("lower eval.batch or eval.window (--batch, --window of score)",
                              [&] { return forward(windows); });
    const float* value = nll.const_data_ptr<float>();
    const bool* hit = hits.defined() ? hits.const_data_ptr<bool>() : nullptr;
    for (const Window& window : windows) {
      double sum = 0;
      for (int64_t i = 0; i < window.scored(); ++i) sum += value[i];
      value += window.scored();
      Score& score = scores[window.text];
      const bool at_end = window.end == static_cast<int64_t>(texts_[window.text].ids.size());
      (at_end ? last[window.text] : score.nll) += sum;
      score.tokens += window.scored();
      scored_ += window.scored();
      if (hit == nullptr) continue;
      score.greedy &= std::all_of(hit, hit + window.scored(), [](bool one) { return one; });
      hit += window.scored();
    }
    if (options_.progress) options_.progress(scored_);
  }

  /// NLL of the scored ids, fp32, and, for windows that ask for it, whether each is the likeliest;
  /// both in host memory.
  std::pair<at::Tensor, at::Tensor> forward(std::span<const Window> windows) {
    const int64_t columns = windows.front().columns, rows = rows_of(columns);
    Inputs inputs = gather(windows, rows, texts_, options_);
    const auto count = static_cast<int64_t>(inputs.picked.size());
    if (!device_.is_cpu()) {
      const int64_t whole = (count + kHeadRows - 1) / kHeadRows * kHeadRows;
      inputs.picked.resize(whole, inputs.picked.front());
      inputs.targets.resize(whole, inputs.targets.front());
    }
    const auto on_device = [&](const std::vector<int64_t>& values) {
      return at::tensor(values).to(device_);
    };
    nn::ForwardArgs args;
    if (options_.document_mask)
      args.document_start = on_device(inputs.starts).view({rows, columns});
    const at::Tensor hidden = model_->hidden(on_device(inputs.tokens).view({rows, columns}), args);
    const at::Tensor x =
        hidden.view({rows * columns, -1}).index_select(0, on_device(inputs.picked));
    const auto [nll, hits] = head(x, on_device(inputs.targets), windows.front().greedy);
    return {nll.narrow(0, 0, count).cpu(), hits.defined() ? hits.narrow(0, 0, count).cpu() : hits};
  }

  /// x [rows, C] → NLL [rows] of the targets and, if asked for, whether each has the largest logit.
  std::pair<at::Tensor, at::Tensor> head(const at::Tensor& x, const at::Tensor& targets,
                                         bool greedy) {
    if (device_.is_cpu() && !greedy) return {nll_of(x, targets), {}};
    std::vector<at::Tensor> nll, hits;
    const int64_t step =
        device_.is_cpu()
            ? ops::logit_chunk_rows(false, model_->config().vocab_size, x.element_size())
            : kHeadRows;
    for (int64_t first = 0; first < x.size(0); first += step) {
      const int64_t size = std::min(step, x.size(0) - first);
      const at::Tensor part = x.narrow(0, first, size), target = targets.narrow(0, first, size);
      if (!greedy) {
        nll.push_back(nll_of(part, target));
        continue;
      }
      const at::Tensor logits = head_.forward(part, ops::Kernels::kFused);
      nll.push_back(ops::reference::cross_entropy(logits, target).to(at::kFloat));
      hits.push_back(logits.narrow(1, 0, likeliest_).argmax(1).eq(target));
    }
    return {at::cat(nll), greedy ? at::cat(hits) : at::Tensor()};
  }

  at::Tensor nll_of(const at::Tensor& x, const at::Tensor& targets) const {
    return head_.nll(x, targets, ops::Kernels::kFused);
  }

  nn::Transformer& model_;
  const std::vector<ScoreText>& texts_;
  const ScoreOptions& options_;
  const nn::Linear head_{model_->head_weight()};
  const at::Device device_;
  const int64_t likeliest_;  ///< ids below it can be the likeliest
  int64_t scored_ = 0;
};

/// Characters that lm-eval, with Python's rstrip, takes from the end of a context; of those beyond
/// ASCII none.
constexpr const char* kWhiteSpace = " \t\n\r\v\f\x1c\x1d\x1e\x1f";

}  // namespace

std::vector<Score> score(nn::Transformer& model, const std::vector<ScoreText>& texts,
                         const ScoreOptions& options) {
  const int64_t vocabulary = model->config().vocab_size;
  check_options(options, vocabulary);
  check_texts(texts, vocabulary);
  const at::NoGradGuard no_grad;
  model->eval();
  return Scorer(model, texts, options).run();
}

ScoreText encode_pair(const Tokenizer& tokenizer, const std::string& context,
                      const std::string& continuation) {
  if (continuation.empty()) throw DataError("the continuation is empty: nothing to score");
  const size_t kept = context.find_last_not_of(kWhiteSpace);
  const size_t context_bytes = kept == std::string::npos ? 0 : kept + 1;
  ScoreText text;
  text.ids = tokenizer.encode(context + continuation);
  text.greedy = true;
  if (!tokenizer.lossless()) {
    text.context = static_cast<int64_t>(tokenizer.encode(context.substr(0, context_bytes)).size());
    if (text.context < static_cast<int64_t>(text.ids.size())) return text;
    throw DataError("the continuation adds no token to its context: nothing to score");
  }
  size_t bytes = 0;
  for (const int32_t id : text.ids) {
    bytes += tokenizer.text_of(id).size();
    if (bytes > context_bytes) break;
    ++text.context;
  }
  return text;
}

}  // namespace stablemask::infer
