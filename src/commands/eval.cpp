#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/eval_report.h"
#include "src/commands/json_file.h"
#include "src/commands/model_options.h"
#include "src/commands/model_report.h"
#include "src/commands/processes.h"
#include "src/commands/text_data.h"
#include "src/commands/window_options.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/dist/agreement.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/load.h"
#include "stablemask/infer/shared_algorithms.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/ops/device.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

struct Options {
  ModelOptions model;
  std::string data, json, unigram, lengths;
  PrepareOptions prepare;  // of --data
  std::string convention = "all";
  WindowOptions windows;
};

/// Figures that divide by the text's words or bytes need tokens that hold all of it.
void require_known_text(const Shard& shard, const Tokenizer& tokenizer,
                        const std::string& convention) {
  if (convention == "all" || convention == "token") return;
  if (tokenizer.lossless() && shard.info().bytes > 0) return;
  throw ConfigError("--convention " + convention + ": is not defined, because " +
                    (tokenizer.lossless()
                         ? "the text of --data is not known"
                         : "the tokenizer may not keep all of a text: " + tokenizer.loss()) +
                    "; use --convention token");
}

/// Word-level figures of a model of subwords are defined only when its tokens are the text.
uint64_t audited_space_words(const Shard& shard, const Tokenizer& tokenizer) {
  if (!tokenizer.lossless() || shard.info().bytes == 0) return 0;
  const TextAudit audit = audit_text(shard, tokenizer);
  if (!audit.round_trips) {
    throw DataError(shard.path() +
                    ": its tokens do not decode to the text it was made of; prepare it again");
  }
  return audit.space_words;
}

/// Of the completions of samples only the perplexity per token is defined, in whole windows.
void require_for_samples(const Options& options) {
  const auto refuse = [&](const std::string& what) {
    throw ConfigError(options.data + ": " + what +
                      " is defined for text, not for samples; leave it out");
  };
  if (options.convention != "all" && options.convention != "token") {
    refuse("--convention " + options.convention);
  }
  if (!options.unigram.empty()) refuse("--unigram");
  if (options.windows.stride) refuse("--stride");
}

/// `what` is shown with the progress. The result is incomplete if a stop signal came.
Evaluation evaluate_all(LoadedModel& loaded, const Shard& shard, EvalOptions options,
                        uint64_t space_words, const std::string& what) {
  if (options.stride == 0) options.stride = options.window;
  WorkProgress progress(what, "tok");
  EvalOptions with_progress = options;
  with_progress.progress = [&](int64_t scored, int64_t total) { progress.show(scored, total); };
  Perplexity result = evaluate(loaded.model, shard, with_progress);
  if (result.complete && !std::isfinite(result.nll)) {
    throw NonFiniteError(loaded.folder +
                         ": the negative log-likelihood of the text is not finite; the activations "
                         "overflow, use another --dtype or an earlier checkpoint");
  }
  result.space_words = space_words;
  return {options.window, options.stride, result};
}

/// Reads "512,1024". Returns "" or what is wrong with it.
std::string read_lengths(const std::string& text, std::vector<int64_t>& lengths) {
  lengths.clear();
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    int64_t length = 0;
    const auto [stop, error] = std::from_chars(&text[begin], &text[end], length);
    if (error != std::errc() || stop != &text[end] || length < 1 || length > kLongestWindow) {
      return format(
                 "must be window lengths from 1 to %lld with commas between them, such as "
                 "512,1024, not ",
                 static_cast<long long>(kLongestWindow)) +
             in_quotes(text);
    }
    if (std::ranges::find(lengths, length) != lengths.end()) {
      return format("names %lld twice", static_cast<long long>(length));
    }
    lengths.push_back(length);
    begin = end + 1;
  }
  return "";
}

/// The table's windows do not overlap and have the lengths of the list, so nothing else may state
/// window or stride. `overrides`: the fields of --config and --set.
void require_no_windows(const Options& options, const std::vector<std::string>& overrides) {
  const auto refuse = [&](const std::string& what) {
    throw ConfigError("--lengths " + options.lengths + " cannot be combined with " + what +
                      ": it names the windows, which do not overlap; leave one of them out");
  };
  if (options.windows.window) refuse("--window");
  if (options.windows.stride) refuse("--stride");
  for (const std::string field : {"eval.window", "eval.stride"}) {
    if (states(overrides, field)) refuse(field);
  }
}

