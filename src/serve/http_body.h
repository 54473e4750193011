#pragma once

#include <httplib.h>

#include <cstdint>
#include <optional>
#include <string>

#include "src/serve/completion_request.h"

namespace stablemask::serve {

inline constexpr const char* kJsonType = "application/json";

/// A request's body, or why there is none.
struct Body {
  std::string text = {};
  std::optional<ApiError> error = {};
  /// Whether the body was read to its end, so that what follows on the connection is a request.
  bool in_step = true;
};

/// Reads a body of at most `limit` bytes, also one that is compressed or comes in chunks of an
/// unknown number. Errors: 413 for more, 415 for one that is not JSON by its header, 400 for one
/// that is cut off or malformed.
Body read_body(const httplib::Request& request, const httplib::ContentReader& reader,
               int64_t limit);

/// Whether the headers announce a body.
bool has_body(const httplib::Request& request);

std::string body_too_large(int64_t limit);

/// Makes an answer, which must have a body, the last one of its connection: older releases
/// of httplib would take the rest of a body that was not read for the next request.
void close_after(httplib::Response& response);

}  // namespace stablemask::serve
