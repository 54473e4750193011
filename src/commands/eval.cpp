#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/json_file.h"
#include "src/commands/model_options.h"
#include "src/commands/token_progress.h"
#include "src/commands/validators.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/data/prepare.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"

namespace stablemask::commands {
namespace {

struct Options {
  ModelOptions model;
  std::string data, json, unigram;
  std::string convention = "all";
  std::optional<int64_t> window, stride, batch;
};

/// A new folder for temporary files, removed by the destructor.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "stablemask-eval-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) {
      throw DataError(pattern + ": cannot be created: " + std::strerror(errno) +
                      "; set TMPDIR to a folder with space");
    }
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A window without a stride means windows that do not overlap, whatever the stride was before.
void complete_window(std::vector<std::string>& fields) {
  const auto sets = [&](const char* field) {
    return std::any_of(fields.begin(), fields.end(),
                       [&](const std::string& text) { return text.starts_with(field); });
  };
  if (sets("eval.window=") && !sets("eval.stride=")) fields.push_back("eval.stride=0");
}

/// The options of the loaded config, with the flags in place of its values.
EvalOptions settings(const Options& options, const LoadedModel& loaded) {
  Config config = loaded.config;
  if (options.window) {
    config.eval.window = *options.window;
    config.eval.stride = 0;
  }
  if (options.stride) config.eval.stride = *options.stride;
  if (options.batch) config.eval.batch = *options.batch;
  return eval_options(config, loaded.tokenizer.eos_id());
}

/// Opens a shard, or encodes a text into a shard in `folder`.
Shard open_data(const std::string& path, const Tokenizer& tokenizer, const std::string& folder) {
  if (path != "-" && Shard::is_shard(path)) {
    Shard shard = Shard::open(path);
    shard.require_tokenizer(tokenizer.sha256());
    shard.verify();
    return shard;
  }
  PrepareOptions prepare;
  prepare.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  prepare_shard(path, folder + "/text.shard", tokenizer, prepare);
  return Shard::open(folder + "/text.shard");
}

std::string mask_length_text(const ModelConfig& model) {
  if (!model.stable_mask.enabled) return "no mask";
  const MaskLengthSpec& spec = model.stable_mask.mask_length;
  if (spec.kind == MaskLengthSpec::Kind::kInfinite) return "mask length infinite";
  if (spec.kind == MaskLengthSpec::Kind::kSequence) return "mask length of each window";
  return format("mask length %lld", static_cast<long long>(spec.length));
}

void print_report(const Options& options, const LoadedModel& loaded, const std::string& text_name,
                  const EvalOptions& settings, const Perplexity& result,
                  const std::optional<Perplexity>& unigram) {
  std::printf("checkpoint %s (step %lld)\n", loaded.folder.c_str(),
              static_cast<long long>(loaded.step));
  std::printf("text       %s%s\n", options.data.c_str(),
              text_name.empty() ? "" : (", the genuine " + text_name).c_str());
  std::printf("windows    %lld tokens, %s; %s\n", static_cast<long long>(settings.window),
              settings.stride == settings.window
                  ? "not overlapping"
                  : format("the last %lld scored", static_cast<long long>(settings.stride)).c_str(),
              mask_length_text(loaded.config.model).c_str());
  std::fputs(perplexity_report(result, options.convention).c_str(), stdout);
  if (unigram) {
    std::printf("\nunigram with add-one smoothing, counted on %s\n%s", options.unigram.c_str(),
                perplexity_report(*unigram, options.convention).c_str());
  }
}

std::string json_report(const Options& options, const LoadedModel& loaded,
                        const std::string& text_name, const EvalOptions& settings,
                        const Perplexity& result, const std::optional<Perplexity>& unigram) {
  using Json = nlohmann::ordered_json;
  Json json = Json::parse(perplexity_json(result));
  json["checkpoint"] = loaded.folder;
  json["step"] = loaded.step;
  json["data"] = options.data;
  json["text"] = text_name.empty() ? Json(nullptr) : Json(text_name);
  json["tokenizer_sha256"] = loaded.tokenizer.sha256();
  json["window"] = settings.window;
  json["stride"] = settings.stride;
  json["mask"] = mask_length_text(loaded.config.model);
  if (unigram) json["unigram"] = Json::parse(perplexity_json(*unigram));
  // A path may hold bytes that are not UTF-8: they become U+FFFD.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// Word-level figures of a model of subwords are defined only when its tokens are the text.
uint64_t audited_space_words(const Shard& shard, const Tokenizer& tokenizer) {
  const TextAudit audit = audit_text(shard, tokenizer);
  if (!audit.round_trips) {
    throw DataError(shard.path() +
                    ": its tokens do not decode to the text it was made of; prepare it again");
  }
  return audit.space_words;
}

Perplexity evaluate_all(LoadedModel& loaded, const Shard& shard, EvalOptions options) {
  TokenProgress progress;
  options.progress = [&](int64_t scored, int64_t total) { progress.show(scored, total); };
  const Perplexity result = evaluate(loaded.model, shard, options);
  if (!result.complete) throw Stopped(stop_signal(), "evaluating; no result");
  if (!std::isfinite(result.nll)) {
    throw NonFiniteError(loaded.folder +
                         ": the negative log-likelihood of the text is not finite; the activations "
                         "overflow, use another --dtype or an earlier checkpoint");
  }
  return result;
}

void run(const Options& options) {
  require_writable(options.json);
  LoadedModel loaded =
      load_model(options.model.checkpoint, load_options(options.model, "eval", complete_window));
  const TemporaryFolder temporary;
  const Shard shard = open_data(options.data, loaded.tokenizer, temporary.path());
  const std::string text_name = recognise_text(shard.info());
  const EvalOptions evaluation = settings(options, loaded);
  std::optional<Perplexity> unigram;
  if (!options.unigram.empty()) unigram = unigram_baseline(Shard::open(options.unigram), shard);
  const uint64_t space_words = audited_space_words(shard, loaded.tokenizer);

  Perplexity result = evaluate_all(loaded, shard, evaluation);
  result.space_words = space_words;
  if (unigram) unigram->space_words = space_words;
  if (options.json != kStandardOutput) {
    print_report(options, loaded, text_name, evaluation, result, unigram);
  }
  if (!options.json.empty()) {
    write_json(options.json, json_report(options, loaded, text_name, evaluation, result, unigram));
  }
}

}  // namespace

void add_eval(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand(
      "eval", "Perplexity of a checkpoint on a text, with every denominator");
  add_model_options(command, options->model, "eval");
  command
      .add_option(
          "--data", options->data,
          "Token shard, or text or JSONL to encode with the checkpoint's tokenizer; -: text "
          "from standard input")
      ->required();
  command
      .add_option(
          "--window", options->window,
          "Tokens of a forward pass; 0: the training context. Longer measures extrapolation")
      ->check(number_from(0, 1 << 24));
  command
      .add_option("--stride", options->stride,
                  "Tokens scored per window, its last ones; 0: all, windows do not overlap")
      ->check(number_from(0));
  command
      .add_option("--batch", options->batch, "Windows per forward pass; 0: chosen automatically")
      ->check(number_from(0));
  command.add_option("--convention", options->convention, "Which perplexity to print")
      ->capture_default_str()
      ->check(CLI::IsMember({"all", "token", "word", "lm-eval", "megatron", "bpb"}));
  command.add_option(
      "--unigram", options->unigram,
      "Training shard: also report the perplexity of its token frequencies, a baseline");
  command.add_option(
      "--json", options->json,
      "Also write every figure to this file; -: JSON instead of the report on standard output");
  command.footer(
      "Examples:\n"
      "  stablemask eval --checkpoint runs/quickstart/pretrained --data wiki.test.tokens\n"
      "  stablemask eval --checkpoint runs/quickstart/finetuned --data "
      "runs/quickstart/second/test.shard --window 256 --stride 64 --convention word\n"
      "--set changes fields that need no other weights, for example "
      "model.stable_mask.mask_length=2048; a refusal lists them.");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