/// One evaluation for each of `lengths`, up to one that is stopped; the table's lines are printed
/// as they are known.
std::vector<Evaluation> evaluate_lengths(LoadedModel& loaded, const Shard& shard,
                                         EvalOptions options, uint64_t space_words,
                                         const std::vector<int64_t>& lengths,
                                         const LengthTable* table) {
  std::vector<Evaluation> evaluations;
  for (size_t i = 0; i < lengths.size(); ++i) {
    options.window = options.stride = lengths[i];
    const std::string what = format("length %lld (%zu of %zu)", static_cast<long long>(lengths[i]),
                                    i + 1, lengths.size());
    evaluations.push_back(evaluate_all(loaded, shard, options, space_words, what));
    if (!evaluations.back().result.complete) break;
    if (table == nullptr) continue;
    std::fputs(table->row(evaluations.back()).c_str(), stdout);
    std::fflush(stdout);
  }
  return evaluations;
}

void print(const std::string& text) { std::fputs(text.c_str(), stdout); }

/// Throws ConfigError when the processes would not evaluate the same.
void require_same_work(dist::Group& group, const LoadedModel& loaded, const Shard& shard,
                       const EvalOptions& evaluation, const std::string& lengths) {
  if (group.size() == 1) return;  // the run of the checkpoint may have removed it by now
  const at::Tensor& weight = loaded.model->head_weight();
  const auto number = [](int64_t value) { return std::to_string(value); };
  std::vector<dist::Fact> facts = {
      dist::program_fact(),
      {"device", ops::device_name(weight.device())},
      {"compute type", c10::toString(weight.scalar_type())},
      {"SHA-256 of the checkpoint's manifest", sha256_file(loaded.folder + "/manifest.json")},
      {"SHA-256 of the tokens of --data", shard.info().payload_sha256},
      {"window", number(evaluation.window)},
      {"stride", number(evaluation.stride)},
      {"batch", number(evaluation.batch)},
      {"--lengths", lengths}};
  const nlohmann::json fields = nlohmann::json::parse(dump_config(loaded.config)).flatten();
  for (const auto& [pointer, value] : fields.items()) facts.emplace_back(pointer, json_text(value));
  dist::require_equal(group, facts);
}

/// One call of the command, in one of the processes of `group`.
class Evaluator {
 public:
  Evaluator(const Options& options, std::shared_ptr<dist::Group> group, int64_t local_rank)
      : options_(options), group_(std::move(group)), first_(group_->rank() == 0) {
    if (!options.lengths.empty()) read_lengths(options.lengths, lengths_);
    load_ = load_options(options.model, "eval", complete_window);
    load_.local_rank = local_rank;
    if (!lengths_.empty()) require_no_windows(options, load_.overrides);
  }

  /// Returns the stop signal that ended it early; 0: none.
  int run() {
    if (first_) json_ = open_json(options_.json);
    // All processes take the same checkpoint, also when a run goes on saving. One alone is told
    // only the path, because that run may remove the checkpoint before it is open.
    ModelOptions model = options_.model;
    if (group_->size() > 1) {
      model.checkpoint =
          dist::text_of_first(*group_, first_ ? resolve_checkpoint(model.checkpoint) : "");
    }
    if (first_ && !options_.json.empty()) {
      require_other_file(options_.json, files_in(resolve_checkpoint(model.checkpoint)));
    }
    LoadedModel loaded = load_shown(model, load_);
    const TemporaryFolder temporary;
    const Shard shard = open_data(options_.data, loaded.tokenizer, temporary.path(),
                                  options_.prepare, options_.model.threads);
    if (shard.info().has_samples()) require_for_samples(options_);
    require_known_text(shard, loaded.tokenizer, options_.convention);
    EvalOptions evaluation = window_settings(options_.windows, loaded);
    evaluation.group = group_;
    require_same_work(*group_, loaded, shard, evaluation, options_.lengths);
    return evaluate_and_report(loaded, shard, evaluation);
  }

