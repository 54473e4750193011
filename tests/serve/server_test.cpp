#include "src/serve/server.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <thread>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/utf8.h"
#include "tests/serve/test_server.h"

namespace stablemask::serve {
namespace {

/// What FakeEngine's rule gives for a prompt that ends with `last`.
std::string letters(char last, int64_t seed, int64_t count) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    text += static_cast<char>((static_cast<uint64_t>(seed) + 3 + last + i) % 26 + 'a');
  }
  return text;
}

TEST(Server, AnswersWithTheFieldsOfTheInterface) {
  TestServer server;
  server.start();
  const auto result = server.post(Json{{"prompt", "ab"}, {"seed", 1}, {"max_tokens", 3}});
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 200);
  EXPECT_EQ(result->get_header_value("Content-Type"), "application/json");
  const Json answer = Json::parse(result->body);
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["model"], "fake");
  EXPECT_NEAR(answer["created"].get<double>(), static_cast<double>(std::time(nullptr)), 5);
  EXPECT_EQ(answer["choices"], (Json::array({{{"text", letters('b', 1, 3)},
                                              {"index", 0},
                                              {"logprobs", nullptr},
                                              {"finish_reason", "length"}}})));
  EXPECT_EQ(answer["usage"],
            (Json{{"prompt_tokens", 3}, {"completion_tokens", 3}, {"total_tokens", 6}}));
}

TEST(Server, ChoicesOfAPromptTakeSeedsInARow) {
  TestServer server;
  server.start();
  const auto result =
      server.post(R"({"prompt": ["a", "b"], "n": 2, "seed": 5, "stop": ["q"], "echo": true})");
  ASSERT_TRUE(result);
  const Json answer = Json::parse(result->body);
  ASSERT_EQ(answer["choices"].size(), 4U);
  int64_t tokens = 0;
  for (int i = 0; i < 4; ++i) {
    const char last = i < 2 ? 'a' : 'b';
    std::string text = letters(last, 5 + i % 2, 5);
    const size_t stop = text.find('q');
    tokens += static_cast<int64_t>(stop == std::string::npos ? 5 : stop + 1);
    EXPECT_EQ(answer["choices"][i]["index"], i);
    EXPECT_EQ(answer["choices"][i]["text"], last + text.substr(0, stop));
    EXPECT_EQ(answer["choices"][i]["finish_reason"], stop == std::string::npos ? "length" : "stop");
  }
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 4) << "each prompt counts once";
  EXPECT_EQ(answer["usage"]["completion_tokens"], tokens);
}

TEST(Server, TheStreamIsTheWholeAnswerInPieces) {
  TestServer server;
  server.engine.step_time = std::chrono::microseconds(300);
  server.start();
  Json request = {{"prompt", {"ab", "c"}},  {"n", 2},       {"seed", 3}, {"max_tokens", 60},
                  {"stop", {"xyzab", "k"}}, {"logprobs", 2}};
  const Json whole = Json::parse(server.post(request)->body);
  request["stream"] = true;
  request["stream_options"] = {{"include_usage", true}};
  const auto result = server.post(request);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream");
  const std::vector<Json> stream = events(result->body);
  ASSERT_GT(stream.size(), 6U);
  EXPECT_EQ(stream.back(), "[DONE]");
  EXPECT_TRUE(stream[stream.size() - 2]["choices"].empty());
  EXPECT_EQ(stream[stream.size() - 2]["usage"], whole["usage"]);
  std::vector<Json> choices(4);
  for (size_t i = 0; i + 2 < stream.size(); ++i) {
    EXPECT_EQ(stream[i]["id"], stream[0]["id"]);
    EXPECT_TRUE(stream[i]["usage"].is_null());
    ASSERT_EQ(stream[i]["choices"].size(), 1U);
    const Json& piece = stream[i]["choices"][0];
    Json& choice = choices[piece["index"]];
    if (choice.is_null()) {
      choice = piece;
      continue;
    }
    EXPECT_TRUE(choice["finish_reason"].is_null()) << "a piece after the end";
    choice["text"] = choice["text"].get<std::string>() + piece["text"].get<std::string>();
    choice["finish_reason"] = piece["finish_reason"];
    for (auto& [name, list] : choice["logprobs"].items()) {
      for (const Json& item : piece["logprobs"][name]) list.push_back(item);
    }
  }
  EXPECT_EQ(Json(choices), whole["choices"]);
}

