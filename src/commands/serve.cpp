#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "src/commands/commands.h"
#include "src/commands/model_options.h"
#include "src/commands/model_report.h"
#include "src/serve/server.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/infer/generator.h"
#include "stablemask/infer/load.h"
#include "stablemask/infer/prompt.h"
#include "stablemask/ops/memory.h"

namespace stablemask::commands {
namespace {

struct Options {
  ModelOptions model;
  serve::ServerOptions server;
  std::string model_name, api_key_variable;
  int64_t batch = 16, queue = 64, max_texts = 64;
  std::optional<int64_t> context, max_tokens, max_prompt_tokens;
  double request_seconds = 600;
  bool no_heal = false;
};

/// infer::Generator for the scheduler.
class GeneratorEngine : public serve::Engine {
 public:
  GeneratorEngine(const nn::Transformer& model, const infer::GeneratorOptions& options,
                  int32_t stop_id)
      : generator_(model, options), stop_id_(stop_id) {}

  uint64_t add(serve::Text text) override {
    infer::GenerateRequest request;
    request.prompt = std::move(text.prompt);
    request.settings = text.settings;
    request.first_ids = std::move(text.first_ids);
    request.stop_ids = {stop_id_};
    request.logprobs = text.logprobs;
    request.emit = [emit = std::move(text.emit)](const infer::DrawnToken& token) {
      return emit({token.id, token.logprob, token.top});
    };
    request.done = [done = std::move(text.done)](const infer::Outcome& outcome) {
      done(end_of(outcome.finish), outcome.error);
    };
    return generator_.add(std::move(request));
  }
  void cancel(uint64_t number) override { generator_.cancel(number); }
  void step() override { generator_.step(); }

 private:
  static serve::End end_of(infer::Finish finish) {
    switch (finish) {
      case infer::Finish::kLength:
        return serve::End::kLength;
      case infer::Finish::kStop:
        return serve::End::kStop;
      case infer::Finish::kCancelled:
        return serve::End::kCancelled;
      case infer::Finish::kNonFinite:
        break;
    }
    return serve::End::kFailed;
  }

