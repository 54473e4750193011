#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/serve/test_server.h"

/// Many clients, slow ones, clients that leave, and the end of the server.
namespace stablemask::serve {
namespace {

using std::chrono::milliseconds;

/// An engine whose texts last until they are ended.
void make_endless(TestServer& server) {
  server.limits.max_tokens = 90'000;
  server.engine.step_time = milliseconds(1);
}
const Json kEndless = {{"prompt", "a"}, {"max_tokens", 90'000}};
std::string endless_stream() {
  Json request = kEndless;
  request["stream"] = true;
  return request.dump();
}

TEST(ServerLoad, AThousandRequestsOfThirtyTwoClientsAllGetTheirText) {
  TestServer server;
  server.schedule = {8, 64};
  server.start();
  constexpr int kClients = 32, kRequests = 1000;
  std::atomic<int> next{0};
  std::mutex mutex;
  std::map<std::string, int> wrong;
  std::vector<std::thread> threads;
  for (int i = 0; i < kClients; ++i) {
    threads.emplace_back([&] {
      httplib::Client client = server.client();
      client.set_keep_alive(true);
      for (int number = next++; number < kRequests; number = next++) {
        const int tokens = 1 + number % 9;
        const bool stream = number % 3 == 0;
        const Json request = {
            {"prompt", "p"}, {"seed", number}, {"max_tokens", tokens}, {"stream", stream}};
        std::string expected, text;
        for (int t = 0; t < tokens; ++t) {
          expected += static_cast<char>('a' + (number + 3 + 'p' + t) % 26);
        }
        const auto result = client.Post("/v1/completions", request.dump(), "application/json");
        if (!result) {
          text = "no answer: " + httplib::to_string(result.error());
        } else if (result->status != 200) {
          text = result->body;
        } else if (stream) {
          for (const Json& event : events(result->body)) {
            if (event.is_object()) text += event["choices"][0]["text"].get<std::string>();
          }
        } else {
          text = Json::parse(result->body)["choices"][0]["text"];
        }
        const std::lock_guard lock(mutex);
        if (text != expected) ++wrong[expected + " came as " + text];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(wrong.empty()) << wrong.size() << ": " << wrong.begin()->first;
  EXPECT_TRUE(wait_until([&] { return server.metrics.requests(200) == kRequests; }));
  EXPECT_TRUE(server.idle());
}

TEST(ServerLoad, AFullQueueIsAnsweredAtOnceAndNothingThatWasTakenIsLost) {
  TestServer server;
  server.schedule = {2, 3};
  std::atomic<bool> open{false};
  server.engine.draw = [&](const Text&, int64_t) {
    wait_until([&] { return open.load(); });
    return 'x' + 3;
  };
  server.start();
  std::vector<std::thread> clients;
  std::atomic<int> answered{0};
  const auto ask = [&] {
    clients.emplace_back([&] {
      const auto result = server.post(R"({"max_tokens": 2})");
      if (result && result->status == 200) ++answered;
    });
  };
  ask();
  ASSERT_TRUE(wait_until([&] { return server.scheduler().running() == 1; }));
  for (int i = 0; i < 3; ++i) ask();  // one thread is inside the engine: these wait
  ASSERT_TRUE(wait_until([&] { return server.scheduler().waiting() == 3; }));
  for (int i = 0; i < 5; ++i) {
    const auto refused = server.post("{}");
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->status, 429);
    EXPECT_EQ(refused->get_header_value("Retry-After"), "1");
    EXPECT_EQ(Json::parse(refused->body)["error"]["type"], "rate_limit_error");
  }
  const std::string metrics = server.client().Get("/metrics")->body;
  EXPECT_NE(metrics.find("stablemask_queue_length 3\n"), std::string::npos) << metrics;
  open = true;
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(answered, 4);
  EXPECT_EQ(server.metrics.requests(429), 5);
}

TEST(ServerLoad, AClientThatLeavesEndsItsTexts) {
  TestServer server;
  make_endless(server);
  server.schedule = {2, 8};
  server.start();
  auto stream = std::make_unique<RawClient>(server.port());
  stream->post(endless_stream());
  stream->read_to("data: ");
  auto whole = std::make_unique<RawClient>(server.port());
  whole->post(kEndless.dump());
  auto queued = std::make_unique<RawClient>(server.port());
  queued->post(kEndless.dump());
  ASSERT_TRUE(wait_until(
      [&] { return server.scheduler().running() == 2 && server.scheduler().waiting() == 1; }));
  queued.reset();
  EXPECT_TRUE(wait_until([&] { return server.metrics.requests(499) == 1; }));
  whole.reset();
  EXPECT_TRUE(wait_until([&] { return server.scheduler().running() == 1; }));
  stream.reset();
  EXPECT_TRUE(wait_until([&] { return server.idle() && server.metrics.requests(499) == 3; }));
  EXPECT_EQ(server.post("{}")->status, 200);
}

TEST(ServerLoad, AClientThatReadsSlowlyHoldsNobodyUp) {
  TestServer server;
  server.limits.max_tokens = 90'000;
  server.start();
  // It takes its answer, of a few megabytes, at a byte now and then, or not at all.
  RawClient stuck(server.port(), 2048);
  stuck.post(Json{{"max_tokens", 90'000}, {"stream", true}, {"logprobs", 1}}.dump());
  stuck.read_to("data: ");
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(server.post("{}")->status, 200);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_TRUE(wait_until([&] { return server.metrics.requests(499) == 1; })) << "not cut off";
  EXPECT_TRUE(wait_until([&] { return server.idle(); }));
}

TEST(ServerLoad, ASlowReaderGetsEveryByte) {
  TestServer server;
  server.limits.max_tokens = 90'000;
  server.start();
  RawClient slow(server.port(), 2048);
  slow.post(R"({"prompt": "a", "seed": 0, "max_tokens": 90000})");
  std::this_thread::sleep_for(milliseconds(100));
  const std::string answer = slow.read_to("\"usage\":");
  size_t letters = 0;
  for (size_t i = answer.find("\"text\":\"") + 8; answer[i] != '"'; ++i) ++letters;
  EXPECT_EQ(letters, 90'000U);
}

TEST(ServerLoad, ConnectionsBeyondTheLimitAreToldSo) {
  TestServer server;
  make_endless(server);
  server.options.connections = 2;
  server.start();
  RawClient first(server.port());
  first.post(endless_stream());
  first.read_to("data: ");
  {
    RawClient second(server.port());
    second.post(endless_stream());
    second.read_to("data: ");
    for (int i = 0; i < 3; ++i) {
      RawClient third(server.port());
      third.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
      const std::string answer = third.read_to_end();
      EXPECT_TRUE(answer.starts_with("HTTP/1.1 503")) << answer;
      EXPECT_NE(answer.find("too many connections"), std::string::npos) << answer;
    }
  }
  EXPECT_TRUE(wait_until([&] { return server.client().Get("/health")->status == 200; }));
}

TEST(ServerLoad, ARequestEndsWithItsTime) {
  TestServer server;
  make_endless(server);
  server.request_seconds = 0.2;
  server.start();
  const auto whole = server.post(kEndless);
  EXPECT_EQ(whole->status, 504);
  EXPECT_NE(whole->body.find("not complete after 0.2 seconds"), std::string::npos) << whole->body;
  const std::vector<Json> stream = events(server.post(endless_stream())->body);
  ASSERT_GT(stream.size(), 2U);
  EXPECT_EQ(stream.back()["error"]["code"], "timeout");
  EXPECT_TRUE(wait_until([&] { return server.idle() && server.metrics.requests(504) == 2; }));
}

TEST(ServerStop, OpenRequestsEndAndNewOnesAreRefused) {
  TestServer server;
  server.engine.step_time = milliseconds(2);
  server.limits.max_tokens = 200;
  server.start();
  RawClient stream(server.port()), idle(server.port());
  stream.post(R"({"max_tokens": 150, "stream": true})");
  stream.read_to("data: ");
  idle.send("GET /health HTTP/1.1\r\n\r\n");
  idle.read_to("ok");
  std::string whole;
  std::thread client([&] { whole = server.post(R"({"max_tokens": 150})")->body; });
  ASSERT_TRUE(wait_until([&] { return server.scheduler().running() == 2; }));
  server.stop();
  EXPECT_TRUE(wait_until([&] { return server.client().Get("/health")->status == 503; }));
  const auto refused = server.post("{}");
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->status, 503);
  EXPECT_EQ(refused->get_header_value("Retry-After"), "1");
  client.join();
  EXPECT_EQ(Json::parse(whole)["usage"]["completion_tokens"], 150);
  EXPECT_NE(stream.read_to("[DONE]").find("[DONE]"), std::string::npos);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(server.ended());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2))
      << "waits for an idle connection";
  EXPECT_EQ(server.failure, "");
}

TEST(ServerStop, WhatDoesNotEndInTimeIsEnded) {
  TestServer server;
  make_endless(server);
  server.options.drain_seconds = 0.1;
  server.schedule = {1, 8};
  server.start();
  RawClient stream(server.port());
  stream.post(endless_stream());
  stream.read_to("data: ");
  std::string whole;
  std::thread client([&] { whole = server.post(kEndless)->body; });
  ASSERT_TRUE(wait_until([&] { return server.scheduler().waiting() == 1; }));
  server.stop();
  EXPECT_TRUE(server.ended());
  client.join();
  EXPECT_EQ(Json::parse(whole)["error"]["code"], "stopping");
  EXPECT_NE(stream.read_to_end().find("the server stopped before the text was complete"),
            std::string::npos);
}

TEST(ServerStop, ABrokenEngineEndsTheServer) {
  TestServer server;
  server.engine.draw = [](const Text&, int64_t i) { return i < 3 ? 'x' + 3 : -2; };
  server.start();
  const auto result = server.post("{}");
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 500);
  EXPECT_EQ(Json::parse(result->body)["error"]["message"], "the engine broke");
  EXPECT_TRUE(server.ended());
  EXPECT_EQ(server.failure, "the engine broke");
}

}  // namespace
}  // namespace stablemask::serve