TEST(Server, StreamsWholeCharacters) {
  TestServer server;
  const std::string text = "\u00E9\u6CB3\U0001F642\xFFz";
  server.engine.draw = [&](const Text&, int64_t i) {
    return 3 + static_cast<unsigned char>(text[i % text.size()]);
  };
  server.engine.step_time = std::chrono::microseconds(500);
  server.start();
  const auto result = server.post(Json{{"max_tokens", 2 * text.size()}, {"stream", true}});
  std::string all;
  std::vector<Json> stream = events(result->body);
  stream.pop_back();
  for (const Json& event : stream) all += event["choices"][0]["text"].get<std::string>();
  EXPECT_EQ(all, with_replacements(text + text));
}

TEST(Server, LogProbabilitiesNameTheLikeliestTokensAndTheDrawnOne) {
  TestServer server;
  server.start();
  const Json answer = Json::parse(
      server.post(R"({"prompt": "a", "seed": 0, "max_tokens": 2, "logprobs": 1})")->body);
  const std::string text = letters('a', 0, 2);
  EXPECT_EQ(
      answer["choices"][0]["logprobs"],
      (Json{{"tokens", {text.substr(0, 1), text.substr(1)}},
            {"token_logprobs", {-0.5, -0.5}},
            {"top_logprobs",
             {{{"a", -1.0}, {text.substr(0, 1), -0.5}}, {{"a", -1.0}, {text.substr(1), -0.5}}}},
            {"text_offset", {0, 1}}}));
}

TEST(Server, TakesIdsAsTheyAre) {
  TestServer server;
  std::vector<std::vector<int32_t>> seen;
  server.engine.draw = [&](const Text& text, int64_t) {
    seen.push_back(text.prompt);
    return 'x' + 3;
  };
  server.start();
  const auto result =
      server.post(R"({"prompt": [[5, 6], [100, 13]], "max_tokens": 1, "echo": true})");
  const Json answer = Json::parse(result->body);
  EXPECT_EQ(answer["choices"][0]["text"], std::string("\x02\x03x"));
  EXPECT_EQ(answer["choices"][1]["text"], "a\nx");
  EXPECT_EQ(seen, (std::vector<std::vector<int32_t>>{{5, 6}, {100, 13}}));
}

TEST(Server, ListsItsModelItsHealthAndItsMetrics) {
  TestServer server;
  server.start();
  httplib::Client client = server.client();
  const Json models = Json::parse(client.Get("/v1/models")->body);
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["id"], "fake");
  EXPECT_EQ(models["data"][0]["object"], "model");
  EXPECT_EQ(client.Get("/health")->body, "{\"status\":\"ok\"}");
  EXPECT_EQ(server.post(R"({"prompt": "abc", "max_tokens": 4})")->status, 200);
  EXPECT_EQ(server.post("{")->status, 400);
  const auto all_counted = [&] {
    return server.metrics.requests(200) == 1 && server.metrics.requests(400) == 1;
  };
  EXPECT_TRUE(wait_until(all_counted));
  const auto metrics = client.Get("/metrics");
  EXPECT_EQ(metrics->get_header_value("Content-Type"), "text/plain; version=0.0.4");
  for (const char* line :
       {"# TYPE stablemask_requests_total counter\n", "requests_total{status=\"200\"} 1\n",
        "requests_total{status=\"400\"} 1\n", "stablemask_prompt_tokens_total 4\n",
        "stablemask_generated_tokens_total 4\n", "stablemask_queue_length 0\n",
        "stablemask_running 0\n", "first_token_seconds_bucket{le=\"+Inf\"} 1\n",
        "first_token_seconds_count 1\n", "request_seconds_bucket{le=\"300\"} 2\n",
        "request_seconds_count 2\n"}) {
    EXPECT_NE(metrics->body.find(line), std::string::npos) << line << "\n" << metrics->body;
  }
}

