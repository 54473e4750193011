#pragma once

#include <gtest/gtest.h>
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "src/serve/server.h"
#include "stablemask/base/log.h"
#include "tests/serve/fake_engine.h"

namespace stablemask::serve {

using Json = nlohmann::json;

inline const Tokenizer& tokenizer() {
  static const Tokenizer loaded =
      Tokenizer::load(STABLEMASK_SOURCE_DIR "/tests/fixtures/checkpoint-v0/tokenizer.model");
  return loaded;
}

/// Polls until `ready`, for 10 s at most. Returns whether it was.
inline bool wait_until(const std::function<bool()>& ready) {
  const auto begin = std::chrono::steady_clock::now();
  while (!ready()) {
    if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(10)) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

/// A server before a FakeEngine. Change its members before start().
class TestServer {
 public:
  TestServer() {
    options.port = 0;
    options.write_seconds = 0.3;
    limits = {"fake", 1000, 8, 320, {}};
    limits.defaults.max_tokens = 5;
  }
  ~TestServer() {
    stop();
    if (runner_.joinable()) runner_.join();
  }
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  void start() {
    scheduler_ = std::make_unique<Scheduler>(engine, schedule, metrics);
    const auto encode = [](const std::string& text) {
      PromptIds ids{{tokenizer().eos_id()}};
      for (const char c : text) ids.ids.push_back(3 + static_cast<unsigned char>(c));
      return ids;
    };
    context_.reset(new CompletionContext{tokenizer(), encode, *scheduler_, limits, context,
                                         max_prompt_tokens, request_seconds});
    server_ = std::make_unique<Server>(*context_, metrics, options);
    server_->start();
    runner_ = std::thread([this] {
      try {
        server_->run([this] { return stop_.load(); });
      } catch (const std::exception& error) {
        failure = error.what();
      }
      ended_ = true;
    });
  }
  void stop() { stop_ = true; }
  /// Waits until run() has returned.
  bool ended() {
    return wait_until([this] { return ended_.load(); });
  }

  int port() const { return server_->port(); }
  const Server& server() const { return *server_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  bool idle() const { return scheduler_->waiting() == 0 && scheduler_->running() == 0; }

  httplib::Client client() const {
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(10);
    client.set_tcp_nodelay(true);
    return client;
  }
  /// `body`: a request, or a string that is one.
  httplib::Result post(const Json& body) const {
    return client().Post("/v1/completions",
                         body.is_string() ? body.get<std::string>() : body.dump(),
                         "application/json");
  }

  FakeEngine engine;
  Metrics metrics;
  ServerOptions options;
  Scheduler::Options schedule{4, 8};
  RequestLimits limits;
  int64_t context = 100'000, max_prompt_tokens = 1000;
  double request_seconds = 20;
  std::string failure;  ///< after ended()

 private:
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<CompletionContext> context_;
  std::unique_ptr<Server> server_;
  std::thread runner_;
  std::atomic<bool> stop_{false}, ended_{false};
};

/// The events of a stream; the last one is "[DONE]" as a string where it came.
inline std::vector<Json> events(const std::string& body) {
  std::vector<Json> events;
  for (size_t begin = 0; begin < body.size();) {
    const size_t end = body.find("\n\n", begin);
    EXPECT_NE(end, std::string::npos) << "half an event: " << body.substr(begin);
    if (end == std::string::npos) break;
    const std::string event = body.substr(begin, end - begin);
    EXPECT_TRUE(event.starts_with("data: ")) << event;
    events.push_back(event == "data: [DONE]" ? Json("[DONE]") : Json::parse(event.substr(6)));
    begin = end + 2;
  }
  return events;
}

/// A connection of which the test reads and writes every byte.
class RawClient {
 public:
  /// `receive_buffer`: of the socket, in bytes; 0: the system's.
  explicit RawClient(int port, int receive_buffer = 0) {
    socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer > 0) {
      ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    const timeval limit{10, 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  void send(const std::string& bytes) const {
    EXPECT_EQ(::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  void post(const std::string& body) const {
    send(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  /// Reads until `text` has come, or the connection ends. Returns all that was read so far.
  const std::string& read_to(const std::string& text) {
    char buffer[4096];
    while (text.empty() || read_.find(text) == std::string::npos) {
      const ssize_t size = ::recv(socket_, buffer, sizeof(buffer), 0);
      if (size <= 0) break;
      read_.append(buffer, static_cast<size_t>(size));
    }
    return read_;
  }
  const std::string& read_to_end() { return read_to(""); }

 private:
  int socket_ = -1;
  std::string read_;
};

}  // namespace stablemask::serve
