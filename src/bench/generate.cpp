#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "src/bench/bench.h"
#include "src/bench/model_names.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/random.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/infer/generator.h"
#include "stablemask/infer/load.h"
#include "stablemask/nn/kv_cache.h"
#include "stablemask/nn/model.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/memory.h"
#include "stablemask/train/torch_settings.h"

namespace stablemask::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// A model of random weights, drawn on the device: speed does not depend on their values.
nn::Transformer random_model(const ModelConfig& config, at::Device device, at::ScalarType dtype) {
  nn::Transformer model(config);
  const at::NoGradGuard no_grad;
  at::manual_seed(1);
  for (auto& item : model->named_parameters()) {
    at::Tensor& parameter = item.value();
    if (parameter.dim() < 2) {
      parameter.set_data(parameter.to(device, dtype));
      continue;
    }
    parameter.set_data(at::empty(parameter.sizes(), at::TensorOptions(dtype).device(device)));
    parameter.normal_(0, config.init_std);
  }
  model->to(device);
  model->weights_are_set();
  model->eval();
  return model;
}

class GenerateBench {
 public:
  explicit GenerateBench(const GenerateOptions& options)
      : options_(options),
        config_(options.config),
        device_(select_device(config_.train.device)),
        model_(random_model(config_.model, device_, select_dtype(config_.train.dtype, device_))) {}

  /// Compares a few greedy tokens and their log-probabilities with a forward pass without a cache.
  bool right() {
    constexpr int64_t kTokens = 8;
    std::vector<infer::DrawnToken> drawn;
    infer::GenerateRequest text = request(0, kTokens);
    text.settings = {};
    text.settings.temperature = 0;
    text.settings.max_tokens = kTokens;
    text.logprobs = 0;
    std::vector<int32_t> ids = text.prompt;
    text.emit = [&](const infer::DrawnToken& token) {
      drawn.push_back(token);
      ids.push_back(token.id);
      return true;
    };
    infer::Generator generator(
        model_, {.capacity = options_.prompt + kTokens, .cuda_graphs = !options_.plain});
    generator.add(std::move(text));
    generator.run();
    const at::NoGradGuard no_grad;
    const at::Tensor tokens = at::tensor(ids, at::kInt).to(device_, at::kLong).unsqueeze(0);
    const at::Tensor hidden = model_->hidden(tokens)[0].narrow(0, options_.prompt - 1, kTokens);
    const at::Tensor logits = at::matmul(hidden, model_->head_weight().t());
    const at::Tensor full = at::log_softmax(logits.to(at::kCPU, at::kFloat), 1);
    for (int64_t i = 0; i < static_cast<int64_t>(drawn.size()); ++i) {
      const double own = full[i][drawn[i].id].item<double>(), best = full[i].max().item<double>();
      difference_ = std::max({difference_, std::fabs(own - drawn[i].logprob), best - own});
    }
    const double tolerance = model_->head_weight().scalar_type() == at::kFloat ? 1e-3 : 0.1;
    return static_cast<int64_t>(drawn.size()) == kTokens && difference_ <= tolerance;
  }

  /// All texts twice: a short one records the steps and chooses algorithms.
  void time() {
    infer::Generator generator(model_, {.max_batch = options_.batch,
                                        .capacity = options_.prompt + options_.tokens,
                                        .cuda_graphs = !options_.plain});
    run(generator, std::min<int64_t>(options_.tokens, 16));
    starts_.clear();
    begin_ = Clock::now();
    run(generator, options_.tokens);
    end_ = Clock::now();
  }

  Json json() const;

 private:
  infer::GenerateRequest request(int64_t number, int64_t tokens) const {
    infer::GenerateRequest request;
    SplitMix64 random(static_cast<uint64_t>(number));
    for (int64_t i = 0; i < options_.prompt; ++i) {
      request.prompt.push_back(
          static_cast<int32_t>(random.next() % static_cast<uint64_t>(config_.model.vocab_size)));
    }
    request.settings = config_.generate;
    request.settings.max_tokens = tokens;
    request.settings.seed = number;
    return request;
  }

  void run(infer::Generator& generator, int64_t tokens) {
    int64_t left = 0;
    for (int64_t number = 0; number < options_.batch; ++number) {
      infer::GenerateRequest text = request(number, tokens);
      left += tokens;
      text.emit = [&, last = number + 1 == options_.batch](const infer::DrawnToken&) {
        --left;
        if (last) starts_.push_back(Clock::now());
        return true;
      };
      generator.add(std::move(text));
    }
    generator.run();
    check_stop("benchmarking");
    if (left != 0) throw NonFiniteError("bench generate: a logit is not finite");
  }

