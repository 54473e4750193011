#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask::serve {

/// An answer that is an error: the HTTP status and the fields of OpenAI's error object.
struct ApiError : std::runtime_error {
  ApiError(int http_status, const std::string& message, std::string field = "",
           std::string error_code = "")
      : std::runtime_error(message),
        status(http_status),
        param(std::move(field)),
        code(std::move(error_code)) {}
  /// {"error": {"message", "type", "param", "code"}}, "" as null.
  std::string json() const;

  int status;
  std::string param;  ///< the request's field
  std::string code;
};

/// What a request may ask for.
struct RequestLimits {
  std::string model;             ///< the only one
  int64_t max_tokens = 0;        ///< of a continuation
  int64_t max_texts = 0;         ///< prompts × n
  int32_t vocab_size = 0;        ///< ids of a prompt are below
  GenerateConfig defaults = {};  ///< values of fields that a request leaves out
};

/// A prompt: a text, or the ids that the model continues as they are.
struct Prompt {
  std::string text;
  std::vector<int32_t> ids;  ///< empty: `text`
};

/// The body of POST /v1/completions.
struct CompletionRequest {
  std::vector<Prompt> prompts;
  GenerateConfig settings;
  bool states_max_tokens = false;  ///< otherwise settings.max_tokens may be lowered to what fits
  int64_t n = 1;
  int64_t logprobs = -1;  ///< −1: none
  bool stream = false, include_usage = false, echo = false;
  std::vector<std::string> stop;
};

/// Reads a request. Without "seed" a random one is chosen. Throws ApiError (400, 404 for another
/// model) that names the field: for JSON with errors, fields that are unknown or not supported,
/// values of a wrong type or out of range. null counts as absent.
CompletionRequest parse_completion(std::string_view body, const RequestLimits& limits);

}  // namespace stablemask::serve
