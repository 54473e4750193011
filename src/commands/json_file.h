#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/output.h"

namespace stablemask::commands {

/// The output that --json names, "-" for standard output; null for "" (no --json). Throws
/// ConfigError when it cannot be written: to be called before the work.
inline std::unique_ptr<OutputFile> open_json(const std::string& path) {
  if (path.empty()) return nullptr;
  return std::make_unique<OutputFile>(path, OutputContent::kText, ExitCode::kConfig);
}

inline void write_json(OutputFile& file, const std::string& text) {
  file.write(text);
  file.commit();
}

/// The paths of the files in a checkpoint folder, which no output may replace.
inline std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;  // loading the checkpoint reports it
  std::filesystem::directory_iterator entry(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    files.push_back(entry->path().string());
  }
  return files;
}

}  // namespace stablemask::commands
