#pragma once

#include <map>
#include <string>

#include "stablemask/io/checkpoint.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

/// Whether no element is a NaN or an infinity; true for integers. `data` may be unaligned.
bool is_finite(const TensorView& tensor);

/// The name of the first tensor that is_finite refuses; "": there is none.
std::string first_not_finite(const std::map<std::string, TensorView>& tensors);

/// As above for the tensors of a safetensors file, which is read in pieces. Throws CheckpointError
/// for a file that SafetensorsFile::open refuses.
std::string first_not_finite(const std::string& path);

/// Throws NonFiniteError, "checkpoint FOLDER: NAME holds values that are not finite", naming the
/// first weight that has a NaN or an infinity.
void require_finite_weights(const Checkpoint& checkpoint);

}  // namespace stablemask
