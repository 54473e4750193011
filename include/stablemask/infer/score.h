#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "stablemask/data/tokenizer.h"
#include "stablemask/nn/model.h"

namespace stablemask::infer {

/// A text to score, or a context and its continuation.
struct ScoreText {
  std::vector<int32_t> ids;  ///< without the EOS that the model reads first
  int64_t context = 0;       ///< ids at the front that are read and not scored; fewer than all
  bool greedy = false;       ///< find Score::greedy
};

struct Score {
  double nll = 0;       ///< negative log-likelihood of the scored ids in nats, summed in fp64
  int64_t tokens = 0;   ///< scored ids
  bool greedy = false;  ///< if asked for: every scored id is the likeliest one after those before
                        ///< it, the lowest among equally likely ones
};

struct ScoreOptions {
  int64_t window = 0;          ///< L ≥ 1, ids that the model reads at a time
  int64_t stride = 0;          ///< S in [1, L], ids scored by a window after the first; 0: L
  int64_t batch = 0;           ///< windows of a forward pass on a GPU; 0: chosen
  int32_t eos_id = -1;         ///< EOS of the tokenizer; required
  int64_t vocab_size = 0;      ///< ids that can be the likeliest one; 0: the model's
  bool document_mask = false;  ///< as in EvalOptions; each text is a document
  /// Called after each forward pass with the number of ids scored by this call.
  std::function<void(int64_t scored)> progress = {};
};

/// Scores each text by itself: the model reads x = EOS, id_0, id_1, … and predicts id_0, id_1, …
/// Windows are those of lm-eval's loglikelihood and loglikelihood_rolling (context_len L − S + 1):
/// the first one scores up to L ids, each later one the next S or what is left of them, and each
/// reads the last L inputs up to its end, or all if there are fewer.
///
/// A text's score does not depend on the other texts. On the CPU each window is a forward pass of
/// its own, so the score has the same bits in whatever company. On a GPU a pass has a number of
/// rows and columns that is a function of the window's length and `batch`, unused rows and columns
/// filled with EOS, and the head multiplies a fixed number of rows: the same bits within a process
/// without `document_mask`; another `batch` changes the rounding. Texts are read in the order of
/// their lengths there, so a call should get many.
///
/// Leaves the model in evaluation mode. Throws ConfigError for options out of range, DataError for
/// a text without an id to score or with an id outside the vocabulary, OutOfMemoryError, Stopped.
std::vector<Score> score(nn::Transformer& model, const std::vector<ScoreText>& texts,
                         const ScoreOptions& options);

/// A continuation of a context as lm-eval encodes the two: together, after the white space at the
/// end of the context has been moved to the continuation. A token that has bytes of both belongs to
/// the continuation; of a tokenizer that is not lossless, those after as many tokens as the context
/// has alone. Throws DataError for an empty continuation or invalid UTF-8.
ScoreText encode_pair(const Tokenizer& tokenizer, const std::string& context,
                      const std::string& continuation);

}  // namespace stablemask::infer