TEST(Server, AsksForItsKey) {
  TestServer server;
  server.options.api_key = "secret";
  server.start();
  httplib::Client client = server.client();
  EXPECT_EQ(client.Get("/health")->status, 200);
  EXPECT_EQ(client.Get("/v1/models")->status, 401);
  EXPECT_EQ(client.Get("/v1/models", {{"Authorization", "Bearer secrex"}})->status, 401);
  EXPECT_EQ(client.Get("/v1/models", {{"Authorization", "Bearer secret"}})->status, 200);
  const auto refused = server.post("{}");
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->status, 401);
  EXPECT_EQ(Json::parse(refused->body)["error"]["code"], "invalid_api_key");
}

struct Malformed {
  std::string request;
  int status;
  std::string message;
};

TEST(Server, RefusesMalformedRequestsAndGoesOn) {
  TestServer server;
  server.options.max_body_bytes = 1000;
  server.options.read_seconds = 0.2;
  server.start();
  const std::string post = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n";
  const std::string json = "Content-Type: application/json\r\n";
  const std::string chunked = "Transfer-Encoding: chunked\r\n\r\n";
  const std::vector<Malformed> requests = {
      {"hello\r\n\r\n", 400, ""},
      {"GET / HTTP/9.9\r\n\r\n", 400, ""},
      {"GET /" + std::string(10'000, 'x') + " HTTP/1.1\r\n\r\n", 414, ""},
      {"GET /nothing HTTP/1.1\r\n\r\n", 404, "there is no GET /nothing"},
      {"GET /v1/completions HTTP/1.1\r\n\r\n", 404, "there is no GET"},
      {"POST /nothing HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 404, "there is no POST /nothing"},
      {"DELETE /v1/models HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 404, "there is no DELETE"},
      {"POST /nothing HTTP/1.1\r\nContent-Length: 99999\r\n\r\n{}", 404, "there is no POST"},
      {"GET /health HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400, "have no body"},
      {post + json + "\r\n", 400, "no JSON"},
      {post + "Content-Length: 2\r\n\r\n{}", 415, "application/json"},
      {post + "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415, "application/json"},
      {post + "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 2\r\n\r\n{}", 415,
       "form data"},
      {post + json + "Content-Length: 5\r\n\r\n{\"a\":", 400, "no JSON"},
      {post + json + "Content-Length: 50\r\n\r\n{}", 400, "cut off"},
      {post + json + "Content-Length: 1001\r\n\r\n" + std::string(1001, ' '), 413, "1000 bytes"},
      {post + json + "Content-Length: 99999999999999999999\r\n\r\n{}", 413, "1000 bytes"},
      {post + json + "Content-Length: -1\r\n\r\n{}", 413, "1000 bytes"},
      {post + json + chunked + "zz\r\n{}\r\n0\r\n\r\n", 400, "malformed"},
      {post + json + chunked + "3e9\r\n" + std::string(1001, ' ') + "\r\n0\r\n\r\n", 413,
       "1000 bytes"},
      {post + json + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 400, ""},
      {post + json + "Content-Length: 14\r\n\r\n{\"prompt\": [1]", 400, "no JSON"}};
  for (const Malformed& malformed : requests) {
    SCOPED_TRACE(malformed.request.substr(0, 120));
    RawClient client(server.port());
    client.send(malformed.request);
    const std::string head = client.read_to("\r\n\r\n");
    EXPECT_TRUE(head.starts_with("HTTP/1.1 " + std::to_string(malformed.status))) << head;
    if (malformed.message.empty()) continue;
    const std::string answer = client.read_to("\"code\":");
    EXPECT_NE(answer.find(malformed.message), std::string::npos) << answer;
    EXPECT_EQ(head.find("Content-Type"), head.rfind("Content-Type", head.find("\r\n\r\n"))) << head;
  }
  EXPECT_EQ(server.post("{}")->status, 200);
}

TEST(Server, AConnectionGoesOnAfterAnErrorButNotAfterHalfABody) {
  TestServer server;
  server.options.max_body_bytes = 100;
  server.start();
  httplib::Client client = server.client();
  client.set_keep_alive(true);
  for (const int status : {400, 200, 400, 200}) {
    const auto result =
        client.Post("/v1/completions", status == 200 ? "{}" : "{]", "application/json");
    ASSERT_TRUE(result);
    EXPECT_EQ(result->status, status);
  }
  // The rest of a body that was not read is no request.
  RawClient half(server.port());
  half.send("POST /nothing HTTP/1.1\r\nContent-Length: 1000\r\n\r\nGET /health HTTP/1.1\r\n\r\n");
  const std::string all = half.read_to_end();
  EXPECT_TRUE(all.starts_with("HTTP/1.1 404")) << all;
  EXPECT_EQ(all.find("HTTP/1.1 200"), std::string::npos) << all;
}

TEST(Server, HoldsToItsLimits) {
  TestServer server;
  server.context = 20;
  server.max_prompt_tokens = 10;
  server.start();
  const auto message = [&](const Json& request, const std::string& param) {
    const auto result = server.post(request);
    EXPECT_EQ(result->status, 400);
    const Json error = Json::parse(result->body)["error"];
    EXPECT_EQ(error["param"], param);
    EXPECT_EQ(error["code"], "context_length_exceeded");
    return error["message"].get<std::string>();
  };
  EXPECT_EQ(message({{"prompt", std::string(10, 'a')}}, "prompt"),
            "prompt: has 11 tokens; this server takes at most 10");
  EXPECT_EQ(message({{"prompt", std::string(9, 'a')}, {"max_tokens", 11}}, "max_tokens"),
            "max_tokens: the prompt leaves room for 10 tokens, not 11");
  EXPECT_EQ(server.post(Json{{"prompt", std::string(9, 'a')}, {"max_tokens", 10}})->status, 200);
  EXPECT_TRUE(server.idle());
}

TEST(Server, WithoutMaxTokensTheTextEndsWhereTheContextDoes) {
  TestServer server;
  server.context = 12;
  server.limits.defaults.max_tokens = 100;
  server.start();
  const Json answer = Json::parse(server.post(R"({"prompt": "abc"})")->body);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 8);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
}

TEST(Server, NamesAFailureOfAText) {
  TestServer server;
  server.engine.draw = [](const Text& text, int64_t i) {
    return text.prompt.size() > 2 && i == 2 ? -1 : 'x' + 3;
  };
  server.start();
  const auto result = server.post(R"({"prompt": "abc"})");
  EXPECT_EQ(result->status, 500);
  EXPECT_EQ(Json::parse(result->body)["error"]["message"], "the logit of id 3 is nan");
  EXPECT_EQ(Json::parse(result->body)["error"]["type"], "server_error");
  const std::vector<Json> stream =
      events(server.post(R"({"prompt": "abc", "stream": true})")->body);
  EXPECT_EQ(stream.back()["error"]["message"], "the logit of id 3 is nan");
  EXPECT_EQ(server.post(R"({"prompt": "a"})")->status, 200) << "other texts go on";
}

TEST(Server, RefusesAPortInUse) {
  TestServer server;
  server.start();
  TestServer second;
  second.options.port = server.port();
  try {
    second.start();
    ADD_FAILURE() << "two servers on one port";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.what(), "cannot listen on 127.0.0.1 port " + std::to_string(server.port()) +
                                ": Address already in use; choose another --host or --port");
  }
}

}  // namespace
}  // namespace stablemask::serve
