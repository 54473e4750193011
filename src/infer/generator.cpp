#include "stablemask/infer/generator.h"

#include <ATen/core/grad_mode.h>

#include <limits>
#include <optional>
#include <utility>

#include "src/infer/decoding.h"
#include "src/infer/request_checks.h"
#include "src/infer/scheduler.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/ops/memory.h"

namespace stablemask::infer {
namespace {

template <typename Work>
auto with_hint(const Work& work) {
  return ops::with_memory_hint(
      "lower --max-tokens or shorten the prompt, or generate fewer texts at a time: the cache "
      "holds "
      "max_batch times capacity tokens",
      work);
}

GeneratorOptions checked(const nn::Transformer& model, GeneratorOptions options) {
  const int64_t ids = model->config().vocab_size;
  if (options.max_batch < 1) throw ConfigError("generate: max_batch must be at least 1");
  if (options.capacity < 2) {
    throw ConfigError(
        "generate: capacity must be at least 2 tokens, those of the longest prompt and its "
        "continuation");
  }
  if (options.vocab_size < 0 || options.vocab_size > ids) {
    throw ConfigError(format("generate: a vocabulary of %lld ids, but the model has %lld",
                             static_cast<long long>(options.vocab_size),
                             static_cast<long long>(ids)));
  }
  if (options.vocab_size == 0) options.vocab_size = ids;
  return options;
}

}  // namespace

struct Generator::State {
  State(nn::Transformer model_in, const GeneratorOptions& options_in)
      : model(std::move(model_in)),
        options(checked(model, options_in)),
        scheduler(options.max_batch),
        decoding(model, options.max_batch, options.capacity, options.vocab_size,
                 options.cuda_graphs) {
    model->eval();
  }

  /// Caches prompts: all that there are, or while other texts wait for their next id at most
  /// kLongestPrefill tokens.
  void prefill() {
    int64_t left = scheduler.to_decode().empty() ? std::numeric_limits<int64_t>::max()
                                                 : nn::Decoder::kLongestPrefill;
    std::vector<SequencePtr> sequences = scheduler.to_prefill();
    while (!sequences.empty() && left > 0 && stop_signal() == 0) {
      left -= decoding.prefill(sequences);
      std::erase_if(sequences, [](const SequencePtr& one) { return one->prefilled(); });
    }
  }

  void deliver(const LaunchedStep& step) {
    step.await();
    for (size_t slot = 0; slot < step.sequences.size(); ++slot) {
      const SequencePtr& sequence = step.sequences[slot];
      if (sequence->ended || sequence->cancelled) continue;
      const DrawnToken token = step.token(static_cast<int64_t>(slot));
      if (token.id >= 0) {
        scheduler.deliver(sequence, token);
      } else {
        scheduler.end(sequence, {Finish::kNonFinite,
                                 decoding.non_finite(*sequence) +
                                     "; the activations overflow, use another --dtype or an "
                                     "earlier checkpoint"});
      }
    }
  }

  bool step() {
    scheduler.begin();
    prefill();
    // On a GPU the host reads the ids of a step while the next step runs.
    std::optional<LaunchedStep> before = std::move(unread);
    unread.reset();
    if (const auto sequences = scheduler.to_decode(); !sequences.empty()) {
      unread = decoding.launch(sequences);
    }
    if (before) deliver(*before);
    if (unread && decoding.device().is_cpu()) {
      const LaunchedStep now = *std::move(unread);
      unread.reset();
      deliver(now);
    }
    return scheduler.running() + scheduler.waiting() > 0;
  }

  nn::Transformer model;
  GeneratorOptions options;
  Scheduler scheduler;
  Decoding decoding;
  std::optional<LaunchedStep> unread;
};

Generator::Generator(nn::Transformer model, const GeneratorOptions& options)
    : state_(with_hint([&] {
        const at::NoGradGuard no_grad;
        return std::make_unique<State>(std::move(model), options);
      })) {}

Generator::~Generator() = default;

uint64_t Generator::add(GenerateRequest request) {
  const GeneratorOptions& options = state_->options;
  check_request(request, state_->model->config().vocab_size, options.vocab_size);
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (request.settings.max_tokens > options.capacity - prompt) {
    throw ConfigError(
        format("generate: a prompt of %lld tokens and max_tokens %lld are more than the capacity "
               "of %lld tokens; shorten the prompt or lower max_tokens",
               static_cast<long long>(prompt), static_cast<long long>(request.settings.max_tokens),
               static_cast<long long>(options.capacity)));
  }
  return state_->scheduler.add(std::move(request));
}

void Generator::cancel(uint64_t number) { state_->scheduler.cancel(number); }

bool Generator::step() {
  const at::NoGradGuard no_grad;
  return with_hint([&] { return state_->step(); });
}

void Generator::run() {
  while (stop_signal() == 0 && step()) {
  }
}

int64_t Generator::running() const { return state_->scheduler.running(); }
int64_t Generator::waiting() const { return state_->scheduler.waiting(); }

}  // namespace stablemask::infer
