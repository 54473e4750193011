#include "src/serve/completion.h"

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/utf8.h"

namespace stablemask::serve {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

/// How long a wait lasts at most: after it the time limit and the client are looked at.
constexpr std::chrono::milliseconds kPatience{100};

std::string random_id() {
  std::random_device random;
  return format("cmpl-%08x%08x%08x", random(), random(), random());
}

Clock::time_point after(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

Json logprobs_json(const std::vector<TokenEntry>& entries) {
  Json json = {{"tokens", Json::array()},
               {"token_logprobs", Json::array()},
               {"top_logprobs", Json::array()},
               {"text_offset", Json::array()}};
  for (const TokenEntry& entry : entries) {
    json["tokens"].push_back(entry.text);
    json["token_logprobs"].push_back(entry.logprob);
    Json top = Json::object();
    for (const auto& [text, logprob] : entry.top) {
      if (!top.contains(text)) top[text] = logprob;  // two ids may have one text
    }
    json["top_logprobs"].push_back(std::move(top));
    json["text_offset"].push_back(entry.offset);
  }
  return json;
}

/// Throws ApiError where a prompt and max_tokens do not fit; a default of max_tokens is lowered.
void require_length(const CompletionContext& context, bool states_max_tokens, int64_t prompt,
                    int64_t& max_tokens) {
  const auto refuse = [](const char* pattern, int64_t a, int64_t b, const char* field) {
    throw ApiError(400, format(pattern, static_cast<long long>(a), static_cast<long long>(b)),
                   field, "context_length_exceeded");
  };
  const int64_t most = std::min(context.max_prompt_tokens, context.context - 1);
  if (prompt > most) {
    refuse("prompt: has %lld tokens; this server takes at most %lld", prompt, most, "prompt");
  }
  const int64_t room = context.context - prompt;
  if (!states_max_tokens) max_tokens = std::min(max_tokens, room);
  if (max_tokens > room) {
    refuse("max_tokens: the prompt leaves room for %lld tokens, not %lld", room, max_tokens,
           "max_tokens");
  }
}

PromptIds ids_of(const CompletionContext& context, const Prompt& prompt) {
  if (!prompt.ids.empty()) return {prompt.ids};
  try {
    return context.encode(prompt.text);
  } catch (const DataError& error) {
    throw ApiError(400, std::string("prompt: ") + error.what(), "prompt");
  }
}

std::string choice_json(const Choice& choice, size_t index, bool logprobs) {
  return json_text(Json{{"text", choice.unsent},
                        {"index", index},
                        {"logprobs", logprobs ? logprobs_json(choice.entries) : Json()},
                        {"finish_reason", choice.ended() ? Json(choice.finish_reason) : Json()}});
}

void submit(Scheduler& scheduler, std::vector<Text> texts,
            const std::shared_ptr<Channel>& channel) {
  switch (scheduler.submit(std::move(texts), channel)) {
    case Scheduler::Submitted::kTaken:
      return;
    case Scheduler::Submitted::kFull:
      throw ApiError(429, "the server has too many requests waiting; try again later", "",
                     "queue_full");
    case Scheduler::Submitted::kClosed:
      throw ApiError(503, "the server is stopping", "", "stopping");
  }
}

}  // namespace

void Choice::collect() {
  unsent += text.take_text();
  for (TokenEntry& entry : text.take_entries()) entries.push_back(std::move(entry));
}

Completion::Completion(const CompletionContext& context, CompletionRequest request,
                       std::function<bool()> left)
    : context_(context),
      request_(std::move(request)),
      left_(std::move(left)),
      deadline_(after(context.request_seconds)),
      created_(std::time(nullptr)),
      id_(random_id()) {
  std::vector<Text> texts;
  for (const Prompt& prompt : request_.prompts) {
    const PromptIds ids = ids_of(context, prompt);
    Text text{ids.ids, request_.settings, ids.first_ids, request_.logprobs};
    require_length(context, request_.states_max_tokens, static_cast<int64_t>(ids.ids.size()),
                   text.settings.max_tokens);
    std::string echo;
    if (request_.echo) {
      echo = prompt.ids.empty() ? prompt.text
                                : with_replacements(context.tokenizer.decode(prompt.ids));
    }
    const CompletionText::Options options = {request_.stop, ids.held, request_.logprobs >= 0,
                                             characters(echo)};
    prompt_tokens_ += static_cast<int64_t>(text.prompt.size());
    for (int64_t i = 0; i < request_.n; ++i) {
      choices_.push_back({CompletionText(context.tokenizer, options), echo});
      texts.push_back(text);
      const auto seed = static_cast<uint64_t>(text.settings.seed) + static_cast<uint64_t>(i);
      texts.back().settings.seed = static_cast<int64_t>(seed);
    }
  }
  // A reader that looks for stop strings, or sends a stream, wants each id at once.
  channel_ = std::make_shared<Channel>(texts.size(), request_.stream || !request_.stop.empty());
  submit(context.scheduler, std::move(texts), channel_);
}

Completion::~Completion() {
  if (channel_) channel_->drop_all();
}

void Completion::advance() {
  for (Event& event : channel_->take(kPatience)) apply(event);
  if (all_ended()) return;
  if (left_()) throw ClientLeft();
  if (Clock::now() > deadline_) {
    throw ApiError(504,
                   format("not complete after %g seconds, the longest that this server works "
                          "on a request; lower max_tokens or try again later",
                          context_.request_seconds),
                   "", "timeout");
  }
}

void Completion::apply(Event& event) {
  Choice& choice = choices_[event.text];
  if (choice.ended()) return;
  if (event.draw) {
    if (!choice.text.add(*event.draw)) {
      channel_->drop(event.text);
      end(event.text, "stop");
    }
    return;
  }
  switch (event.end) {
    case End::kLength:
      return end(event.text, "length");
    case End::kStop:
      return end(event.text, "stop");
    case End::kCancelled:
      throw ApiError(503, "the server stopped before the text was complete", "", "stopping");
    case End::kFailed:
      throw ApiError(500, event.error);
  }
}

void Completion::end(size_t index, const char* finish_reason) {
  choices_[index].text.finish();
  choices_[index].finish_reason = finish_reason;
}

bool Completion::all_ended() const { return std::ranges::all_of(choices_, &Choice::ended); }

std::string Completion::whole() {
  while (!all_ended()) advance();
  std::string choices;
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices_[i].collect();
    if (i > 0) choices += ',';
    choices += choice_json(choices_[i], i, request_.logprobs >= 0);
  }
  return json(choices, true);
}

