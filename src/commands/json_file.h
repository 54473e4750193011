#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"

namespace stablemask::commands {

/// The --json path that stands for standard output.
constexpr const char* kStandardOutput = "-";

/// Throws ConfigError when the file of --json, or of another option, cannot be written: asked
/// before the work, not after it. "" (no --json) and "-" pass.
inline void require_writable(const std::string& path, const std::string& option = "--json") {
  if (path.empty() || path == kStandardOutput) return;
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  std::error_code absent;
  if (std::filesystem::is_directory(path, absent)) {
    throw ConfigError(option + " " + path + ": is a folder; name a file");
  }
  if (::access(folder.c_str(), W_OK) != 0) {
    throw ConfigError(option + " " + path + ": " + folder.string() + ": " + std::strerror(errno));
  }
}

/// Writes `text` to the file of --json, or to standard output for "-".
inline void write_json(const std::string& path, const std::string& text) {
  if (path == kStandardOutput) {
    std::fputs(text.c_str(), stdout);
  } else {
    write_file_atomically(path, text);
  }
}

}  // namespace stablemask::commands
