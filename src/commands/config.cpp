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
  CLI::App* command =
      parent.add_subcommand("check", "Check a config; prints every problem with line and column");
  auto options = add_options(*command);
  command->footer("Example:\n  stablemask config check configs/pretrain/quickstart.json");
  command->callback([options] {
    load_config(options->file, options->overrides);
    std::printf("%s: sound\n", options->file.c_str());
  });
}

void add_show(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand(
      "show", "Print every field as a run would see it: defaults, preset, file and --set applied");
  auto options = add_options(*command);
  command->footer(
      "Example:\n  stablemask config show configs/pretrain/quickstart.json --set train.steps=100");
  command->callback([options] {
    std::fputs(dump_config(load_config(options->file, options->overrides)).c_str(), stdout);
  });
}

void add_schema(CLI::App& parent) {
  CLI::App* command =
      parent.add_subcommand("schema", "Print a JSON Schema of configs, for editors");
  command->footer("Example:\n  stablemask config schema > config.schema.json");
  command->callback([] { std::fputs(config_schema().c_str(), stdout); });
}

void add_reference(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand(
      "reference", "Print a table of every field: values, default, meaning (Markdown)");
  command->footer("Example:\n  stablemask config reference | less");
  command->callback([] { std::fputs(config_reference().c_str(), stdout); });
}

}  // namespace

void add_set_option(CLI::App& command, std::vector<std::string>& overrides) {
  command.add_option("--set", overrides, "Override one config field, path=value; may be repeated")
      ->type_size(1)
      ->allow_extra_args(false);
}

void add_config(CLI::App& program) {
  CLI::App* command = program.add_subcommand("config", "Check, show and explain configs");
  command->require_subcommand(1);
  command->footer("Example:\n  stablemask config check configs/pretrain/quickstart.json");
  add_check(*command);
  add_show(*command);
  add_schema(*command);
  add_reference(*command);
}

}  // namespace stablemask::commands
