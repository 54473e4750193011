#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/eval_report.h"
#include "src/commands/json_file.h"
#include "src/commands/model_options.h"
#include "src/commands/model_report.h"
#include "src/commands/score_lines.h"
#include "src/commands/window_options.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/infer/load.h"
#include "stablemask/infer/score.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::string data, out = "-", json, field = "text";
  WindowOptions windows;
};

Json number_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

/// exp(nll / count) as a number; NaN where the count is 0.
double perplexity(double nll, uint64_t count) {
  return count > 0 ? std::exp(nll / static_cast<double>(count)) : std::nan("");
}

/// Sums over the lines.
struct Totals {
  double nll = 0;
  uint64_t tokens = 0, words = 0, lines = 0, pieces = 0, bytes = 0;
  uint64_t texts = 0, pairs = 0, greedy = 0, truncated = 0;
  bool has_ids = false;  ///< of texts that are not known: words, lines and bytes are not either
  bool lossless = true;  ///< the tokenizer

  bool counts_text() const { return lossless && !has_ids; }  ///< else figures are per token only

  double token() const { return perplexity(nll, tokens); }
  double word() const { return perplexity(nll, counts_text() ? words + lines : 0); }
  double lm_eval() const { return perplexity(nll, counts_text() ? pieces : 0); }
  double bits_per_byte() const {
    return counts_text() ? nll / (static_cast<double>(bytes) * std::log(2.0)) : std::nan("");
  }

  Json json() const {
    const auto count = [&](uint64_t value) { return has_ids ? Json(nullptr) : Json(value); };
    return {{"nll", nll},
            {"tokens", tokens},
            {"words", count(words)},
            {"lines", count(lines)},
            {"bytes", count(bytes)},
            {"word_count", count(words + lines)},
            {"lm_eval_count", count(pieces)},
            {"token_perplexity", number_or_null(token())},
            {"word_perplexity", number_or_null(word())},
            {"lm_eval_perplexity", number_or_null(lm_eval())},
            {"bits_per_byte", number_or_null(bits_per_byte())},
            {"texts", texts},
            {"pairs", pairs},
            {"greedy", greedy},
            {"truncated", truncated}};
  }

  std::string report() const {
    const auto row = [](const char* name, double value, const std::string& formula) {
      return format("%-10s %12s   %s\n", name, figure_text(value).c_str(), formula.c_str());
    };
    const std::string pairs_text = pairs == 0 ? ""
                                              : " and " + with_commas(pairs) + " continuations, " +
                                                    with_commas(greedy) + " of them greedy";
    return "scored     " + with_commas(texts) + " texts" + pairs_text + "\n" +
           format("NLL        %.4f nats over ", nll) + with_commas(tokens) + " tokens\n" +
           row("token", token(), "exp(NLL / " + with_commas(tokens) + " tokens)") +
           (counts_text() ? text_rows(row) : "");
  }

 private:
  template <class Row>
  std::string text_rows(const Row& row) const {
    return row("word", word(), "exp(NLL / " + with_commas(words + lines) + " words + line ends)") +
           row("lm-eval", lm_eval(), "exp(NLL / " + with_commas(pieces) + " pieces of words)") +
           row("bpb", bits_per_byte(),
               "NLL / (" + with_commas(bytes) + " bytes * ln 2)  bits per byte");
  }
};

/// Lines that are scored in one call.
struct Chunk {
  std::vector<ScoreLine> lines;
  std::vector<infer::ScoreText> texts;
};

/// Of a line of ids.
infer::ScoreText ids_of(const Tokenizer& tokenizer, const ScoreLines& lines,
                        const ScoreLine& line) {
  const int32_t largest = std::ranges::max(line.ids);
  if (largest >= tokenizer.vocab_size()) {
    lines.fail(line.number, format("token id %d is not in the vocabulary of %d", largest,
                                   tokenizer.vocab_size()));
  }
  return {line.ids, line.context_ids.value_or(0), line.is_pair()};
}

infer::ScoreText encoded_text(const Tokenizer& tokenizer, const ScoreLines& lines,
                              const ScoreLine& line) {
  infer::ScoreText text;
  if (line.context) {
    text = infer::encode_pair(tokenizer, *line.context, line.text);
  } else {
    text.ids = tokenizer.encode(line.text);
  }
  if (tokenizer.lossless() && tokenizer.decode(text.ids) != line.context.value_or("") + line.text) {
    lines.fail(line.number, "its tokens do not decode to its text");
  }
  return text;
}

