#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

/// Section "data": token shards, tokenizer and loader.
namespace stablemask {

enum class VerifyKind { kPayload, kHeaders };

/// A training shard. The entries of data.train either all have a weight, or none has.
struct TrainShard {
  TrainShard(std::string path_in, double weight_in = 0)  // NOLINT: a path alone is an entry
      : path(std::move(path_in)), weight(weight_in) {}
  bool operator==(const TrainShard&) const = default;

  std::string path;
  double weight;  ///< share of the training sequences, relative to the others'; 0: none is stated
};

struct DataConfig {
  std::vector<TrainShard> train;
  std::string valid;      ///< path of the validation shard; "": no validation
  std::string tokenizer;  ///< path of the SentencePiece .model
  bool document_mask = false;
  int64_t prefetch = 4;                      ///< micro-batches prepared ahead of the training step
  VerifyKind verify = VerifyKind::kPayload;  ///< how much of each shard is checked at the start
};

}  // namespace stablemask