  infer::Generator generator_;
  int32_t stop_id_;
};

/// The last folder of the checkpoint's path: "runs/mine/model" is served as "model".
std::string name_of(const std::string& checkpoint) {
  std::filesystem::path path = std::filesystem::absolute(checkpoint).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename();
}

std::string api_key(const std::string& variable) {
  if (variable.empty()) return "";
  const char* key = std::getenv(variable.c_str());
  if (key == nullptr || *key == '\0') {
    throw ConfigError("--api-key-env " + variable +
                      ": the environment variable is not set, or is empty");
  }
  return key;
}

void warn_open_host(const serve::ServerOptions& options) {
  const std::string& host = options.host;
  if (host == "localhost" || host == "::1" || host.starts_with("127.")) return;
  log_warning("serving on " + host + ": other machines can reach this server, without encryption" +
              (options.api_key.empty() ? " and without a key (see --api-key-env)" : "") +
              "; put a proxy with TLS in front of it where the network is not trusted");
}

serve::RequestLimits limits(const Options& options, const LoadedModel& loaded, int64_t context) {
  serve::RequestLimits limits;
  limits.model =
      options.model_name.empty() ? name_of(options.model.checkpoint) : options.model_name;
  limits.max_tokens = options.max_tokens.value_or(context - 1);
  limits.max_texts = std::min(options.max_texts, options.queue);
  limits.vocab_size = loaded.tokenizer.vocab_size();
  limits.defaults = loaded.config.generate;
  return limits;
}

void run(Options options) {
  options.server.api_key = api_key(options.api_key_variable);
  const auto nothing = [](std::vector<std::string>&) {};
  const LoadOptions load = load_options(options.model, "generate", nothing);
  LoadedModel loaded = load_shown(options.model, load);
  const int64_t context = options.context.value_or(loaded.config.train.context);
  warn_long_text(loaded.config, load.overrides, context);
  if (loaded.model->head_weight().device().is_cpu()) use_few_threads(options.model.threads);

  std::optional<GeneratorEngine> engine;
  ops::with_memory_hint("lower --batch or --context", [&] {
    engine.emplace(loaded.model,
                   infer::GeneratorOptions{.max_batch = options.batch,
                                           .capacity = context,
                                           .vocab_size = loaded.tokenizer.vocab_size()},
                   loaded.tokenizer.end_of_text_id());
    return 0;
  });
  serve::Metrics metrics;
  serve::Scheduler scheduler(*engine, {.batch = options.batch, .queue = options.queue}, metrics);
  const infer::PromptEncoder encoder(loaded.tokenizer, !options.no_heal);
  const auto encode = [&](const std::string& text) {
    infer::Prompt prompt = encoder.encode(text, "the text");
    return serve::PromptIds{std::move(prompt.ids), std::move(prompt.first_ids),
                            std::move(prompt.held)};
  };
  const serve::CompletionContext completions{loaded.tokenizer,
                                             encode,
                                             scheduler,
                                             limits(options, loaded, context),
                                             context,
                                             options.max_prompt_tokens.value_or(context - 1),
                                             options.request_seconds};
  serve::Server server(completions, metrics, options.server);
  server.start();
  warn_open_host(options.server);
  std::printf("serving %s at %s\n", completions.limits.model.c_str(), server.address().c_str());
  std::fflush(stdout);
  ops::with_memory_hint("lower --batch or --context", [&] {
    server.run([] { return stop_signal() != 0; });
    return 0;
  });
  check_stop("serving");
}

void add_limits(CLI::App& command, Options& options) {
  serve::ServerOptions& server = options.server;
  command.add_option("--batch", options.batch, "Texts that are continued at a time")
      ->check(number_from(1, 4096))
      ->capture_default_str();
  command
      .add_option("--queue", options.queue,
                  "Texts that may wait; a request beyond them is answered with 429")
      ->check(number_from(1, 1'000'000))
      ->capture_default_str();
  command
      .add_option("--context", options.context,
                  "Tokens of a prompt and its continuation together (default: train.context of the "
                  "checkpoint); the cache holds --batch times as many")
      ->check(number_from(2));
  command
      .add_option("--max-tokens", options.max_tokens,
                  "Most tokens that a request may ask for (default: --context - 1)")
      ->check(number_from(1));
  command
      .add_option("--max-prompt-tokens", options.max_prompt_tokens,
                  "Longest prompt in tokens (default: --context - 1)")
      ->check(number_from(1));
  command
      .add_option("--max-texts", options.max_texts,
                  "Most texts of a request, prompts times n; at most --queue")
      ->check(number_from(1, 1'000'000))
      ->capture_default_str();
  command.add_option("--max-body-bytes", server.max_body_bytes, "Largest body of a request")
      ->check(number_from(1, int64_t{1} << 30))
      ->capture_default_str();
  command
      .add_option("--max-connections", server.connections,
                  "Connections at a time; further ones are answered with 503")
      ->check(number_from(1, 65536))
      ->capture_default_str();
  command
      .add_option("--request-seconds", options.request_seconds,
                  "Longest time for a request, waiting included; then it is answered with 504")
      ->check(number_from(0.001, 1e6))
      ->capture_default_str();
  command
      .add_option("--write-seconds", server.write_seconds,
                  "A client that takes no byte of its answer for so long is cut off")
      ->check(number_from(0.001, 1e6))
      ->capture_default_str();
  command
      .add_option("--drain-seconds", server.drain_seconds,
                  "Time for open requests to end after SIGTERM or Ctrl-C")
      ->check(number_from(0.0, 1e6))
      ->capture_default_str();
}

}  // namespace

void add_serve(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand(
      "serve", "Continue texts over HTTP: the completions part of the OpenAI interface");
  add_model_options(command, options->model, "generate", "1");
  command.add_option("--host", options->server.host, "Address to listen on")->capture_default_str();
  command.add_option("--port", options->server.port, "Port to listen on; 0: one that is free")
      ->check(number_from(0, 65535))
      ->capture_default_str();
  command.add_option("--model-name", options->model_name,
                     "Name of the model in requests (default: last folder of --checkpoint)");
  command.add_option("--api-key-env", options->api_key_variable,
                     "Environment variable with a key that requests to /v1 must have");
  command.add_flag("--no-heal", options->no_heal,
                   "Continue prompts from their last token, also within a word");
  add_limits(command, *options);
  command.footer(
      "Example:\n  stablemask serve --checkpoint runs/quickstart/finetuned --port 8000\n"
      "  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' "
      "-d '{\"prompt\": \" = Harn\"}'\n"
      "docs/serving.md describes the interface. SIGTERM or Ctrl-C ends the server when the open "
      "requests have ended.");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
