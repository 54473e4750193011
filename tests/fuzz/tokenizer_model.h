#pragma once

#include <string>

namespace stablemask::fuzz {

/// A sound SentencePiece model (BPE, 256 byte pieces, a few letters and merges) in protobuf's wire
/// format. A message appended to it is merged: more pieces, other settings.
const std::string& sound_model();

}  // namespace stablemask::fuzz
