#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/nn/model.h"

namespace stablemask {

struct LoadOptions {
  DeviceKind device = DeviceKind::kAuto;
  DtypeKind dtype = DtypeKind::kAuto;
  /// "path.to.field=value", typed as by --set, applied to the config stored in the checkpoint.
  /// Allowed are the fields that need no other weights: see inference_fields(). A mask that they
  /// turn on in a model without has the defaults of the config where they do not state its fields.
  std::vector<std::string> overrides = {};
  /// Mask length N, before `overrides`: "infinite", a number, or "trained", the checkpoint's; "":
  /// not given. Needs a model with StableMask.
  std::string mask_length = "";
  /// model.window, before `overrides`: keys that a row may see, its own included; 0: all.
  std::optional<int64_t> attention_window = {};
  HashProgress progress = {};  ///< of checking the files
  int64_t local_rank = 0;      ///< of this process on its machine: which GPU, see select_device
  WeightKind weights = WeightKind::kAveraged;
};

/// A checkpoint's model, ready to evaluate or generate.
struct LoadedModel {
  Config config;          ///< of the run that saved the checkpoint, with the overrides applied
  nn::Transformer model;  ///< in evaluation mode
  Tokenizer tokenizer;
  std::string folder;  ///< checkpoint folder
  int64_t step = 0;    ///< optimizer steps done when it was saved
};

/// Loads a checkpoint folder, or the newest checkpoint of a run folder. Every file it uses is
/// checked against its SHA-256; optimizer.safetensors is neither read nor required, nor is
/// trained.safetensors without WeightKind::kTrained. Peak memory is model.safetensors (fp32) plus
/// the model plus one fp32 tensor. Throws CheckpointError when the checkpoint is missing, damaged
/// or does not fit its config; NonFiniteError when a weight is not finite; ConfigError for an
/// override that is unknown, malformed or not allowed, a mask length for a model without
/// StableMask, or a device that is not available; OutOfMemoryError.
LoadedModel load_model(const std::string& path, const LoadOptions& options = {});

/// The fields that LoadOptions::overrides may set: "model.attention"; "eval.*" stands for every
/// field of the section.
const std::vector<std::string>& inference_fields();

/// kAuto: the GPU when there is one that this build has kernels for, else the CPU. Of several GPUs
/// number `local_rank`, the process's among those of this machine; where only one is visible, that
/// one. The GPU becomes the current one of the calling thread. Throws ConfigError for kCuda without
/// a usable GPU, and when there are fewer GPUs than processes.
at::Device select_device(DeviceKind kind, int64_t local_rank = 0);

/// kAuto: bf16 on a GPU, fp32 on a CPU.
at::ScalarType select_dtype(DtypeKind kind, at::Device device);

}  // namespace stablemask
