#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>

#include "src/commands/commands.h"
#include "src/commands/device_options.h"
#include "src/commands/json_file.h"
#include "src/commands/validators.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/config/config.h"
#include "stablemask/data/prepare.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask::commands {
namespace {

struct Options {
  std::string checkpoint, data, config, json, unigram;
  std::string convention = "all";
  std::optional<int64_t> window, stride, batch;
  DeviceKind device = DeviceKind::kAuto;
  DtypeKind dtype = DtypeKind::kAuto;
};

/// A fresh folder for files that nobody needs afterwards.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "stablemask-eval-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) {
      throw DataError(pattern + ": cannot be made: " + std::strerror(errno) +
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

/// The checkpoint's settings, over them --config's, over them the flags.
EvalOptions settings(const Options& options, const LoadedModel& loaded) {
  EvalConfig config =
      options.config.empty() ? loaded.config.eval : load_config(options.config).eval;
  // A window of its own has no use for the stride of another.
  if (options.window) config.stride = 0;
  EvalOptions settings;
  settings.window = options.window.value_or(config.window);
  settings.stride = options.stride.value_or(config.stride);
  if (settings.stride == 0) settings.stride = settings.window;
  settings.batch = options.batch.value_or(config.batch);
  settings.eos_id = loaded.tokenizer.eos_id();
  settings.document_mask = loaded.config.data.document_mask;
  return settings;
}

/// Opens a shard, or encodes a text into one that `folder` holds.
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
  return json.dump(2) + "\n";
}

void end_when_stopped() {
  const int signal = stop_signal();
  if (signal == 0) return;
  log_info(format("stopped by signal %d; nothing was evaluated to its end", signal));
  throw ExitWith{128 + signal};
}

/// Word-level figures of a model of subwords mean something only for tokens that are the text.
uint64_t audited_space_words(const Shard& shard, const Tokenizer& tokenizer) {
  const TextAudit audit = audit_text(shard, tokenizer);
  end_when_stopped();
  if (!audit.round_trips) {
    throw DataError(shard.path() +
                    ": its tokens do not decode to the text it was made of; prepare it again");
  }
  return audit.space_words;
}

void run(const Options& options) {
  require_writable(options.json);
  LoadedModel loaded = load_model(options.checkpoint, options.device, options.dtype);
  const TemporaryFolder temporary;
  const Shard shard = open_data(options.data, loaded.tokenizer, temporary.path());
  const std::string text_name = recognise_text(shard.info());
  const EvalOptions evaluation = settings(options, loaded);
  std::optional<Perplexity> unigram;
  if (!options.unigram.empty()) unigram = unigram_baseline(Shard::open(options.unigram), shard);
  const uint64_t space_words = audited_space_words(shard, loaded.tokenizer);

  Perplexity result = evaluate(loaded.model, shard, evaluation);
  end_when_stopped();
  result.space_words = space_words;
  if (unigram) unigram->space_words = space_words;
  print_report(options, loaded, text_name, evaluation, result, unigram);
  if (!options.json.empty()) {
    write_file_atomically(options.json,
                          json_report(options, loaded, text_name, evaluation, result, unigram));
  }
}

}  // namespace

void add_eval(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand(
      "eval", "Perplexity of a checkpoint on a text, with every denominator");
  command.add_option("--checkpoint", options->checkpoint, "Checkpoint folder, or a run folder")
      ->required();
  command
      .add_option("--data", options->data,
                  "Token shard, or text or JSONL to encode with the checkpoint's tokenizer; - is "
                  "standard input")
      ->required();
  command.add_option("--config", options->config, "Take the eval section of this config file");
  command.add_option("--window", options->window, "Tokens a forward pass sees")
      ->check(number_from(1));
  command
      .add_option("--stride", options->stride,
                  "Tokens scored in each window, its last; 0: all, windows do not overlap")
      ->check(number_from(0));
  command.add_option("--batch", options->batch, "Windows per forward pass; 0: chosen")
      ->check(number_from(0));
  command.add_option("--convention", options->convention, "Which perplexity to print")
      ->capture_default_str()
      ->check(CLI::IsMember({"all", "token", "word", "lm-eval", "megatron", "bpb"}));
  command.add_option("--unigram", options->unigram,
                     "Training shard: adds the perplexity of its word counts, what to beat");
  command.add_option("--json", options->json, "Also write every figure to this file");
  add_device_options(command, options->device, options->dtype);
  command.footer(
      "Examples:\n"
      "  stablemask eval --checkpoint runs/quickstart/pretrained --data wiki.test.tokens\n"
      "  stablemask eval --checkpoint runs/quickstart/finetuned --data "
      "runs/quickstart/second/test.shard --window 256 --stride 64 --convention word");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