/// One call of the command.
class Scoring {
 public:
  explicit Scoring(const Options& options)
      : options_(options), load_(load_options(options.model, "eval", complete_window)) {
    require_outputs();
    out_ = std::make_unique<OutputFile>(options.out, OutputContent::kText, ExitCode::kConfig);
    json_ = open_json(options.json);
    if (json_ && json_->is_standard_output() && out_->is_standard_output()) {
      throw ConfigError("--json - and --out -: both are standard output; name a file for one");
    }
  }

  void run() {
    ScoreLines lines(options_.data, options_.field);
    LoadedModel loaded = load_shown(options_.model, load_);
    const EvalOptions windows = window_settings(options_.windows, loaded);
    infer::ScoreOptions scoring;
    scoring.window = windows.window;
    scoring.stride = windows.stride;
    scoring.batch = windows.batch;
    scoring.eos_id = windows.eos_id;
    scoring.vocab_size = loaded.tokenizer.vocab_size();
    scoring.document_mask = windows.document_mask;
    infer::score(loaded.model, {}, scoring);  // options out of range show before the first line
    warn_rows_without_mass(loaded.config.model, load_.overrides, scoring.window);
    if (!score_all(loaded, lines, scoring)) return;
    finish(loaded, scoring);
  }

 private:
  void require_outputs() const {
    const std::vector<std::string> inputs = {options_.data, options_.model.config};
    for (const std::string& output : {options_.out, options_.json}) {
      if (output.empty() || output == "-") continue;
      require_other_file(output, inputs);
      require_other_file(output, files_in(resolve_checkpoint(options_.model.checkpoint)));
    }
    if (options_.json != "-" && options_.json == options_.out) {
      throw ConfigError("--json and --out: name different files");
    }
  }

