#include "stablemask/train/torch_settings.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <cstdlib>

namespace stablemask {

void configure_torch(const TrainConfig& train) {
  if (train.threads > 0) at::set_num_threads(static_cast<int>(train.threads));
  // cuBLAS gives reproducible results only with a workspace of fixed size.
  if (train.deterministic) ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::globalContext().setDeterministicAlgorithms(train.deterministic, /*warn_only=*/false);
  // Otherwise deterministic mode also fills every new tensor, for kernels that read what none
  // wrote.
  if (train.deterministic) at::globalContext().setDeterministicFillUninitializedMemory(false);
}

}  // namespace stablemask
