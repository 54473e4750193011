#include "src/serve/http_body.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <utility>

namespace stablemask::serve {
namespace {

/// A body over the limit is read on so far, so that the client gets to read the answer.
constexpr int64_t kReadOn = 16;

bool is_json(const httplib::Request& request) {
  std::string type = request.get_header_value("Content-Type");
  type.resize(std::min(type.find_first_of("; "), type.size()));
  for (char& c : type) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return type == kJsonType;
}

uint64_t stated_size(const httplib::Request& request) {
  return std::strtoull(request.get_header_value("Content-Length").c_str(), nullptr, 10);
}

}  // namespace

std::string body_too_large(int64_t limit) {
  return "the body is larger than this server's limit of " + std::to_string(limit) + " bytes";
}

bool has_body(const httplib::Request& request) {
  const bool stated = request.has_header("Content-Length");
  return (stated && stated_size(request) > 0) || request.has_header("Transfer-Encoding");
}

Body read_body(const httplib::Request& request, const httplib::ContentReader& reader,
               int64_t limit) {
  if (stated_size(request) > static_cast<uint64_t>(limit)) {
    return {{}, ApiError(413, body_too_large(limit)), false};
  }
  if (request.is_multipart_form_data()) {
    return {{}, ApiError(415, "the body must be JSON, not form data"), false};
  }
  Body body;
  int64_t size = 0;
  // Without one of the headers httplib would read to the end of the connection.
  body.in_step = !has_body(request) || reader([&](const char* data, size_t count) {
    size += static_cast<int64_t>(count);
    if (size <= limit) body.text.append(data, count);
    return size <= kReadOn * limit;
  });
  if (size > limit) {
    body.error.emplace(413, body_too_large(limit));
  } else if (!body.in_step) {
    body.error.emplace(400, "the body is cut off or malformed");
  } else if (!is_json(request)) {
    body.error.emplace(415, "the body must be JSON: send \"Content-Type: application/json\"");
  }
  return body;
}

void close_after(httplib::Response& response) {
  const auto body = std::make_shared<const std::string>(std::move(response.body));
  response.body.clear();
  response.headers.erase("Content-Type");  // or there would be two
  response.set_content_provider(
      body->size(), kJsonType, [body](size_t offset, size_t length, httplib::DataSink& sink) {
        sink.write(body->data() + offset, length);
        return false;  // a failure to httplib, which closes the connection then
      });
}

}  // namespace stablemask::serve
