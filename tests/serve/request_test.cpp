#include "src/serve/completion_request.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace stablemask::serve {
namespace {

RequestLimits limits() {
  RequestLimits limits{"tiny", 100, 8, 320, {}};
  limits.defaults.temperature = 0.7;
  limits.defaults.max_tokens = 128;
  return limits;
}

CompletionRequest parse(const std::string& body) { return parse_completion(body, limits()); }

TEST(CompletionRequest, ReadsEveryField) {
  const CompletionRequest request = parse(R"({
      "model": "tiny", "prompt": "The", "max_tokens": 7, "temperature": 0, "top_p": 0.5, "n": 2,
      "stream": true, "stream_options": {"include_usage": true}, "logprobs": 3, "echo": false,
      "stop": ["a", "\n"], "seed": -5, "top_k": 4, "min_p": 0.1,
      "repetition_penalty": 1.2, "user": "me", "best_of": 1,
      "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "suffix": null})");
  ASSERT_EQ(request.prompts.size(), 1U);
  EXPECT_EQ(request.prompts[0].text, "The");
  EXPECT_EQ(request.settings.max_tokens, 7);
  EXPECT_TRUE(request.states_max_tokens);
  EXPECT_EQ(request.settings.temperature, 0);
  EXPECT_EQ(request.settings.top_p, 0.5);
  EXPECT_EQ(request.settings.top_k, 4);
  EXPECT_EQ(request.settings.min_p, 0.1);
  EXPECT_EQ(request.settings.repetition_penalty, 1.2);
  EXPECT_EQ(request.settings.seed, -5);
  EXPECT_EQ(request.n, 2);
  EXPECT_EQ(request.logprobs, 3);
  EXPECT_TRUE(request.stream && request.include_usage && !request.echo);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"a", "\n"}));
}

TEST(CompletionRequest, NullIsAbsentAndAbsentIsTheDefault) {
  for (const char* body : {"{}", R"({"model": null, "prompt": null, "max_tokens": null, "n": null,
      "stop": null, "temperature": null, "seed": null, "stream_options": null, "logprobs": null,
      "best_of": null, "unheard_of": null})"}) {
    const CompletionRequest request = parse(body);
    ASSERT_EQ(request.prompts.size(), 1U);
    EXPECT_EQ(request.prompts[0].text, "");
    EXPECT_TRUE(request.prompts[0].ids.empty() && request.stop.empty());
    EXPECT_EQ(request.settings.max_tokens, 100) << "the config's, but at most the limit";
    EXPECT_FALSE(request.states_max_tokens || request.stream || request.echo);
    EXPECT_EQ(request.settings.temperature, 0.7);
    EXPECT_EQ(request.n, 1);
    EXPECT_EQ(request.logprobs, -1);
  }
  std::set<int64_t> seeds;
  for (int i = 0; i < 10; ++i) seeds.insert(parse("{}").settings.seed);
  EXPECT_EQ(seeds.size(), 10U);
}

TEST(CompletionRequest, ReadsPromptsOfEveryKind) {
  const auto prompts = [](const std::string& prompt) {
    return parse("{\"prompt\": " + prompt + "}").prompts;
  };
  EXPECT_EQ(prompts(R"(["a", "", "é"])")[2].text, "é");
  EXPECT_EQ(prompts(R"(["a", "", "é"])").size(), 3U);
  ASSERT_EQ(prompts("[5, 0, 319]").size(), 1U);
  EXPECT_EQ(prompts("[5, 0, 319]")[0].ids, (std::vector<int32_t>{5, 0, 319}));
  ASSERT_EQ(prompts("[[5], [6, 7]]").size(), 2U);
  EXPECT_EQ(prompts("[[5], [6, 7]]")[1].ids, (std::vector<int32_t>{6, 7}));
}

struct Refusal {
  const char* body;
  int status;
  const char* param;    ///< "": null
  const char* message;  ///< a part of it
};

