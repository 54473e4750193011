#include "src/train/run_inputs.h"

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/text.h"
#include "stablemask/optim/optimizer.h"
#include "stablemask/optim/weight_average.h"

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

std::vector<SetSize> RunInputs::sets(const TrainConfig& config) const {
  return sequences->sizes(config.steps * config.batch, static_cast<uint64_t>(config.seed));
}

bool RunInputs::has_samples() const {
  return std::ranges::any_of(train, [](const auto& shard) { return shard->info().has_samples(); });
}

std::string RunInputs::train_sha256() const {
  Sha256 hash;
  for (const auto& shard : train) {
    const std::string& digest = shard->info().payload_sha256;
    hash.update(digest.data(), digest.size());
  }
  for (const double weight : weights) {
    const std::string text = format("weight %.17g\n", weight);
    hash.update(text.data(), text.size());
  }
  return hash.hex();
}

RunInputs open_inputs(const Config& run) {
  const DataConfig& config = run.data;
  if (config.tokenizer.empty()) {
    throw ConfigError(
        "/data/tokenizer: empty; name a SentencePiece .model file or a tokenizer.json");
  }
  if (config.train.empty()) throw ConfigError("/data/train: empty; name at least one token shard");
  RunInputs inputs{Tokenizer::load(config.tokenizer), {}, nullptr};
  for (const TrainShard& shard : config.train) {
    inputs.train.push_back(open_shard(shard.path, inputs.tokenizer));
    if (shard.weight > 0) inputs.weights.push_back(shard.weight);
  }
  if (!inputs.weights.empty() && inputs.weights.size() != inputs.train.size()) {
    throw ConfigError("/data/train: give all entries a weight, or none");
  }
  if (!config.valid.empty()) inputs.valid = open_shard(config.valid, inputs.tokenizer);
  LoaderOptions options;
  options.context = run.train.context;
  options.weights = inputs.weights;
  options.document_mask = config.document_mask || inputs.has_samples();
  inputs.sequences = std::make_shared<const SequenceSets>(inputs.train, options);
  return inputs;
}

bool resolve_length(Config& config, const RunInputs& inputs) {
  TrainConfig& train = config.train;
  if (train.epochs <= 0 && train.tokens <= 0) return false;
  resolve_steps(train, sum_of(inputs.sets(train)).total());
  return true;
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

Config with_document_mask(Config config, const RunInputs& inputs) {
  if (!inputs.has_samples()) return config;
  const StableMaskConfig& mask = config.model.stable_mask;
  if (mask.enabled && mask.mask_length.kind == MaskLengthSpec::Kind::kSequence) {
    throw ConfigError(
        "/model/stable_mask/mask_length: \"sequence\" cannot be used with samples, which share "
        "sequences; use a number");
  }
  config.data.document_mask = true;
  return config;
}

std::string vocabulary_warning(const Config& config, int64_t tokens) {
  constexpr int64_t kPadding = 128;
  const ModelConfig& model = config.model;
  const int64_t padded = (tokens + kPadding - 1) / kPadding * kPadding;
  if (model.vocab_size <= padded) return "";
  nn::Parameter rows;
  rows.role = nn::Role::kEmbedding;
  rows.shape = {model.vocab_size - tokens, model.channels};
  // Weights with the bits that bf16 lacks, and gradients: 4 bytes each.
  const int64_t average = config.train.ema_decay > 0 ? kAverageBytesPerParameter : 0;
  const int64_t bytes =
      ((8 + average) * rows.numel() + optimizer_bytes(config.optimizer, rows).state) *
      (model.tied_head ? 1 : 2);
  const auto commas = [](int64_t value) { return with_commas(static_cast<uint64_t>(value)); };
  return "model.vocab_size " + commas(model.vocab_size) + " is far more than the tokenizer's " +
         commas(tokens) + ": rows that no token uses take " +
         format("%.1f MB", static_cast<double>(bytes) / 1e6) +
         " in training; set model.vocab_size to 0, which takes the tokenizer's size";
}

void warn_of_vocabulary(const Config& config, int64_t tokens) {
  if (!config.train.init_from.empty()) return;
  const std::string warning = vocabulary_warning(config, tokens);
  if (!warning.empty()) log_warning(warning);
}

}  // namespace stablemask