  const GenerateOptions options_;
  const Config config_;
  const at::Device device_;
  nn::Transformer model_;
  double difference_ = 0;
  Clock::time_point begin_, end_;
  std::vector<Clock::time_point> starts_;  ///< of each token of the last text
};

Json GenerateBench::json() const {
  const auto batch = static_cast<double>(options_.batch);
  const auto tokens = static_cast<double>(options_.tokens);
  const double prefill = seconds_between(begin_, starts_.front());
  const double seconds = seconds_between(begin_, end_);
  std::vector<double> steps;
  for (size_t i = 1; i < starts_.size(); ++i) {
    steps.push_back(seconds_between(starts_[i - 1], starts_[i]));
  }
  std::ranges::nth_element(steps, steps.begin() + static_cast<int64_t>(steps.size() / 2));
  const double step = steps.at(steps.size() / 2);
  const ModelConfig& model = config_.model;
  const int64_t unread = model.tied_head ? 0 : model.vocab_size * model.channels;
  const double weight_bytes = static_cast<double>(nn::parameter_count(model) - unread) *
                              static_cast<double>(model_->head_weight().element_size());
  const double decoding = seconds - prefill;
  return {{"program", "stablemask"},
          {"device", ops::device_name(device_)},
          {"model", model.preset},
          {"mask", mask_name(model.stable_mask)},
          {"position", position_name(model.position)},
          {"dtype", model_->head_weight().scalar_type() == at::kFloat ? "fp32" : "bf16"},
          {"parameters", nn::parameter_count(model)},
          {"batch", options_.batch},
          {"prompt", options_.prompt},
          {"tokens", options_.tokens},
          {"threads", at::get_num_threads()},
          {"cuda_graph", device_.is_cuda() && !options_.plain},
          {"difference", difference_},
          {"seconds", seconds},
          {"tokens_per_second", batch * tokens / seconds},
          {"prefill_ms", 1e3 * prefill},
          {"prefill_tokens_per_second", batch * static_cast<double>(options_.prompt) / prefill},
          {"step_ms", 1e3 * step},
          {"decoded_tokens_per_second", batch * (tokens - 1) / decoding},
          {"weight_bytes", weight_bytes},
          {"weight_bytes_per_second", weight_bytes / step},
          {"peak_memory_bytes", ops::peak_memory_bytes(device_)}};
}

void print_generation(const Json& json) {
  const auto number = [&](const char* key) { return json[key].get<double>(); };
  const auto text = [&](const char* key) { return json[key].get<std::string>(); };
  const auto count = [&](const char* key) { return json[key].get<long long>(); };
  std::printf("model        %s, %s, %s, %s parameters, %s\n", text("model").c_str(),
              text("mask").c_str(), text("position").c_str(),
              with_commas(count("parameters")).c_str(), text("dtype").c_str());
  std::printf("device       %s%s\n", text("device").c_str(),
              json["cuda_graph"].get<bool>() ? ", a step as one CUDA graph" : "");
  std::printf("texts        %lld at a time, %lld tokens after a prompt of %lld\n", count("batch"),
              count("tokens"), count("prompt"));
  std::printf("check        log-probabilities within %.2g of a forward pass without a cache\n",
              number("difference"));
  std::printf("speed        %.0f tokens/s, prompts included\n", number("tokens_per_second"));
  std::printf("prompts      %.2f ms, %.0f tokens/s\n", number("prefill_ms"),
              number("prefill_tokens_per_second"));
  std::printf("step         %.3f ms by the median: %.0f tokens/s; weights read at %.0f GB/s\n",
              number("step_ms"), number("decoded_tokens_per_second"),
              number("weight_bytes_per_second") / 1e9);
  std::printf("peak memory  %.2f GiB\n", number("peak_memory_bytes") / (1 << 30));
}

}  // namespace

Report run_generate(const GenerateOptions& options) {
  configure_torch(options.config.train);
  return ops::with_memory_hint("lower --batch, --prompt or --tokens", [&] {
    GenerateBench bench(options);
    Report report;
    report.right = bench.right();
    if (!report.right) {
      std::printf("a text differs from a forward pass without a cache: not timed\n");
      return report;
    }
    bench.time();
    report.json = bench.json();
    print_generation(report.json);
    return report;
  });
}

}  // namespace stablemask::bench
