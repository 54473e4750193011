#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace stablemask::commands {

/// Throws ConfigError for an argument that is not UTF-8, with its number, the option before it and
/// the byte: names and texts from the command line go into JSON, which has no other encoding.
void require_utf8_arguments(int argc, const char* const* argv);

/// Checks the command words at the front of the command line, where CLI11 would only say that a
/// subcommand is required. Throws ConfigError for a word that is no command, with the command that
/// was probably meant: one of the same name in another group, or one of a similar name.
void require_known_command(const CLI::App& program, int argc, const char* const* argv);

/// The commands to choose from, one line each, when the command line names none, or a group of
/// commands without a command of it; "" otherwise.
std::string missing_command_list(const CLI::App& program, int argc, const char* const* argv);

}  // namespace stablemask::commands
