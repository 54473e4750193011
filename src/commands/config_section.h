#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace stablemask::commands {

/// The fields that the config file `path` states in `section` ("eval"), as overrides:
/// "eval.window=64". The file is checked as a whole; ConfigError with its lines and columns. One
/// warning names the other sections of the file, which have no effect.
std::vector<std::string> stated_fields(const std::string& path, const std::string& section);

/// A value that the config field `path` ("generate.top_p") accepts, so that a flag and the field it
/// sets have the same range.
CLI::Validator value_of_field(const std::string& path);

}  // namespace stablemask::commands
