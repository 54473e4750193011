#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "src/serve/completion.h"
#include "src/serve/metrics.h"
#include "src/serve/scheduler.h"

namespace stablemask::serve {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;           ///< 0: one that is free
  std::string api_key = "";  ///< "": none is asked for
  int64_t max_body_bytes = int64_t{1} << 20;
  int64_t connections = 256;  ///< at a time
  double read_seconds = 10;   ///< without a byte of a request that has begun
  double write_seconds = 10;  ///< without a byte of an answer taken by the client
  double idle_seconds = 10;   ///< between two requests of a connection
  double drain_seconds = 30;  ///< for the requests that are open when the server is to stop
};

/// The HTTP side: POST /v1/completions, GET /v1/models, /health and /metrics. Its threads parse
/// requests, hand texts to the scheduler and write answers. docs/serving.md describes the
/// interface.
class Server {
 public:
  /// `context`, with what it refers to, and `metrics` must outlive the object.
  Server(const CompletionContext& context, Metrics& metrics, const ServerOptions& options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Listens and accepts connections from now on, on threads of its own. Throws ConfigError when
  /// the address cannot be listened on.
  void start();
  /// "http://127.0.0.1:8000".
  std::string address() const;
  int port() const;

  /// Runs the scheduler on the calling thread until `stop` returns true. Then requests are refused
  /// with 503, the open ones get drain_seconds to end, and all connections are closed. When the
  /// scheduler throws, connections are closed and the exception passes.
  void run(const std::function<bool()>& stop);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask::serve
