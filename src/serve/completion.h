#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/serve/completion_request.h"
#include "src/serve/completion_text.h"
#include "src/serve/engine.h"
#include "src/serve/scheduler.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask::serve {

/// What all completions of a server have in common.
struct CompletionContext {
  const Tokenizer& tokenizer;
  /// Throws DataError for a text that cannot be encoded. Called by several threads.
  std::function<PromptIds(const std::string& text)> encode;
  Scheduler& scheduler;
  RequestLimits limits;
  int64_t context = 0;            ///< tokens of a prompt and its continuation
  int64_t max_prompt_tokens = 0;  ///< of a prompt
  double request_seconds = 0;     ///< from the start of a request to its last token
};

/// The client closed its connection: nobody waits for the answer.
struct ClientLeft : std::exception {};

/// One of the texts of a request.
struct Choice {
  /// Moves what has become certain into `unsent` and `entries`.
  void collect();
  bool ended() const { return !finish_reason.empty(); }

  CompletionText text;
  std::string unsent;
  std::vector<TokenEntry> entries = {};
  std::string finish_reason = {};  ///< "": goes on
  bool sent = false;               ///< with its finish reason
};

/// A request that is being answered. Its texts end with the object.
class Completion {
 public:
  /// Encodes and queues the texts. Throws ApiError: 400, 429 for a full queue, 503 for a server
  /// that stops. `left` tells whether the client left.
  Completion(const CompletionContext& context, CompletionRequest request,
             std::function<bool()> left);
  ~Completion();
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  /// Waits for the whole answer, a JSON object. Throws ApiError (500, 503, 504), ClientLeft.
  std::string whole();
  /// The next events of the stream, "data: …\n\n" each; "" when there are none for a while. Throws
  /// as whole().
  std::string next_chunks();
  /// Whether the stream has been returned to its end, "data: [DONE]".
  bool done() const { return done_; }

 private:
  /// Takes what has been drawn since.
  void advance();
  void apply(Event& event);
  void end(size_t index, const char* finish_reason);
  bool all_ended() const;
  std::string json(const std::string& choices, bool with_usage) const;

  const CompletionContext& context_;
  const CompletionRequest request_;
  const std::function<bool()> left_;
  const std::chrono::steady_clock::time_point deadline_;
  const int64_t created_;  ///< Unix time
  const std::string id_;
  std::shared_ptr<Channel> channel_;
  std::vector<Choice> choices_;
  int64_t prompt_tokens_ = 0;
  bool done_ = false;
};

}  // namespace stablemask::serve
