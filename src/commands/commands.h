#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace stablemask::commands {

/// `--set path=value`, may be repeated: the overrides that load_config takes.
void add_set_option(CLI::App& command, std::vector<std::string>& overrides);

/// For a command line that the parser refused: "; to set a config field use --set train.steps=10"
/// when the subcommand has --set and an unknown option, such as `--steps 10`, names a field. Else
/// "".
std::string set_option_hint(const CLI::App& program, int argc, const char* const* argv);

/// Each adds its subcommands to the program. A subcommand's callback does the work and throws
/// stablemask::Error; main turns that into one line on stderr and an exit code.
void add_tokenizer(CLI::App& program);
void add_data(CLI::App& program);
void add_config(CLI::App& program);
void add_train(CLI::App& program);  ///< pretrain, finetune
void add_eval(CLI::App& program);
void add_generate(CLI::App& program);
void add_score(CLI::App& program);
void add_serve(CLI::App& program);
void add_inspect_model(CLI::App& program);  ///< inspect
void add_checkpoint(CLI::App& program);
/// After add_checkpoint, whose subcommand it extends.
void add_checkpoint_merge(CLI::App& program);
void add_import(CLI::App& program);
void add_export(CLI::App& program);
void add_runs(CLI::App& program);
void add_bench(CLI::App& program);

}  // namespace stablemask::commands
