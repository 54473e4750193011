#include "src/train/run_inputs.h"

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"

namespace stablemask {
namespace {

std::shared_ptr<const Shard> open_shard(const std::string& path, const Tokenizer& tokenizer) {
  auto shard = std::make_shared<const Shard>(Shard::open(path));
  shard->require_tokenizer(tokenizer.sha256());
  return shard;
}

}  // namespace

int64_t RunInputs::train_tokens() const {
  int64_t tokens = 0;
  for (const auto& shard : train) tokens += shard->size();
  return tokens;
}

std::string RunInputs::train_sha256() const {
  Sha256 hash;
  for (const auto& shard : train) {
    const std::string& digest = shard->info().payload_sha256;
    hash.update(digest.data(), digest.size());
  }
  return hash.hex();
}

RunInputs open_inputs(const DataConfig& config) {
  if (config.tokenizer.empty()) {
    throw ConfigError("/data/tokenizer: empty; name a SentencePiece .model file");
  }
  if (config.train.empty()) throw ConfigError("/data/train: empty; name at least one token shard");
  RunInputs inputs{Tokenizer::load(config.tokenizer), {}, nullptr};
  for (const std::string& path : config.train) {
    inputs.train.push_back(open_shard(path, inputs.tokenizer));
  }
  if (!config.valid.empty()) inputs.valid = open_shard(config.valid, inputs.tokenizer);
  return inputs;
}

void verify_payloads(const RunInputs& inputs, const VerifyProgress& progress) {
  std::vector<std::shared_ptr<const Shard>> shards = inputs.train;
  if (inputs.valid) shards.push_back(inputs.valid);
  verify_shards(shards, /*threads=*/0, progress);
}

Config with_vocabulary(Config config, const Tokenizer& tokenizer) {
  const int64_t size = tokenizer.vocab_size();
  if (config.model.vocab_size == 0) config.model.vocab_size = size;
  if (config.model.vocab_size < size) {
    throw ConfigError(
        format("/model/vocab_size: %lld is smaller than the tokenizer's %lld; leave it "
               "at 0 to take the tokenizer's",
               static_cast<long long>(config.model.vocab_size), static_cast<long long>(size)));
  }
  return config;
}

}  // namespace stablemask
