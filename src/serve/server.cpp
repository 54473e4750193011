#include "src/serve/server.h"

#include <httplib.h>
#include <netdb.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "src/serve/completions_route.h"
#include "src/serve/connections.h"
#include "src/serve/http_body.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask::serve {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBacklog = 512;
/// For answers to be written after the open requests have been ended.
constexpr std::chrono::seconds kLastWords{2};

/// Two servers on one port would each get a part of the connections (SO_REUSEPORT, httplib's
/// default): the second one must fail.
void set_socket_options(socket_t socket) {
  const int yes = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

/// Equal in a time that does not tell where two texts of one size differ.
bool same_secret(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

/// httplib does not say that a name means no address.
void require_address(const std::string& host) {
  addrinfo wanted = {};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), nullptr, &wanted, &found);
  if (error != 0) {
    throw ConfigError("--host " + in_quotes(host) + ": " + ::gai_strerror(error) +
                      "; give an address of this machine");
  }
  ::freeaddrinfo(found);
}

std::string address_of(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return "http://" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

}  // namespace

struct Server::State {
  const CompletionContext& context;
  Metrics& metrics;
  const ServerOptions options;
  CompletionsRoute completions{context, metrics, options.max_body_bytes};
  const int64_t started = std::time(nullptr);
  httplib::Server http = {};
  std::atomic<int> listening_socket{-1};
  int port = 0;
  std::thread acceptor = {};

  void configure();
  void set_error_answers();
  void add_routes();
  void listen();
  void stop_http();
};

namespace {

bool has_key(const httplib::Request& request, const std::string& key) {
  return key.empty() || same_secret(request.get_header_value("Authorization"), "Bearer " + key);
}

/// Answers requests that are refused whatever they ask for.
bool refused(const httplib::Request& request, httplib::Response& response,
             const std::string& api_key) {
  std::optional<ApiError> error;
  if (ConnectionPool::is_refusing()) {
    error.emplace(503, "the server has too many connections; try again later", "",
                  "too_many_connections");
  } else if ((request.method == "GET" || request.method == "HEAD") && has_body(request)) {
    error.emplace(400, request.method + " requests have no body here");
  } else if (request.path.starts_with("/v1/") && !has_key(request, api_key)) {
    error.emplace(401, "this server needs its API key as \"Authorization: Bearer KEY\"", "",
                  "invalid_api_key");
  }
  if (!error) return false;
  set_error(response, *error);
  close_after(response);  // the body is not read
  return true;
}

std::string models_json(const std::string& model, int64_t created) {
  return json_text(nlohmann::ordered_json{
      {"object", "list"},
      {"data", nlohmann::ordered_json::array({{{"id", model},
                                               {"object", "model"},
                                               {"created", created},
                                               {"owned_by", "stablemask"}}})}});
}

}  // namespace

void Server::State::configure() {
  const auto connections = static_cast<size_t>(options.connections);
  http.new_task_queue = [connections] { return new ConnectionPool(connections); };
  http.set_socket_options([this](socket_t socket) {
    set_socket_options(socket);
    listening_socket = socket;
  });
  http.set_tcp_nodelay(true);
  http.set_payload_max_length(static_cast<size_t>(options.max_body_bytes));
  http.set_keep_alive_max_count(1'000'000);
  http.set_keep_alive_timeout(static_cast<time_t>(options.idle_seconds));
  const auto microseconds = [](double seconds) {
    return std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6));
  };
  http.set_read_timeout(microseconds(options.read_seconds));
  http.set_write_timeout(microseconds(options.write_seconds));
  set_error_answers();
}

void Server::State::set_error_answers() {
  using Handled = httplib::Server::HandlerResponse;
  http.set_pre_routing_handler(
      [this](const httplib::Request& request, httplib::Response& response) {
        return refused(request, response, options.api_key) ? Handled::Handled : Handled::Unhandled;
      });
  // Answers of httplib itself.
  http.set_error_handler(httplib::Server::Handler(
      [this](const httplib::Request& request, httplib::Response& response) {
        if (response.has_header("Content-Type")) return;  // set_error was there
        const std::string what = response.status == 404
                                     ? "there is no " + request.method + " " + request.path
                                 : response.status == 413 ? body_too_large(options.max_body_bytes)
                                                          : "the request cannot be read";
        set_error(response, ApiError(response.status, what));
      }));
}

