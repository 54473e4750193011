#pragma once

#include <memory>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/data/loader.h"
#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask {

/// The files that a run reads, open.
struct RunInputs {
  Tokenizer tokenizer;
  std::vector<std::shared_ptr<const Shard>> train;
  std::shared_ptr<const Shard> valid;  ///< null: no validation
  std::vector<double> weights = {};    ///< of the training shards; empty: no mixture
  std::shared_ptr<const SequenceSets> sequences = {};  ///< for training

  int64_t train_tokens() const;
  /// The sizes of the sets of sequences, with the share of each in the run that `config` states.
  std::vector<SetSize> sets(const TrainConfig& config) const;
  bool has_samples() const;  ///< for training
  /// One hash for the contents of all training shards in order, and for their weights.
  std::string train_sha256() const;
};

/// Opens tokenizer and shards, checks their headers, refuses shards of another tokenizer, and packs
/// samples for train.context. Throws ConfigError, DataError.
RunInputs open_inputs(const Config& config);

/// Replaces train.epochs or train.tokens of `config` by the steps that they come to
/// (config.h's resolve_steps); returns whether one of them was stated. Throws ConfigError.
bool resolve_length(Config& config, const RunInputs& inputs);

/// Hashes all shards completely and checks the range of their tokens, in parallel. Throws
/// DataError, or Stopped on a stop signal.
void verify_payloads(const RunInputs& inputs, const VerifyProgress& progress);

/// `config` with model.vocab_size taken from the tokenizer; a stated size may be larger (padding
/// for fast matrix products), never smaller.
Config with_vocabulary(Config config, const Tokenizer& tokenizer);

/// `config` with data.document_mask on when there are samples to train on, which are documents
/// that share sequences. Throws ConfigError when the model's mask cannot be used with it.
Config with_document_mask(Config config, const RunInputs& inputs);

/// Warning for a fresh pretraining run whose vocabulary is larger than the tokenizer's `tokens`
/// rounded up to a multiple of 128, as when a preset's is used with a small tokenizer: names the
/// memory that the unused rows take in training. "": no warning.
std::string vocabulary_warning(const Config& config, int64_t tokens);
/// Logs it, if there is one. The vocabulary of a finetuned model is its checkpoint's.
void warn_of_vocabulary(const Config& config, int64_t tokens);

}  // namespace stablemask
