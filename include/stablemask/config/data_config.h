#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// Section "data": token shards, tokenizer and loader.
namespace stablemask {

enum class VerifyKind { kPayload, kHeaders };

struct DataConfig {
  std::vector<std::string> train;  ///< paths of the token shards
  std::string valid;               ///< path of the validation shard; "": no validation
  std::string tokenizer;           ///< path of the SentencePiece .model
  bool document_mask = false;
  int64_t prefetch = 4;                      ///< micro-batches prepared ahead of the training step
  VerifyKind verify = VerifyKind::kPayload;  ///< how much of each shard is checked at the start
};

}  // namespace stablemask