 private:
  int evaluate_and_report(LoadedModel& loaded, const Shard& shard, const EvalOptions& evaluation) {
    const bool text_known = evaluation.lossless && shard.info().bytes > 0;
    const EvalSubject subject{loaded.folder,       loaded.step,
                              loaded.config,       loaded.tokenizer.sha256(),
                              options_.data,       recognise_text(shard.info()),
                              options_.convention, text_known};
    std::optional<Perplexity> unigram;
    uint64_t space_words = 0;
    if (first_) {
      if (!options_.unigram.empty()) {
        unigram = unigram_baseline(Shard::open(options_.unigram), shard);
      }
      if (!shard.info().has_samples()) space_words = audited_space_words(shard, loaded.tokenizer);
      if (unigram) {
        unigram->space_words = space_words;
        unigram->text_known = text_known;
      }
      const int64_t longest = lengths_.empty() ? evaluation.window : std::ranges::max(lengths_);
      warn_rows_without_mass(loaded.config.model, load_.overrides, std::min(longest, shard.size()));
    }
    const bool report = first_ && !(json_ && json_->is_standard_output());
    std::vector<Evaluation> evaluations;
    if (lengths_.empty()) {
      evaluations = {evaluate_all(loaded, shard, evaluation, space_words, "evaluating")};
    } else {
      const LengthTable table(subject);
      if (report) print(report_head(subject, "of each length, not overlapping") + table.titles());
      evaluations = evaluate_lengths(loaded, shard, evaluation, space_words, lengths_,
                                     report ? &table : nullptr);
    }
    if (!evaluations.back().result.complete) {
      return static_cast<int>(group_->agree(stop_signal()));
    }
    if (report) print_end(subject, evaluations);
    if (report && unigram) print(unigram_report(subject, options_.unigram, *unigram));
    if (json_) write_json(*json_, eval_json(subject, evaluations, !lengths_.empty(), unigram));
    return 0;
  }

  void print_end(const EvalSubject& subject, const std::vector<Evaluation>& evaluations) const {
    if (!lengths_.empty()) {
      print(LengthTable(subject).footnote(lengths_, evaluations[0].result));
      return;
    }
    print(report_head(subject, windows_text(evaluations[0])) +
          perplexity_report(evaluations[0].result, options_.convention));
  }

  const Options& options_;
  const std::shared_ptr<dist::Group> group_;
  const bool first_;  ///< the process that prints and writes
  std::vector<int64_t> lengths_;
  LoadOptions load_;
  std::unique_ptr<OutputFile> json_;  ///< of the first process; null without --json
};

void run(const Options& options) {
  const Processes processes;
  int signal = 0;
  processes.together(
      [&]() -> Processes::Meeting {
        require_other_file(options.json, {options.data, options.unigram, options.model.config});
        if (processes.size() > 1 && options.data == "-") {
          throw ConfigError(
              format("--data -: %lld processes cannot share standard input; name a file",
                     static_cast<long long>(processes.size())));
        }
        return {.device = options.model.device};
      },
      [&](const std::shared_ptr<dist::Group>& group) {
        const SharedAlgorithms algorithms(group);
        signal = Evaluator(options, group, processes.local_rank()).run();
      });
  if (signal != 0) throw Stopped(signal, "evaluating; no result");
}

void add_lengths_option(CLI::App& command, Options& options) {
  command
      .add_option("--lengths", options.lengths,
                  "Table of extrapolation: the perplexity with windows of each of these lengths "
                  "that do not overlap, such as 512,1024,2048")
      ->check(CLI::Validator(
          [](std::string& text) {
            std::vector<int64_t> lengths;
            return read_lengths(text, lengths);
          },
          ""));
}

}  // namespace

void add_eval(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand(
      "eval", "Perplexity of a checkpoint on a text, with every denominator");
  add_model_options(command, options->model, "eval");
  add_data_option(command, options->data, options->prepare);
  add_window_options(command, options->windows);
  add_lengths_option(command, *options);
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
      "  stablemask eval --checkpoint runs/quickstart/pretrained --data wiki.test.tokens --lengths "
      "128,256,1024 --mask-length infinite\n"
      "--set changes fields that need no other weights, for example "
      "model.stable_mask.mask_length=2048; a refusal lists them.");
  command.callback([options] { run(*options); });
}

}  // namespace stablemask::commands
