#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/commands/text_job.h"
#include "stablemask/infer/load.h"

namespace stablemask::commands {

struct PromptsOptions {
  std::string prompts, out;            ///< paths; "-": standard input and output
  int64_t samples = 1;                 ///< texts of each prompt; sample i has the line's seed + i
  int64_t batch = 0;                   ///< sequences at a time; 0: chosen
  bool heal = true;                    ///< PromptEncoder
  std::vector<std::string> overrides;  ///< of the model, for warnings
};

/// Continues every prompt of a JSONL file (read_prompt_file) and writes a line of JSON for each
/// sample, in the order of the prompts: id, sample (of several) and add_result_fields. An
/// interrupted call is continued by the next one with the same inputs (ResultFile). Throws
/// DataError for a bad line, NonFiniteError naming the line whose logits are not finite, once all
/// lines before it are written; Stopped, OutOfMemoryError, and as ResultFile does.
void generate_prompts(const LoadedModel& loaded, const TextSettings& settings,
                      const PromptsOptions& options);

}  // namespace stablemask::commands
