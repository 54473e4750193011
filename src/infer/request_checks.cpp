#include "src/infer/request_checks.h"

#include <cmath>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask::infer {
namespace {

void check_ids(const std::vector<int32_t>& ids, const char* what, int64_t vocabulary) {
  for (const int32_t id : ids) {
    if (id >= 0 && id < vocabulary) continue;
    throw ConfigError(format("generate: id %d of %s is outside the vocabulary of %lld", id, what,
                             static_cast<long long>(vocabulary)));
  }
}

}  // namespace

void check_settings(const GenerateConfig& settings) {
  if (settings.max_tokens < 1) throw ConfigError("generate.max_tokens: must be at least 1");
  if (!(settings.temperature >= 0) || !std::isfinite(settings.temperature)) {
    throw ConfigError("generate.temperature: must be at least 0 and finite");
  }
  if (settings.top_k < 0) throw ConfigError("generate.top_k: must be at least 0; 0 keeps all ids");
  if (!(settings.top_p > 0 && settings.top_p <= 1)) {
    throw ConfigError("generate.top_p: must be above 0 and at most 1; 1 keeps all ids");
  }
  if (!(settings.min_p >= 0 && settings.min_p <= 1)) {
    throw ConfigError("generate.min_p: must be at least 0 and at most 1; 0 keeps all ids");
  }
  if (!(settings.repetition_penalty > 0) || !std::isfinite(settings.repetition_penalty)) {
    throw ConfigError("generate.repetition_penalty: must be above 0 and finite; 1 is none");
  }
}

void check_request(const GenerateRequest& request, int64_t model_ids, int64_t drawn_ids) {
  check_settings(request.settings);
  if (request.prompt.empty()) throw ConfigError("generate: the prompt needs at least one token");
  check_ids(request.prompt, "the prompt", model_ids);
  check_ids(request.first_ids, "first_ids", drawn_ids);
  check_ids(request.stop_ids, "stop_ids", drawn_ids);
  if (request.logprobs < -1) {
    throw ConfigError("generate: logprobs must be at least 0, or -1 for none");
  }
}

}  // namespace stablemask::infer
