#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "stablemask/data/tokenizer.h"

namespace stablemask::interop {

/// Files of a tokenizer for the libraries tokenizers and transformers by name: tokenizer.json,
/// tokenizer_config.json and special_tokens_map.json. `context` is the longest input of the model.
///
/// They give the ids of Tokenizer::encode and decode all bytes that are UTF-8; transformers adds
/// the id of the line end before a text unless told otherwise (add_special_tokens=False), as
/// `stablemask generate` does. The unknown piece, which no text is encoded as, is their end-of-text
/// and padding token. Of a unigram model, segmentations whose scores differ by less than the
/// rounding error of fp32 may be others than SentencePiece's. Throws DataError for a model that the
/// format cannot express, which `stablemask tokenizer train` does not make.
std::map<std::string, std::string> tokenizer_files(const Tokenizer& tokenizer, int64_t context);

}  // namespace stablemask::interop
