#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>

#include "stablemask/base/error.h"

namespace stablemask::commands {

/// Whether --json's file can be made: asked before minutes of work, not after. "" is none.
inline void require_writable(const std::string& path) {
  if (path.empty()) return;
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  if (::access(folder.c_str(), W_OK) != 0) {
    throw ConfigError("--json " + path + ": " + folder.string() + ": " + std::strerror(errno));
  }
}

}  // namespace stablemask::commands