void Server::State::add_routes() {
  http.Get("/health", [this](const httplib::Request&, httplib::Response& response) {
    if (completions.draining())
      return set_error(response, ApiError(503, "the server is stopping", "", "stopping"));
    response.set_content("{\"status\":\"ok\"}", kJsonType);
  });
  http.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
    const Scheduler& scheduler = context.scheduler;
    response.set_content(metrics.text(scheduler.waiting(), scheduler.running()),
                         "text/plain; version=0.0.4");
  });
  http.Get("/v1/models", [this](const httplib::Request&, httplib::Response& response) {
    response.set_content(models_json(context.limits.model, started), kJsonType);
  });
  http.Post("/v1/completions", [this](const httplib::Request& request, httplib::Response& response,
                                      const httplib::ContentReader& reader) {
    completions.answer(request, response, reader);
  });
  // httplib would read the bodies of other requests without a limit.
  const auto nothing_there = [this](const httplib::Request& request, httplib::Response& response,
                                    const httplib::ContentReader& reader) {
    const bool in_step = read_body(request, reader, options.max_body_bytes).in_step;
    set_error(response, ApiError(404, "there is no " + request.method + " " + request.path));
    if (!in_step) close_after(response);
  };
  http.Post(".*", nothing_there);
  http.Put(".*", nothing_there);
  http.Patch(".*", nothing_there);
  http.Delete(".*", nothing_there);
}

void Server::State::listen() {
  require_address(options.host);
  errno = 0;
  port = options.port;
  bool bound = false;
  if (port == 0) {
    port = http.bind_to_any_port(options.host);
    bound = port > 0;
  } else {
    bound = http.bind_to_port(options.host, port);
  }
  if (!bound) {
    const std::string reason = errno != 0 ? std::strerror(errno) : "not an address of this machine";
    throw ConfigError("cannot listen on " + options.host + " port " + std::to_string(options.port) +
                      ": " + reason + "; choose another --host or --port");
  }
  // httplib asks for a queue of five connections that wait to be accepted.
  ::listen(listening_socket, kBacklog);
  acceptor = std::thread([this] { http.listen_after_bind(); });
  while (!http.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void Server::State::stop_http() {
  if (!acceptor.joinable()) return;
  const Clock::time_point until = Clock::now() + kLastWords;
  while (completions.open() > 0 && Clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  http.stop();
  // Threads that wait for a next request, or for a client that does not read, see the end.
  shut_down_connections(port, completions.open() > 0 ? SHUT_RDWR : SHUT_RD);
  acceptor.join();
}

Server::Server(const CompletionContext& context, Metrics& metrics, const ServerOptions& options)
    : state_(new State{context, metrics, options}) {}

Server::~Server() { state_->stop_http(); }

void Server::start() {
  state_->configure();
  state_->add_routes();
  state_->listen();
}

std::string Server::address() const { return address_of(state_->options.host, state_->port); }

int Server::port() const { return state_->port; }

void Server::run(const std::function<bool()>& stop) {
  std::optional<Clock::time_point> until;
  const auto leave = [&] {
    if (!until) {
      if (!stop()) return false;
      state_->completions.drain();
      state_->context.scheduler.close();
      const std::chrono::duration<double> drain(state_->options.drain_seconds);
      until = Clock::now() + std::chrono::duration_cast<Clock::duration>(drain);
    }
    return state_->completions.open() == 0 || Clock::now() >= *until;
  };
  try {
    state_->context.scheduler.run(leave);
  } catch (...) {
    state_->completions.drain();
    state_->stop_http();
    throw;
  }
  state_->stop_http();
}

}  // namespace stablemask::serve
