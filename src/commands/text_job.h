#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/infer/generator.h"
#include "stablemask/infer/load.h"
#include "stablemask/infer/prompt.h"

/// The texts of `generate`: one for a terminal, or many of a file.
namespace stablemask::commands {

/// How texts are drawn and where they end.
struct TextSettings {
  GenerateConfig draw;
  std::vector<std::string> stops;  ///< the text ends before the first of these
  bool stop_at_line_end = false;   ///< the text ends after a line end
  int64_t logprobs = -1;           ///< GenerateRequest::logprobs
};

/// A continuation.
struct TextResult {
  std::string text;           ///< new text; bytes as the ids give them
  std::string finish_reason;  ///< "length" or "stop"
  std::string error;          ///< not empty: a logit is not finite, and there is no result
  int64_t prompt_tokens = 0;  ///< EOS before the text included
  int64_t tokens = 0;         ///< ids drawn
  int64_t seed = 0;
  std::vector<infer::DrawnToken> drawn;  ///< with `logprobs` only
};

struct TextJob {
  infer::Prompt prompt;
  TextSettings settings;
  std::function<void()> token = {};  ///< called after each id
  /// Called with new text as soon as it is certain; false ends the text. May be empty.
  std::function<bool(const std::string&)> text = {};
  std::function<void(const TextResult&)> done = {};
};

/// Queues a text. `tokenizer` must outlive the generator.
void add_text(infer::Generator& generator, const Tokenizer& tokenizer, TextJob job);

/// "70 bytes (12 tokens) and max_tokens 100", for GeneratorNeed::longest.
std::string described_text(const std::string& prompt, int64_t tokens, const TextSettings& settings);

/// A generator for at most `texts` sequences at a time, each of at most `tokens` tokens. `batch`:
/// --batch; 0: as many as are of use and as the memory holds. `longest` says for messages what has
/// that many tokens. Throws OutOfMemoryError when the keys and values do not fit.
struct GeneratorNeed {
  int64_t batch = 0, texts = 1, tokens = 0;
  std::string longest;
};
struct SizedGenerator {
  std::unique_ptr<infer::Generator> generator;
  int64_t batch = 1;  ///< sequences at a time
};
SizedGenerator make_generator(const LoadedModel& loaded, const GeneratorNeed& need);

/// The fields of a result: seed, text, finish_reason, prompt_tokens, tokens, and logprobs where the
/// settings ask for them. Bytes of the text that are not UTF-8 become U+FFFD.
void add_result_fields(const TextResult& result, const Tokenizer& tokenizer,
                       nlohmann::ordered_json& json);

/// The settings as fields: those of the section "generate", stop, stop_at_line_end, logprobs.
nlohmann::ordered_json settings_json(const TextSettings& settings);

}  // namespace stablemask::commands
