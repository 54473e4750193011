#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "stablemask/config/config.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/nn/model.h"

namespace stablemask {

/// A checkpoint's model, ready to evaluate or generate.
struct LoadedModel {
  Config config;  ///< of the run that saved it
  nn::Transformer model;
  Tokenizer tokenizer;
  std::string folder;  ///< the checkpoint's
  int64_t step = 0;
};

/// Loads a checkpoint folder, or a run folder's newest checkpoint, with every hash checked. Throws
/// CheckpointError; ConfigError when the device is not there; OutOfMemoryError.
LoadedModel load_model(const std::string& checkpoint, DeviceKind device, DtypeKind dtype);

/// kAuto: the GPU if there is one that this build has kernels for. Throws ConfigError when kCuda is
/// asked for and there is none.
at::Device select_device(DeviceKind kind);

/// kAuto: bf16 on a GPU, fp32 on the CPU.
at::ScalarType select_dtype(DtypeKind kind, at::Device device);

}  // namespace stablemask
