#include "src/serve/completions_route.h"

#include <chrono>
#include <optional>
#include <utility>

#include "src/serve/connections.h"
#include "src/serve/http_body.h"
#include "stablemask/base/log.h"

namespace stablemask::serve {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kClientLeft = 499;  // as other servers log it; never sent

void log_failure(const ApiError& error) {
  if (error.status == 500) log_warning(std::string("serve: ") + error.what());
}

/// Sends what has come of a stream. Returns the status that the request has now, kClientLeft for a
/// client that is gone.
int send_chunks(Completion& completion, httplib::DataSink& sink) {
  const auto send = [&](const std::string& chunks) {
    return chunks.empty() || sink.write(chunks.data(), chunks.size());
  };
  const auto fail = [&](const ApiError& error) {
    log_failure(error);
    return send("data: " + error.json() + "\n\n") ? error.status : kClientLeft;
  };
  try {
    return send(completion.next_chunks()) ? 200 : kClientLeft;
  } catch (const ApiError& error) {
    return fail(error);
  } catch (const ClientLeft&) {
    return kClientLeft;
  } catch (const std::exception& error) {
    return fail(ApiError(500, error.what()));
  }
}

}  // namespace

void set_error(httplib::Response& response, const ApiError& error) {
  response.status = error.status;
  if (error.status == 429 || error.status == 503) response.set_header("Retry-After", "1");
  response.set_content(error.json(), kJsonType);
}

/// A request until the last byte of its answer: counted, and entered in the metrics with the status
/// that it has at its end.
struct CompletionsRoute::Open {
  explicit Open(CompletionsRoute& of) : route(of) { ++route.open_; }
  ~Open() {
    completion.reset();
    const std::chrono::duration<double> time = Clock::now() - begin;
    route.metrics_.request_ended(status, time.count());
    --route.open_;
  }
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;

  CompletionsRoute& route;
  const Clock::time_point begin = Clock::now();
  int status = kClientLeft;  ///< until the answer was written
  std::optional<Completion> completion = {};
};

void CompletionsRoute::set_whole(httplib::Response& response, const std::shared_ptr<Open>& open,
                                 const std::shared_ptr<const std::string>& body, int status) {
  // By a provider, since httplib takes a body that was sent in part for a whole one.
  response.set_content_provider(
      body->size(), kJsonType,
      [open, body, status](size_t offset, size_t size, httplib::DataSink& sink) {
        if (!sink.write(body->data() + offset, size)) return false;
        open->status = status;
        return true;
      });
}

void CompletionsRoute::answer(const httplib::Request& request, httplib::Response& response,
                              const httplib::ContentReader& reader) {
  const auto open = std::make_shared<Open>(*this);
  const auto refuse = [&](const ApiError& error) {
    set_error(response, error);
    const auto body = std::make_shared<const std::string>(std::exchange(response.body, {}));
    response.headers.erase("Content-Type");
    set_whole(response, open, body, error.status);
  };
  try {
    const Body body = read_body(request, reader, max_body_bytes_);
    if (body.error) {  // httplib may not ask a provider after a body that it could not read
      open->status = body.error->status;
      set_error(response, *body.error);
      if (!body.in_step) close_after(response);
      return;
    }
    if (draining_) throw ApiError(503, "the server is stopping", "", "stopping");
    answer(open, request, response, body.text);
  } catch (const ApiError& error) {
    log_failure(error);
    refuse(error);
  } catch (const ClientLeft&) {
    set_error(response, ApiError(400, "the client left"));
    close_after(response);
  } catch (const std::exception& error) {
    log_failure(ApiError(500, error.what()));
    refuse(ApiError(500, error.what()));
  }
}

void CompletionsRoute::answer(const std::shared_ptr<Open>& open, const httplib::Request& request,
                              httplib::Response& response, const std::string& body) const {
  CompletionRequest parsed = [&] {
    const std::lock_guard lock(parsing_);
    return parse_completion(body, context_.limits);
  }();
  const bool stream = parsed.stream;
  const int connection = find_connection(request.remote_addr, request.remote_port);
  open->completion.emplace(context_, std::move(parsed),
                           [connection] { return connection >= 0 && peer_left(connection); });
  response.status = 200;
  if (stream) {
    response.set_header("Cache-Control", "no-cache");
    response.set_chunked_content_provider("text/event-stream",
                                          [open](size_t, httplib::DataSink& sink) {
                                            const int status = send_chunks(*open->completion, sink);
                                            if (status == 200 && !open->completion->done())
                                              return true;
                                            open->status = status;
                                            if (status != kClientLeft) sink.done();
                                            return status != kClientLeft;
                                          });
    return;
  }
  set_whole(response, open, std::make_shared<const std::string>(open->completion->whole()), 200);
}

}  // namespace stablemask::serve
