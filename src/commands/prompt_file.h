#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/commands/text_job.h"

namespace stablemask::commands {

/// A line of a file of prompts.
struct PromptLine {
  int64_t number = 0;  ///< of the line, from 1
  nlohmann::json id;   ///< the field "id", or the line's number
  std::string prompt;
  std::vector<int32_t> ids;  ///< in place of the text, if not empty
  TextSettings settings;
  std::string hash;  ///< of the bytes of the line: the first 16 hex digits of its SHA-256
};

/// Reads JSONL: one object a line with the field "prompt", or "prompt_ids", a list of
/// token ids, and, if wanted, "id" (a text or a
/// number), "stop" (a text or a list of them) and the fields of the config's section "generate",
/// which go before `settings`. Empty lines are skipped. "-" is standard input. Throws DataError
/// with the line's number for anything else, or for no prompt at all.
std::vector<PromptLine> read_prompt_file(const std::string& path, const TextSettings& settings);

}  // namespace stablemask::commands