  /// False when the reader of standard output is gone.
  bool score_all(LoadedModel& loaded, ScoreLines& lines, const infer::ScoreOptions& scoring) {
    std::error_code error;
    const bool file =
        options_.data != "-" && std::filesystem::is_regular_file(options_.data, error);
    const uintmax_t size = file ? std::filesystem::file_size(options_.data, error) : 0;
    WorkProgress progress("scoring", "B");
    for (Chunk chunk; read(loaded, lines, scoring.window, chunk);) {
      const std::vector<infer::Score> scores = infer::score(loaded.model, chunk.texts, scoring);
      std::string results;
      for (size_t i = 0; i < scores.size(); ++i) {
        if (!std::isfinite(scores[i].nll)) {
          throw NonFiniteError(format(
              "%s: the negative log-likelihood of line %llu is not finite; the activations "
              "overflow, use another --dtype or an earlier checkpoint",
              loaded.folder.c_str(), static_cast<unsigned long long>(chunk.lines[i].number)));
        }
        results += json_text(result(chunk.lines[i], scores[i])) + "\n";
      }
      out_->write(results);
      if (out_->is_standard_output() && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)) {
        return false;
      }
      progress.show(lines.bytes(), error ? 0 : static_cast<int64_t>(size));
    }
    lines.require_some();
    return true;
  }

  /// The next lines: on the CPU one, whose result is then known at once; on a GPU many, of which
  /// those of similar length run together. False when there are no more.
  bool read(const LoadedModel& loaded, ScoreLines& lines, int64_t window, Chunk& chunk) {
    const bool on_cpu = loaded.model->head_weight().is_cpu();
    const size_t most_lines = on_cpu ? 1 : size_t{1} << 16, most_ids = size_t{1} << 20;
    chunk = {};
    ScoreLine line;
    for (size_t ids = 0; chunk.lines.size() < most_lines && ids < most_ids && lines.next(line);) {
      chunk.texts.push_back(encoded(loaded.tokenizer, lines, line, window));
      ids += chunk.texts.back().ids.size();
      chunk.lines.push_back(std::move(line));
    }
    return !chunk.lines.empty();
  }

  infer::ScoreText encoded(const Tokenizer& tokenizer, const ScoreLines& lines,
                           const ScoreLine& line, int64_t window) {
    totals_.lossless = tokenizer.lossless();
    totals_.has_ids = totals_.has_ids || line.has_ids();
    infer::ScoreText text =
        line.has_ids() ? ids_of(tokenizer, lines, line) : encoded_text(tokenizer, lines, line);
    if (!line.is_pair()) return text;
    const auto size = static_cast<int64_t>(text.ids.size());
    if (size - text.context > window) {
      lines.fail(
          line.number,
          format("the continuation has %lld tokens, more than the window of %lld; raise "
                 "--window, or give it as a text",
                 static_cast<long long>(size - text.context), static_cast<long long>(window)));
    }
    if (size > window) ++totals_.truncated;
    return text;
  }

  Json result(const ScoreLine& line, const infer::Score& score) {
    const WordCounts counts = word_counts(line.text);
    const auto tokens = static_cast<uint64_t>(score.tokens);
    const auto of_text = [&](uint64_t count) {
      return line.has_ids() ? Json(nullptr) : Json(count);
    };
    Json json = {{"line", line.number},
                 {"nll", score.nll},
                 {"tokens", tokens},
                 {"words", of_text(counts.words)},
                 {"bytes", of_text(line.text.size())},
                 {"perplexity", number_or_null(perplexity(score.nll, tokens))}};
    if (line.is_pair()) json["greedy"] = score.greedy;
    totals_.nll += score.nll;
    totals_.tokens += tokens;
    totals_.words += counts.words;
    totals_.lines += counts.lines;
    totals_.pieces += counts.pieces;
    totals_.bytes += line.text.size();
    ++(line.is_pair() ? totals_.pairs : totals_.texts);
    totals_.greedy += line.is_pair() && score.greedy;
    return json;
  }

  void finish(const LoadedModel& loaded, const infer::ScoreOptions& scoring) {
    out_->commit();
    if (totals_.truncated > 0) {
      log_warning(with_commas(totals_.truncated) + " of " + with_commas(totals_.pairs) +
                  " pairs are longer than the window: the beginning of their context was left out; "
                  "--window sets it");
    }
    const EvalSubject subject{loaded.folder,
                              loaded.step,
                              loaded.config,
                              loaded.tokenizer.sha256(),
                              options_.data,
                              "",
                              ""};
    const int64_t stride = scoring.stride ? scoring.stride : scoring.window;
    const Evaluation windows{scoring.window, stride, {}};
    if (json_) {
      Json json = totals_.json();
      json["window"] = scoring.window;
      json["stride"] = stride;
      json["checkpoint"] = loaded.folder;
      json["step"] = loaded.step;
      json["data"] = options_.data;
      json["tokenizer_sha256"] = loaded.tokenizer.sha256();
      add_model_fields(loaded.config, json);
      write_json(*json_, json_text(json, 2) + "\n");
    }
    if (json_ && json_->is_standard_output()) return;
    const std::string report = report_head(subject, windows_text(windows)) + totals_.report();
    std::fputs(report.c_str(), out_->is_standard_output() ? stderr : stdout);
  }

  const Options& options_;
  const LoadOptions load_;
  std::unique_ptr<OutputFile> out_, json_;
  Totals totals_;
};

}  // namespace

void add_score(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand(
      "score", "Likelihood of each line of a JSONL file: texts, or continuations of contexts");
  add_model_options(command, options->model, "eval");
  command
      .add_option("--data", options->data,
                  "JSONL: {\"text\": …} or {\"context\": …, \"continuation\": …} a line, or "
                  "token ids: {\"ids\": […]} or {\"context_ids\": […], \"continuation_ids\": "
                  "[…]}; -: standard input")
      ->required();
  command.add_option("--field", options->field, "The field with the text")->capture_default_str();
  command
      .add_option("--out", options->out,
                  "A result a line, in the order of the lines; -: standard output, and the sums on "
                  "standard error")
      ->capture_default_str();
  command.add_option("--json", options->json,
                     "Also write the sums to this file; -: JSON instead of the report on standard "
                     "output");
  add_window_options(command, options->windows);
  command.footer(
      "Example:\n"
      "  echo '{\"context\": \" = Harn =\", \"continuation\": \" \\n\"}' >pairs.jsonl\n"
      "  stablemask score --checkpoint runs/quickstart/pretrained --data pairs.jsonl\n"
      "The windows of longer texts, and the functions of lm-eval that this serves: "
      "docs/evaluation.md.");
  command.callback([options] { Scoring(*options).run(); });
}

}  // namespace stablemask::commands
