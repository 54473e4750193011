#include <gtest/gtest.h>
#include <httplib.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/commands/launch.h"

/// The command `serve` with a model.
namespace stablemask::testing {
namespace {

using Json = nlohmann::json;

const std::string kCheckpoint = STABLEMASK_SOURCE_DIR "/tests/fixtures/checkpoint-v0";

/// The program as a server on a port that is free.
class ServeTest : public ::testing::Test {
 protected:
  void start(std::vector<const char*> options = {}) {
    std::vector<const char*> words = {
        "serve", "--checkpoint", kCheckpoint.c_str(), "--device", "cpu", "--port", "0"};
    words.insert(words.end(), options.begin(), options.end());
    process_ = start_program(folder_, words);
    const auto listens = [&] { return out().ends_with("\n"); };
    ASSERT_TRUE(wait_until(listens, 20)) << err();
    port_ = std::stoi(out().substr(out().rfind(':') + 1));
    client_.emplace("127.0.0.1", port_);
    client_->set_read_timeout(20);
  }
  void TearDown() override {
    if (process_ > 0) ::kill(process_, SIGKILL), exit_code_of(process_);
  }
  int end(int signal) {
    ::kill(process_, signal);
    const int code = exit_code_of(process_);
    process_ = 0;
    return code;
  }

  std::string out() const { return read_file(folder_ / "out.txt"); }
  std::string err() const { return read_file(folder_ / "err.txt"); }
  httplib::Result post(const Json& body) {
    return client_->Post("/v1/completions", body.dump(), "application/json");
  }
  std::string text(const Json& request) {
    const auto result = post(request);
    if (!result || result->status != 200) return result ? result->body : "no answer";
    return Json::parse(result->body)["choices"][0]["text"];
  }

  TemporaryFolder folder_;
  pid_t process_ = 0;
  int port_ = 0;
  std::optional<httplib::Client> client_;
};

TEST_F(ServeTest, GivesTheTextsThatGenerateGives) {
  start();
  EXPECT_EQ(out().find("serving checkpoint-v0 at http://127.0.0.1:"), 0U) << out();
  struct Settings {
    const char* flags;
    Json fields;
  };
  const std::vector<Settings> all = {
      {"--seed 7", {{"seed", 7}}},
      {"--greedy", {{"temperature", 0}}},
      {"--seed 3 --temperature 0.8 --top-k 20 --top-p 0.9 --set generate.min_p=0.02 "
       "--set generate.repetition_penalty=1.3",
       {{"seed", 3},
        {"temperature", 0.8},
        {"top_k", 20},
        {"top_p", 0.9},
        {"min_p", 0.02},
        {"repetition_penalty", 1.3}}}};
  TemporaryFolder elsewhere;
  std::vector<std::string> served(all.size());
  std::vector<std::thread> clients;  // together, and yet each as if it were alone
  for (size_t i = 0; i < all.size(); ++i) {
    Json request = {{"prompt", " The river"}, {"max_tokens", 20}};
    request.update(all[i].fields);
    clients.emplace_back([&, i, request] {
      httplib::Client client("127.0.0.1", port_);
      client.set_read_timeout(20);
      const auto result = client.Post("/v1/completions", request.dump(), "application/json");
      if (result) served[i] = Json::parse(result->body)["choices"][0]["text"];
    });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < all.size(); ++i) {
    const Outcome generated =
        run_program(elsewhere, "generate --device cpu --checkpoint " + kCheckpoint +
                                   " --prompt ' The river' --max-tokens 20 " + all[i].flags);
    EXPECT_EQ(" The river" + served[i] + "\n", generated.out) << generated.err;
  }
  const std::string first = served[0];
  EXPECT_EQ(text({{"prompt", " The river"}, {"max_tokens", 20}, {"seed", 7}, {"stop", {"\n"}}}),
            first.substr(0, first.find('\n')));
}

TEST_F(ServeTest, StopsWhenItIsAskedTo) {
  start({"--context", "4000", "--drain-seconds", "20"});
  std::string body;
  std::thread client([&] {
    const auto result = post({{"prompt", "a"}, {"max_tokens", 2000}});
    body = result ? result->body : "no answer";
  });
  httplib::Client other("127.0.0.1", port_);
  const auto running = [&] {
    const auto metrics = other.Get("/metrics");
    return metrics && metrics->body.find("stablemask_running 1") != std::string::npos;
  };
  EXPECT_TRUE(wait_until(running, 10));
  EXPECT_EQ(end(SIGTERM), 128 + SIGTERM);
  client.join();
  EXPECT_EQ(Json::parse(body)["usage"]["completion_tokens"], 2000);
  EXPECT_NE(err().find("stablemask: stopped by SIGTERM while serving\n"), std::string::npos)
      << err();
}

TEST_F(ServeTest, SaysWhatItCannotDo) {
  start({"--max-tokens", "5", "--model-name", "small"});
  const std::string port = std::to_string(port_);
  TemporaryFolder elsewhere;
  const auto serve = [&](const std::string& arguments) {
    return run_program(elsewhere,
                       "serve --device cpu --checkpoint " + kCheckpoint + " " + arguments);
  };
  expect_refusal(serve("--port " + port), 2, "port " + port + ": Address already in use");
  expect_refusal(serve("--port 0 --api-key-env NO_SUCH_KEY"), 2, "NO_SUCH_KEY");
  EXPECT_EQ(post({{"max_tokens", 6}})->status, 400);
  EXPECT_EQ(post({{"model", "checkpoint-v0"}})->status, 404);
  EXPECT_EQ(post({{"model", "small"}, {"max_tokens", 5}})->status, 200);
}

}  // namespace
}  // namespace stablemask::testing