TEST(CompletionRequest, NamesTheFieldThatItRefuses) {
  const std::vector<Refusal> refusals = {
      {"", 400, "", "no JSON: line 1"},
      {"{\"prompt\": \"a\",}", 400, "", "no JSON: line 1, column 15"},
      {"{\"prompt\": \"\xFF\"}", 400, "", "UTF-8"},
      {"[1]", 400, "", "must be a JSON object"},
      {R"({"prompt": "a", "prompt": "b"})", 400, "prompt", "stated twice"},
      {R"({"tempreature": 1})", 400, "tempreature", "did you mean \"temperature\"?"},
      {R"({"messages": []})", 400, "messages", "no field of a completions request"},
      {R"({"model": "other"})", 404, "model", "the model is \"tiny\""},
      {R"({"model": 5})", 400, "model", "must be a string, not 5"},
      {R"({"prompt": 5})", 400, "prompt", "not 5"},
      {R"({"prompt": []})", 400, "prompt", "not an empty list"},
      {R"({"prompt": ["a", 5]})", 400, "prompt", "only strings"},
      {R"({"prompt": [5, "a"]})", 400, "prompt", "from 0 to 319, not \"a\""},
      {R"({"prompt": [[5], "a"]})", 400, "prompt", "only lists of token ids"},
      {R"({"prompt": [[]]})", 400, "prompt", "must not be empty"},
      {R"({"prompt": [320]})", 400, "prompt", "from 0 to 319, not 320"},
      {R"({"prompt": [-1]})", 400, "prompt", "not -1"},
      {R"({"prompt": [1.5]})", 400, "prompt", "not 1.5"},
      {R"({"prompt": [{}]})", 400, "prompt", "only strings"},
      {R"({"max_tokens": 0})", 400, "max_tokens", "from 1 to 100, not 0"},
      {R"({"max_tokens": 101})", 400, "max_tokens", "not 101"},
      {R"({"max_tokens": 5.0})", 400, "max_tokens", "must be an integer"},
      {R"({"max_tokens": "5"})", 400, "max_tokens", "not \"5\""},
      {R"({"max_tokens": 1e30})", 400, "max_tokens", "must be an integer"},
      {R"({"temperature": -0.1})", 400, "temperature", "from 0 to 100, not -0.1"},
      {R"({"temperature": true})", 400, "temperature", "not true"},
      {R"({"top_p": 0})", 400, "top_p", "above 0"},
      {R"({"top_p": 1.1})", 400, "top_p", "at most 1"},
      {R"({"top_k": -1})", 400, "top_k", "from 0"},
      {R"({"min_p": 1.5})", 400, "min_p", "from 0 to 1, not 1.5"},
      {R"({"repetition_penalty": 0})", 400, "repetition_penalty", "above 0"},
      {R"({"seed": "x"})", 400, "seed", "must be an integer"},
      {R"({"n": 9})", 400, "n", "from 1 to 8"},
      {R"({"n": 3, "prompt": ["a", "b", "c"]})", 400, "n", "may be at most 8"},
      {R"({"prompt": ["","","","","","","","",""]})", 400, "prompt", "may be at most 8"},
      {R"({"logprobs": true})", 400, "logprobs", "from 0 to 20, not true"},
      {R"({"logprobs": 21})", 400, "logprobs", "not 21"},
      {R"({"logprobs": 1, "echo": true})", 400, "echo", "not computed"},
      {R"({"stream": 1})", 400, "stream", "must be true or false"},
      {R"({"stream_options": {"include_usage": true}})", 400, "stream_options", "\"stream\": true"},
      {R"({"stream": true, "stream_options": {"x": 1}})", 400, "stream_options.x", "only include_"},
      {R"({"stream_options": 5})", 400, "stream_options", "must be an object"},
      {R"({"stop": ["a","b","c","d","e"]})", 400, "stop", "at most 4 strings, not 5"},
      {R"({"stop": ""})", 400, "stop", "1 to 1024 bytes"},
      {R"({"stop": [5]})", 400, "stop", "not 5"},
      {R"({"best_of": 2})", 400, "best_of", "not supported"},
      {R"({"presence_penalty": 0.5})", 400, "presence_penalty", "set it to 0, not 0.5"},
      {R"({"frequency_penalty": -2})", 400, "frequency_penalty", "not supported"},
      {R"({"logit_bias": {"5": 1}})", 400, "logit_bias", "not supported"},
      {R"({"suffix": "end"})", 400, "suffix", "only continues"},
      {R"({"user": 5})", 400, "user", "must be a string"}};
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.body);
    try {
      parse(refusal.body);
      ADD_FAILURE() << "accepted";
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status, refusal.status);
      EXPECT_NE(std::string(error.what()).find(refusal.message), std::string::npos) << error.what();
      const auto object = nlohmann::json::parse(error.json())["error"];
      EXPECT_EQ(object["message"], error.what());
      EXPECT_EQ(object["type"], "invalid_request_error");
      EXPECT_EQ(object["param"].is_null() ? "" : object["param"].get<std::string>(), refusal.param);
    }
  }
  EXPECT_THROW(parse("{\"stop\": \"" + std::string(1025, 'x') + "\"}"), ApiError);
}

}  // namespace
}  // namespace stablemask::serve
