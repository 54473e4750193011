#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/dist/group.h"
#include "stablemask/infer/generator.h"
#include "stablemask/infer/prompt.h"
#include "stablemask/nn/model.h"
#include "stablemask/report/samples.h"

namespace stablemask {

/// Continues fixed prompts with a model that is being trained, with the same seed each time and as
/// the command `generate` does, with token healing.
class Sampler {
 public:
  struct Options {
    std::vector<std::string> prompts;
    GenerateConfig generate;
    /// Called with the tokens drawn so far and all that may be drawn; may be null.
    std::function<void(int64_t drawn, int64_t total)> progress;
  };
  /// `tokenizer` must outlive the object. Throws DataError for a prompt that is not UTF-8.
  Sampler(nn::Transformer model, const Tokenizer& tokenizer, Options options,
          std::shared_ptr<dist::Group> group);

  /// Process 0 continues every prompt and appends the results to `samples`. A prompt with logits
  /// that are not finite is left out, with a warning. Returns the stop signal that ended this early
  /// in any process, `samples` then being empty; 0: none. Throws ConfigError for a model that
  /// cannot run with a KV cache, OutOfMemoryError.
  int sample(int64_t step, std::vector<Sample>& samples);

 private:
  void sample_all(int64_t step, std::vector<Sample>& samples);
  void add(infer::Generator& generator, size_t index, Sample sample, std::vector<Sample>& samples);

  nn::Transformer model_;
  const Tokenizer& tokenizer_;
  Options options_;
  std::vector<infer::Prompt> prompts_;
  int64_t drawn_ = 0;  ///< ids of this call of sample
  std::shared_ptr<dist::Group> group_;
};

}  // namespace stablemask
