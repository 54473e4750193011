#pragma once

#include <CLI/CLI.hpp>

namespace stablemask::commands {

/// Each adds its subcommands to the program. A subcommand's callback does the work and throws
/// stablemask::Error; main turns that into one line on stderr and an exit code.
void add_tokenizer(CLI::App& program);
void add_data(CLI::App& program);
void add_config(CLI::App& program);
void add_train(CLI::App& program);  ///< pretrain, finetune
void add_eval(CLI::App& program);
void add_generate(CLI::App& program);
void add_checkpoint(CLI::App& program);

}  // namespace stablemask::commands
