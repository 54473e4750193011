#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "stablemask/config/config.h"

namespace stablemask::commands {
namespace {

struct Options {
  std::string file;
  std::vector<std::string> overrides;
};

/// The arguments that `check` and `show` share.
std::shared_ptr<Options> add_options(CLI::App& command) {
  auto options = std::make_shared<Options>();
  command.add_option("config", options->file, "Config file, JSON")->required();
  add_set_option(command, options->overrides);
  return options;
}

void add_check(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand(
      "check", "Check a config and print every error with its line and column");
  auto options = add_options(*command);
  command->footer("Example:\n  stablemask config check configs/pretrain/quickstart.json");
  command->callback([options] {
    load_config(options->file, options->overrides);
    std::printf("%s: valid\n", options->file.c_str());
  });
}

void add_show(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand(
      "show", "Print the complete config of a run: defaults, preset, file and --set");
  auto options = add_options(*command);
  command->footer(
      "Example:\n  stablemask config show configs/pretrain/quickstart.json --set train.steps=100");
  command->callback([options] {
    std::fputs(dump_config(load_config(options->file, options->overrides)).c_str(), stdout);
  });
}

void add_schema(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand(
      "schema", "Print the JSON Schema of configs, for completion in editors");
  command->footer("Example:\n  stablemask config schema > config.schema.json");
  command->callback([] { std::fputs(config_schema().c_str(), stdout); });
}

void add_reference(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand(
      "reference", "Print Markdown tables of every field: values, default, description");
  command->footer("Example:\n  stablemask config reference | less");
  command->callback([] { std::fputs(config_reference().c_str(), stdout); });
}

}  // namespace

void add_set_option(CLI::App& command, std::vector<std::string>& overrides) {
  command
      .add_option("--set", overrides,
                  "Set a config field: path=value, such as train.steps=100; repeatable")
      ->type_size(1)
      ->allow_extra_args(false);
}

std::string set_option_hint(const CLI::App& program, int argc, const char* const* argv) {
  const CLI::App* command = &program;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
  if (command->get_option_no_throw("--set") == nullptr) return "";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--") break;
    if (!argument.starts_with("--")) continue;
    const size_t equals = argument.find('=');
    if (command->get_option_no_throw(argument.substr(0, equals)) != nullptr) continue;
    std::string value = "VALUE";
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (i + 1 < argc && argv[i + 1][0] != '-') {
      value = argv[i + 1];
    }
    std::string hint;
    for (const std::string& path : fields_for_option(argument.substr(2, equals - 2))) {
      hint +=
          (hint.empty() ? "; to set a config field use --set " : " or --set ") + path + "=" + value;
    }
    if (!hint.empty()) return hint;
  }
  return "";
}

void add_config(CLI::App& program) {
  CLI::App* command = program.add_subcommand("config", "Check, print and document configs");
  command->require_subcommand(1);
  command->footer("Example:\n  stablemask config check configs/pretrain/quickstart.json");
  add_check(*command);
  add_show(*command);
  add_schema(*command);
  add_reference(*command);
}

}  // namespace stablemask::commands
