#include "src/commands/known_command.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

namespace stablemask::commands {
namespace {

std::vector<const CLI::App*> commands_of(const CLI::App& group) {
  return group.get_subcommands([](const CLI::App*) { return true; });
}

std::string path_of(const CLI::App& command) {
  const CLI::App* group = command.get_parent();
  return (group == nullptr ? "" : path_of(*group) + " ") + command.get_name();
}

/// How far the words of the command line lead into the tree of commands.
struct Walk {
  const CLI::App* group = nullptr;  ///< the last command found
  std::string unknown;              ///< the word after it that is no command; "": none
  bool at_end = false;              ///< no word and no option follows
};

Walk walk(const CLI::App& program, int argc, const char* const* argv) {
  Walk walk{&program, "", false};
  for (int i = 1; i < argc; ++i) {
    const std::vector<const CLI::App*> commands = commands_of(*walk.group);
    if (argv[i][0] == '-' || commands.empty()) return walk;
    const auto found = std::find_if(commands.begin(), commands.end(),
                                    [&](const CLI::App* c) { return c->get_name() == argv[i]; });
    if (found == commands.end()) {
      walk.unknown = argv[i];
      return walk;
    }
    walk.group = *found;
  }
  walk.at_end = true;
  return walk;
}

/// Every command below `group` that takes no further command word.
void collect_leaves(const CLI::App& group, std::vector<const CLI::App*>& leaves) {
  for (const CLI::App* command : commands_of(group)) {
    if (commands_of(*command).empty()) {
      leaves.push_back(command);
    } else {
      collect_leaves(*command, leaves);
    }
  }
}

/// "; did you mean …?" with the full path, without the program's name, of each command that `fits`.
template <typename Fits>
std::string paths_that_fit(const CLI::App& program, Fits fits) {
  std::vector<const CLI::App*> leaves;
  collect_leaves(program, leaves);
  std::vector<std::string> paths;
  for (const CLI::App* leaf : leaves) {
    if (!fits(leaf->get_name())) continue;
    paths.push_back("\"" + path_of(*leaf).substr(program.get_name().size() + 1) + "\"");
  }
  return paths.empty() ? "" : "; did you mean " + join(paths, " or ") + "?";
}

std::string suggestion(const CLI::App& program, const CLI::App& group, const std::string& word) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands_of(group)) names.push_back(command->get_name());
  const std::string near = did_you_mean(word, names);
  if (!near.empty()) return near;
  // "train" is part of "pretrain" and the name of "tokenizer train"; shorter words fit by chance.
  constexpr size_t kTelling = 4;
  const std::string part = paths_that_fit(program, [&](const std::string& name) {
    return name == word || (word.size() >= kTelling && name.find(word) != std::string::npos);
  });
  if (!part.empty()) return part;
  const std::string elsewhere = paths_that_fit(
      program, [&](const std::string& name) { return !nearest(word, {name}).empty(); });
  return elsewhere.empty() ? "; choose one of " + join(names, ", ") : elsewhere;
}

}  // namespace

void require_utf8_arguments(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const size_t bad = find_invalid_utf8(argument);
    if (bad == std::string_view::npos) continue;
    const std::string_view before = argv[i - 1];
    throw ConfigError(
        format("argument %d, ", i) + (before.starts_with("--") ? std::string(before) + " " : "") +
        in_quotes(argument) +
        format(": byte %zu (0x%02X) is not UTF-8; write it as UTF-8, rename a file of "
               "such a name",
               bad + 1, static_cast<unsigned>(static_cast<unsigned char>(argument[bad]))));
  }
}

void require_known_command(const CLI::App& program, int argc, const char* const* argv) {
  const Walk found = walk(program, argc, argv);
  if (found.unknown.empty()) return;
  throw ConfigError("unknown command " + in_quotes(found.unknown) +
                    suggestion(program, *found.group, found.unknown) + " (see " +
                    path_of(*found.group) + " --help)");
}

std::string missing_command_list(const CLI::App& program, int argc, const char* const* argv) {
  const Walk found = walk(program, argc, argv);
  const std::vector<const CLI::App*> commands = commands_of(*found.group);
  if (!found.at_end || commands.empty()) return "";
  std::string list = "usage: " + path_of(*found.group) + " COMMAND [OPTIONS]\n";
  for (const CLI::App* command : commands) {
    list += format("  %-12s %s\n", command->get_name().c_str(), command->get_description().c_str());
  }
  return list + path_of(*found.group) + " COMMAND --help explains a command\n";
}

}  // namespace stablemask::commands
