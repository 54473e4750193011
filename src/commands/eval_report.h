#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/infer/perplexity.h"

/// The reports of `stablemask eval`.
namespace stablemask::commands {

/// An evaluation with one kind of windows.
struct Evaluation {
  int64_t window = 0, stride = 0;  ///< tokens
  Perplexity result;
};

/// What all evaluations of one call have in common.
struct EvalSubject {
  std::string checkpoint;  ///< folder
  int64_t step = 0;
  Config config;  ///< overrides applied
  std::string tokenizer_sha256;
  std::string data;        ///< as given by --data
  std::string text_name;   ///< a recognised text, or ""
  std::string convention;  ///< as given by --convention
  bool text_known = true;  ///< Perplexity::text_known
};

/// Lines on checkpoint, text, windows and model. `windows`: what stands in their line.
std::string report_head(const EvalSubject& subject, const std::string& windows);

/// "64 tokens, not overlapping".
std::string windows_text(const Evaluation& evaluation);

/// "\nunigram with add-one smoothing, …", with its figures.
std::string unigram_report(const EvalSubject& subject, const std::string& train,
                           const Perplexity& unigram);

/// Table of `--lengths`, printed line by line: the titles, one line for each length, a footnote.
class LengthTable {
 public:
  explicit LengthTable(const EvalSubject& subject) : subject_(subject) {}

  std::string titles() const;
  std::string row(const Evaluation& evaluation) const;
  /// `lengths`: those of the table; `any`: one of its results, for the counts.
  std::string footnote(const std::vector<int64_t>& lengths, const Perplexity& any) const;

 private:
  bool is_context(int64_t length) const;

  EvalSubject subject_;
};

/// The JSON of one evaluation, or with `lengths` of several, in which their figures are the list
/// "lengths" (docs/formats.md).
std::string eval_json(const EvalSubject& subject, const std::vector<Evaluation>& evaluations,
                      bool lengths, const std::optional<Perplexity>& unigram);

}  // namespace stablemask::commands
