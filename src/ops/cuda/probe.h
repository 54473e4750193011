#pragma once

namespace stablemask::ops::cuda {

/// nullptr when the current device can run kernels of this build; else the CUDA error's text.
const char* probe();

}  // namespace stablemask::ops::cuda
