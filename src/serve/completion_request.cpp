#include "src/serve/completion_request.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "stablemask/base/json_source.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/text.h"

namespace stablemask::serve {
namespace {

using Kind = JsonValue::Kind;

constexpr size_t kMaxStops = 4, kMaxStopBytes = 1024;
constexpr int64_t kMaxLogprobs = 20;

[[noreturn]] void refuse(const std::string& field, const std::string& problem) {
  throw ApiError(400, field + ": " + problem, field);
}

int64_t integer(const JsonValue& value, const std::string& field, int64_t least, int64_t most) {
  if (value.kind == Kind::kInteger && value.integer >= least && value.integer <= most) {
    return value.integer;
  }
  refuse(field, format("must be an integer from %lld to %lld, not ", static_cast<long long>(least),
                       static_cast<long long>(most)) +
                    describe(value));
}

/// A number for which `allowed` holds; `range` describes these numbers.
template <class Allowed>
double number(const JsonValue& value, const std::string& field, const char* range,
              const Allowed& allowed) {
  if (value.is_number() && allowed(value.number)) return value.number;
  refuse(field, "must be a number " + std::string(range) + ", not " + describe(value));
}

bool boolean(const JsonValue& value, const std::string& field) {
  if (value.kind != Kind::kBool) refuse(field, "must be true or false, not " + describe(value));
  return value.boolean;
}

std::vector<int32_t> ids(const JsonValue& list, int32_t vocab_size) {
  std::vector<int32_t> ids;
  for (const JsonValue& item : list.items) {
    ids.push_back(static_cast<int32_t>(integer(item, "prompt", 0, vocab_size - 1)));
  }
  return ids;
}

/// A string, strings, ids, or lists of ids.
std::vector<Prompt> prompts(const JsonValue& value, int32_t vocab_size) {
  if (value.kind == Kind::kString) return {{value.text, {}}};
  if (value.kind != Kind::kArray || value.items.empty()) {
    refuse("prompt",
           "must be a string, a list of strings, a list of token ids or a list of such "
           "lists, not " +
               describe(value));
  }
  const Kind kind = value.items[0].kind;
  if (value.items[0].is_number()) return {{"", ids(value, vocab_size)}};
  std::vector<Prompt> prompts;
  for (const JsonValue& item : value.items) {
    if (item.kind != kind || (kind != Kind::kString && kind != Kind::kArray)) {
      refuse("prompt",
             "the list must hold only strings, only token ids or only lists of token "
             "ids; " +
                 describe(item) + " is none of these or comes after another kind");
    }
    if (kind == Kind::kArray && item.items.empty()) {
      refuse("prompt", "a list of token ids must not be empty");
    }
    prompts.push_back({item.text, ids(item, vocab_size)});
  }
  return prompts;
}

std::vector<std::string> stops(const JsonValue& value) {
  std::vector<std::string> stops;
  const auto add = [&](const JsonValue& stop) {
    if (stop.kind != Kind::kString || stop.text.empty() || stop.text.size() > kMaxStopBytes) {
      refuse("stop",
             format("a stop string must be a string of 1 to %zu bytes, not ", kMaxStopBytes) +
                 describe(stop));
    }
    stops.push_back(stop.text);
  };
  if (value.kind != Kind::kArray) {
    add(value);
    return stops;
  }
  if (value.items.size() > kMaxStops) {
    refuse("stop", format("at most %zu strings, not %zu", kMaxStops, value.items.size()));
  }
  for (const JsonValue& item : value.items) add(item);
  return stops;
}

bool include_usage(const JsonValue& value) {
  if (value.kind != Kind::kObject) {
    refuse("stream_options", "must be an object, not " + describe(value));
  }
  bool include = false;
  for (const JsonMember& member : value.members) {
    const std::string field = "stream_options." + member.key;
    if (member.key != "include_usage") {
      throw ApiError(400, field + ": is not supported; only include_usage is", field);
    }
    if (member.value.kind != Kind::kNull) include = boolean(member.value, field);
  }
  return include;
}

/// For a field that is accepted with the value that changes nothing alone.
void require_without_effect(const JsonValue& value, const std::string& field, double neutral) {
  if (!value.is_number() || value.number != neutral) {
    refuse(field, format("is not supported; leave it out or set it to %g, not ", neutral) +
                      describe(value));
  }
}

/// Reads the members of a request, one after the other.
class RequestReader {
 public:
  explicit RequestReader(const RequestLimits& limits) : limits_(limits) {
    request_.settings = limits.defaults;
    request_.settings.max_tokens = std::min(limits.defaults.max_tokens, limits.max_tokens);
    std::random_device random;
    request_.settings.seed = static_cast<int64_t>(uint64_t{random()} << 21 ^ random() >> 11);
  }

  void read(const std::string& key, const JsonValue& value) {
    if (!sampling(key, value) && !output(key, value) && !unsupported(key, value)) unknown(key);
  }

