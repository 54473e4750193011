#include "stablemask/infer/generator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>
#include <optional>

#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/generate.h"

namespace stablemask::infer {
namespace {

DrawnToken drawn_token(const at::Tensor& logits, int32_t id, int64_t count) {
  DrawnToken token;
  token.id = id;
  if (count < 0) return token;
  const at::Tensor logprobs = at::log_softmax(logits, 0);
  token.logprob = logprobs[id].item<float>();
  const auto [values, ids] = at::topk(logprobs, std::min(count, logits.size(0)));
  for (int64_t i = 0; i < values.size(0); ++i) {
    token.top.emplace_back(ids[i].item<int32_t>(), values[i].item<float>());
  }
  return token;
}

}  // namespace

struct Generator::State {
  struct Sequence {
    uint64_t number = 0;
    GenerateRequest request;
    std::unique_ptr<nn::KvCache> cache;
    std::vector<int32_t> next;  ///< ids that the cache lacks
    int64_t drawn = 0;
    at::Tensor seen;  ///< uint8 [V]
    bool cancelled = false;
  };

  nn::Transformer model;
  GeneratorOptions options;
  uint64_t last = 0;
  std::deque<Sequence> waiting, running;

  /// Whether the text goes on.
  bool advance(Sequence& sequence) {
    if (sequence.cancelled) return end(sequence, {Finish::kCancelled, {}});
    if (!sequence.cache) {
      sequence.cache =
          std::make_unique<nn::KvCache>(model->config(), 1, options.capacity,
                                        model->head_weight().options().requires_grad(false));
      sequence.next = sequence.request.prompt;
      sequence.seen = at::zeros({options.vocab_size}, at::kByte);
      for (const int32_t id : sequence.next) {
        if (id < options.vocab_size) sequence.seen[id] = 1;
      }
    }
    at::Tensor logits = forward(sequence).narrow(0, 0, options.vocab_size);
    if (sequence.drawn == 0 && !sequence.request.first_ids.empty()) {
      const at::Tensor allowed = at::tensor(sequence.request.first_ids, at::kInt).to(at::kLong);
      logits = at::full_like(logits, -1e30).index_copy(0, allowed, logits.index_select(0, allowed));
    }
    int32_t id = 0;
    try {
      id = sample_token(logits, logits.size(0), sequence.request.settings, sequence.drawn,
                        sequence.seen);
    } catch (const NonFiniteError& error) {
      return end(sequence,
                 {Finish::kNonFinite,
                  "generated token " + std::to_string(sequence.drawn + 1) + ": " + error.what()});
    }
    sequence.next = {id};
    ++sequence.drawn;
    const GenerateRequest& request = sequence.request;
    const bool goes_on = !request.emit || request.emit(drawn_token(logits, id, request.logprobs));
    if (!goes_on || std::ranges::find(request.stop_ids, id) != request.stop_ids.end()) {
      return end(sequence, {Finish::kStop, {}});
    }
    if (sequence.drawn == request.settings.max_tokens) return end(sequence, {});
    return true;
  }

  static bool end(Sequence& sequence, const Outcome& outcome) {
    if (sequence.request.done) sequence.request.done(outcome);
    return false;
  }

  at::Tensor forward(Sequence& sequence) {
    const at::Tensor tokens = at::tensor(sequence.next, at::kInt)
                                  .to(model->head_weight().device(), at::kLong)
                                  .unsqueeze(0);
    nn::ForwardArgs args;
    args.cache = sequence.cache.get();
    int64_t done = 0;
    while (tokens.size(1) - done > sequence.cache->longest_append()) {
      const int64_t part = sequence.cache->longest_append();
      model->hidden(tokens.narrow(1, done, part), args);
      done += part;
    }
    return model->next_logits(tokens.narrow(1, done, tokens.size(1) - done), args)
        .squeeze(0)
        .to(at::kCPU, at::kFloat)
        .contiguous();
  }
};

Generator::Generator(nn::Transformer model, const GeneratorOptions& options)
    : state_(std::make_unique<State>(State{std::move(model), options, 0, {}, {}})) {
  if (options.max_batch < 1) throw ConfigError("generator: max_batch must be at least 1");
  if (options.capacity < 2) throw ConfigError("generator: capacity must be at least 2");
  if (options.vocab_size == 0) state_->options.vocab_size = state_->model->config().vocab_size;
}

Generator::~Generator() = default;

uint64_t Generator::add(GenerateRequest request) {
  if (request.prompt.empty()) throw ConfigError("generate: the prompt needs at least one token");
  const auto tokens = static_cast<int64_t>(request.prompt.size()) + request.settings.max_tokens;
  if (tokens > state_->options.capacity) {
    throw ConfigError("generate: prompt and max_tokens exceed the capacity");
  }
  auto& sequence = state_->waiting.emplace_back();
  sequence.number = ++state_->last;
  sequence.request = std::move(request);
  return state_->last;
}

void Generator::cancel(uint64_t number) {
  for (auto* list : {&state_->waiting, &state_->running}) {
    for (auto& sequence : *list) {
      if (sequence.number == number) sequence.cancelled = true;
    }
  }
}

bool Generator::step() {
  const at::NoGradGuard no_grad;
  state_->model->eval();
  auto& running = state_->running;
  auto& waiting = state_->waiting;
  while (!waiting.empty() && static_cast<int64_t>(running.size()) < state_->options.max_batch) {
    running.push_back(std::move(waiting.front()));
    waiting.pop_front();
  }
  std::erase_if(running, [&](auto& sequence) { return !state_->advance(sequence); });
  return !running.empty() || !waiting.empty();
}

void Generator::run() {
  while (stop_signal() == 0 && step()) {
  }
}

int64_t Generator::running() const { return static_cast<int64_t>(state_->running.size()); }
int64_t Generator::waiting() const { return static_cast<int64_t>(state_->waiting.size()); }

}  // namespace stablemask::infer