std::string Completion::next_chunks() {
  std::string chunks;
  const auto add = [&](const std::string& data) { chunks += "data: " + data + "\n\n"; };
  advance();
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    if (choice.sent) continue;
    choice.collect();
    choice.sent = choice.ended();
    if (choice.unsent.empty() && choice.entries.empty() && !choice.sent) continue;
    add(json(choice_json(choices_[i], i, request_.logprobs >= 0), false));
    choice.unsent.clear();
    choice.entries.clear();
  }
  if (all_ended()) {
    if (request_.include_usage) add(json("", true));
    add("[DONE]");
    done_ = true;
  }
  return chunks;
}

std::string Completion::json(const std::string& choices, bool with_usage) const {
  std::string text = json_text(Json{{"id", id_},
                                    {"object", "text_completion"},
                                    {"created", created_},
                                    {"model", context_.limits.model}});
  text.pop_back();
  text += ",\"choices\":[" + choices + "]";
  if (with_usage) {
    int64_t completion = 0;
    for (const Choice& choice : choices_) completion += choice.text.tokens();
    text += ",\"usage\":" + json_text(Json{{"prompt_tokens", prompt_tokens_},
                                           {"completion_tokens", completion},
                                           {"total_tokens", prompt_tokens_ + completion}});
  } else if (request_.include_usage) {
    text += ",\"usage\":null";
  }
  return text + "}";
}

}  // namespace stablemask::serve