  CompletionRequest finished() {
    if (request_.prompts.empty()) request_.prompts = {{"", {}}};
    if (request_.include_usage && !request_.stream) {
      refuse("stream_options", "needs \"stream\": true");
    }
    if (request_.echo && request_.logprobs >= 0) {
      refuse("echo", "log-probabilities of a prompt are not computed; leave out echo or logprobs");
    }
    const auto prompts = static_cast<int64_t>(request_.prompts.size());
    if (prompts > limits_.max_texts || request_.n > limits_.max_texts / prompts) {
      refuse(request_.n > 1 ? "n" : "prompt",
             format("%lld prompts with n = %lld; their product may be at most %lld",
                    static_cast<long long>(prompts), static_cast<long long>(request_.n),
                    static_cast<long long>(limits_.max_texts)));
    }
    return std::move(request_);
  }

 private:
  bool sampling(const std::string& key, const JsonValue& value) {
    GenerateConfig& settings = request_.settings;
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    if (key == "max_tokens") {
      settings.max_tokens = integer(value, key, 1, limits_.max_tokens);
      request_.states_max_tokens = true;
    } else if (key == "temperature") {
      settings.temperature =
          number(value, key, "from 0 to 100", [](double x) { return x >= 0 && x <= 100; });
    } else if (key == "top_p") {
      settings.top_p =
          number(value, key, "above 0 and at most 1", [](double x) { return x > 0 && x <= 1; });
    } else if (key == "min_p") {
      settings.min_p = number(value, key, "from 0 to 1", [](double x) { return x >= 0 && x <= 1; });
    } else if (key == "repetition_penalty") {
      settings.repetition_penalty =
          number(value, key, "above 0 and at most 100", [](double x) { return x > 0 && x <= 100; });
    } else if (key == "top_k") {
      settings.top_k = integer(value, key, 0, 1'000'000'000);
    } else if (key == "seed") {
      settings.seed = integer(value, key, std::numeric_limits<int64_t>::min(), kMost);
    } else {
      return false;
    }
    return true;
  }

  bool output(const std::string& key, const JsonValue& value) {
    if (key == "model") {
      require_model(value);
    } else if (key == "prompt") {
      request_.prompts = prompts(value, limits_.vocab_size);
    } else if (key == "n") {
      request_.n = integer(value, key, 1, limits_.max_texts);
    } else if (key == "logprobs") {
      request_.logprobs = integer(value, key, 0, kMaxLogprobs);
    } else if (key == "stream") {
      request_.stream = boolean(value, key);
    } else if (key == "stream_options") {
      request_.include_usage = include_usage(value);
    } else if (key == "echo") {
      request_.echo = boolean(value, key);
    } else if (key == "stop") {
      request_.stop = stops(value);
    } else if (key == "user") {
      if (value.kind != Kind::kString) refuse(key, "must be a string, not " + describe(value));
    } else {
      return false;
    }
    return true;
  }

  static bool unsupported(const std::string& key, const JsonValue& value) {
    if (key == "best_of") {
      require_without_effect(value, key, 1);
    } else if (key == "presence_penalty" || key == "frequency_penalty") {
      require_without_effect(value, key, 0);
    } else if (key == "logit_bias") {
      if (value.kind != Kind::kObject || !value.members.empty()) refuse(key, "is not supported");
    } else if (key == "suffix") {
      refuse(key, "is not supported: the model only continues texts");
    } else {
      return false;
    }
    return true;
  }

  [[noreturn]] static void unknown(const std::string& key) {
    static const std::vector<std::string> known = {
        "model", "prompt", "max_tokens",     "temperature",
        "top_p", "top_k",  "min_p",          "repetition_penalty",
        "n",     "stream", "stream_options", "logprobs",
        "echo",  "stop",   "seed",           "user"};
    throw ApiError(
        400, in_quotes(key) + ": is no field of a completions request" + did_you_mean(key, known),
        key);
  }

  void require_model(const JsonValue& value) const {
    if (value.kind != Kind::kString) refuse("model", "must be a string, not " + describe(value));
    if (value.text == limits_.model) return;
    throw ApiError(404,
                   "model " + in_quotes(value.text) + " is not served here; the model is " +
                       in_quotes(limits_.model),
                   "model", "model_not_found");
  }

  const RequestLimits& limits_;
  CompletionRequest request_;
};

}  // namespace

std::string ApiError::json() const {
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  const char* type = status == 429   ? "rate_limit_error"
                     : status >= 500 ? "server_error"
                                     : "invalid_request_error";
  return json_text(nlohmann::ordered_json{{"error",
                                           {{"message", what()},
                                            {"type", type},
                                            {"param", text_or_null(param)},
                                            {"code", text_or_null(code)}}}});
}

CompletionRequest parse_completion(std::string_view body, const RequestLimits& limits) {
  JsonValue value;
  try {
    value = parse_json(body);
  } catch (const JsonSyntaxError& error) {
    throw ApiError(400, format("the body is no JSON: line %lld, column %lld: %s",
                               static_cast<long long>(error.at().line),
                               static_cast<long long>(error.at().column), error.what()));
  }
  if (value.kind != Kind::kObject) {
    throw ApiError(400, "the body must be a JSON object, not " + describe(value));
  }
  RequestReader reader(limits);
  std::vector<std::string> seen;
  for (const JsonMember& member : value.members) {
    if (std::ranges::find(seen, member.key) != seen.end()) {
      refuse(member.key, "is stated twice");
    }
    seen.push_back(member.key);
    if (member.value.kind != Kind::kNull) reader.read(member.key, member.value);
  }
  return reader.finished();
}

}  // namespace stablemask::serve
