#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/io/checkpoint.h"
#include "stablemask/io/safetensors.h"

/// Models of Hugging Face's library transformers: a folder with config.json and safetensors files.
/// docs/interop.md lists the families and which fields of their config.json are honoured.
namespace stablemask::interop {

struct ImportOptions {
  std::string from;  ///< folder with config.json and model.safetensors or its index and shards
  std::string to;    ///< checkpoint folder to write; nothing of that name may exist
  /// SentencePiece model or tokenizer.json that goes into the checkpoint, with its companions
  /// (data/tokenizer.h); "": tokenizer.model of `from` or else its tokenizer.json.
  std::string tokenizer = "";
  bool without_tokenizer = false;  ///< write a checkpoint without one
  /// With it `from` is a folder of PEFT, adapter_config.json and adapter_model.safetensors, and
  /// `to` becomes a checkpoint of adapters of this checkpoint (or run, for its newest one).
  std::string base = "";
  /// "path.to.field=value", typed as by --set, of the fields that change no weight: see
  /// import_fields().
  std::vector<std::string> overrides = {};
  /// Fields of config.json that the family does not know and that may be passed over.
  std::vector<std::string> ignored_fields = {};
  HashProgress progress = {};  ///< bytes of the checkpoint's weights written so far, and in all
};

struct ImportSummary {
  std::string architecture;  ///< "LlamaForCausalLM", "adapters of LlamaForCausalLM"
  int64_t parameters = 0;
};

/// Converts a model into a checkpoint of step 0 whose config has the model and, as train.context,
/// the longest input that config.json states. bf16 and fp16 become fp32 without loss. Weights are
/// converted in pieces of a few MB (GPT-2's, which are stored transposed, tensor by tensor); the
/// model is never in memory as a whole.
///
/// Throws CheckpointError "FILE:LINE:COLUMN: FIELD: VALUE: REASON" for the first field of
/// config.json that the family cannot honour or that nobody knows; CheckpointError for absent,
/// damaged or unfitting weights, listing tensors that are missing, unknown or of a wrong shape or
/// type, and for weights that exist only in a pickle; NonFiniteError naming the tensor; DataError
/// for a tokenizer that data/tokenizer.h refuses or that has more ids than the model; ConfigError
/// for `overrides`. Adapters: also CheckpointError for fields of adapter_config.json by which PEFT
/// computes something else, and for adapters of projections that the base's class keeps in one
/// tensor, as GPT-2 does with queries, keys and values.
ImportSummary import_model(const ImportOptions& options);

/// Fields that ImportOptions::overrides may state; "eval.*" stands for a whole section.
const std::vector<std::string>& import_fields();

struct ExportOptions {
  std::string from;                      ///< checkpoint, or run for its newest one
  std::string to;                        ///< folder to write; nothing of that name may exist
  ElementType type = ElementType::kF32;  ///< kF32, kBf16 or kF16; rounded to the nearest, even
  uint64_t shard_bytes = 5'000'000'000;  ///< most bytes of weights in a file, if a tensor allows
  HashProgress progress = {};            ///< bytes written so far, and in all
  WeightKind weights = WeightKind::kAveraged;
};

struct ExportSummary {
  std::string architecture;
  int64_t files = 0;  ///< of weights
};

/// Writes a checkpoint's model as a folder for transformers: as the first of the families whose
/// config.json expresses the model exactly, else as StableMaskForCausalLM, whose Python files go
/// with it (AutoModelForCausalLM needs trust_remote_code=True). A checkpoint of adapters becomes a
/// folder of PEFT instead, for that class; `shard_bytes` has no effect. The folder appears complete
/// or not at all. Peak memory is model.safetensors and a few MB. Throws CheckpointError for a
/// checkpoint that is missing, damaged or does not fit its config, for a value beyond fp16's range,
/// for adapters that PEFT cannot express (as import_model), and when the folder cannot be written;
/// NonFiniteError as require_finite_weights.
ExportSummary export_model(const ExportOptions& options);

}  // namespace stablemask::interop
