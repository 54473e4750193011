#include "src/commands/eval_report.h"

#include <algorithm>
#include <cmath>

#include "src/commands/model_report.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

long long ll(int64_t value) { return value; }

/// Rows of the longest window.
int64_t rows_of(const Evaluation& evaluation) {
  return std::min(evaluation.window, static_cast<int64_t>(evaluation.result.tokens));
}

bool exceeds_mask(const EvalSubject& subject, const Evaluation& evaluation) {
  return has_rows_beyond(subject.config.model, rows_of(evaluation));
}

Json figures(const EvalSubject& subject, const Evaluation& evaluation) {
  Json json = Json::parse(perplexity_json(evaluation.result));
  json["window"] = evaluation.window;
  json["stride"] = evaluation.stride;
  json["rows_beyond_mask"] = exceeds_mask(subject, evaluation);
  return json;
}

/// The figure beside the token perplexity in the table of lengths.
struct Column {
  std::string title;
  double value;
  std::string formula;
};

std::optional<Column> column(const EvalSubject& subject, const Perplexity& result) {
  const std::string& convention = subject.convention;
  if (convention == "token" || !subject.text_known) return std::nullopt;
  if (convention == "lm-eval") {
    return Column{"lm-eval", result.lm_eval(),
                  "exp(NLL / " + with_commas(result.lm_eval_count()) + " words without EOS)"};
  }
  if (convention == "megatron") {
    return Column{"megatron", result.megatron(), "by Megatron-LM's count of words"};
  }
  if (convention == "bpb") {
    return Column{"bits/byte", result.bits_per_byte(),
                  "NLL / (" + with_commas(result.bytes) + " bytes * ln 2)"};
  }
  return Column{"word", result.word(),
                "exp(NLL / " + with_commas(result.word_count()) + " words + EOS)"};
}

}  // namespace

std::string windows_text(const Evaluation& evaluation) {
  return format("%lld tokens, ", ll(evaluation.window)) +
         (evaluation.stride == evaluation.window
              ? "not overlapping"
              : format("the last %lld scored", ll(evaluation.stride)));
}

std::string report_head(const EvalSubject& subject, const std::string& windows) {
  return format("checkpoint %s (step %lld)\n", subject.checkpoint.c_str(), ll(subject.step)) +
         "text       " + subject.data +
         (subject.text_name.empty() ? "" : ", the genuine " + subject.text_name) + "\n" +
         "windows    " + windows + "\n" + model_lines(subject.config);
}

std::string unigram_report(const EvalSubject& subject, const std::string& train,
                           const Perplexity& unigram) {
  return "\nunigram with add-one smoothing, counted on " + train + "\n" +
         perplexity_report(unigram, subject.convention);
}

bool LengthTable::is_context(int64_t length) const {
  return length == subject_.config.train.context;
}

std::string LengthTable::titles() const {
  const std::optional<Column> more = column(subject_, {});
  return format("%10s   %10s %12s", "length", "NLL/token", "token") +
         (more ? format(" %12s", more->title.c_str()) : "") + "   rows beyond the mask length\n";
}

std::string LengthTable::row(const Evaluation& evaluation) const {
  const Perplexity& result = evaluation.result;
  const std::optional<Column> more = column(subject_, result);
  return format("%10lld %s %10.4f %12s", ll(evaluation.window),
                is_context(evaluation.window) ? "*" : " ",
                result.nll / static_cast<double>(result.tokens),
                figure_text(result.token()).c_str()) +
         (more ? format(" %12s", figure_text(more->value).c_str()) : "") +
         (exceeds_mask(subject_, evaluation) ? "   yes\n" : "   no\n");
}

std::string LengthTable::footnote(const std::vector<int64_t>& lengths,
                                  const Perplexity& any) const {
  const std::optional<Column> more = column(subject_, any);
  const bool marked =
      std::ranges::any_of(lengths, [&](int64_t length) { return is_context(length); });
  return (marked ? std::string("* the training context; ") : std::string()) + "token: exp(NLL / " +
         with_commas(any.tokens) + " tokens)" +
         (more ? "; " + more->title + ": " + more->formula : "") +
         (more && std::isnan(more->value) ? "; -: undefined for so few words" : "") + "\n";
}

std::string eval_json(const EvalSubject& subject, const std::vector<Evaluation>& evaluations,
                      bool lengths, const std::optional<Perplexity>& unigram) {
  Json json = Json::object();
  if (!lengths) json = figures(subject, evaluations.front());
  json["checkpoint"] = subject.checkpoint;
  json["step"] = subject.step;
  json["data"] = subject.data;
  json["text"] = subject.text_name.empty() ? Json(nullptr) : Json(subject.text_name);
  json["tokenizer_sha256"] = subject.tokenizer_sha256;
  add_model_fields(subject.config, json);
  if (lengths) {
    for (const Evaluation& evaluation : evaluations) {
      Json one = figures(subject, evaluation);
      one["training_context"] = evaluation.window == subject.config.train.context;
      json["lengths"].push_back(std::move(one));
    }
  }
  if (unigram) json["unigram"] = Json::parse(perplexity_json(*unigram));
  return json_text(json, 2) + "\n";
}

}  // namespace stablemask::commands
