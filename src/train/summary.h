#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/data/loader.h"
#include "stablemask/report/terminal_text.h"

namespace stablemask {

/// How much a run trains on. Products of counts, which may exceed 63 bits.
struct RunSize {
  double step_tokens = 0;
  double run_tokens = 0;
  int64_t sequences = 0;         ///< of all training sets, an epoch
  std::optional<double> epochs;  ///< nullopt: not one sequence
};
/// `sequences`: of an epoch.
RunSize run_size(const TrainConfig& train, int64_t sequences);

/// 1234567 → "1,234,567"; four significant digits where a double is not exact.
std::string large_count(double count);

/// "1,000 in 120 sequences, 97.1 % filled, 12,345 training targets, 3 truncated to 257 tokens, 1
/// dropped because its targets are cut off"; "": there are none.
std::string samples_text(const SequenceCounts& sequences, int64_t context);

/// What a resolved config does not state.
struct RunFacts {
  int64_t train_tokens = 0;
  std::optional<int64_t> valid_tokens;  ///< nullopt: no validation
  std::string device;                   ///< "cpu", or the GPU's name
  bool bf16 = false;
  int threads = 0;  ///< of a process
  int64_t processes = 1;
  std::vector<SetSize> sets = {};  ///< RunInputs::sets; several: a mixture
  bool bf16_instructions = true;   ///< ops::cpu_has_bf16()
};

/// "60.0 %, 1.25 epochs" of one set of a mixture.
std::string share_text(const SetSize& set, const TrainConfig& train);

/// The rows that a run begins with: model, mask, tokens, data, device, and where things go.
/// `config` is resolved and has its vocabulary size.
std::vector<LabelledText> run_summary(const Config& config, const RunFacts& facts);

}  // namespace stablemask
