#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>

namespace stablemask::commands {

/// --threads N. `by_default` ends the option's help: what applies without it.
void add_threads_option(CLI::App& command, std::optional<int64_t>& threads, const char* by_default);

/// Makes LibTorch compute on the CPU with so many threads; nothing without a number.
void use_threads(const std::optional<int64_t>& threads);

/// The same for work in small steps, such as drawing one token after the other. Without a number,
/// and unless OMP_NUM_THREADS is set, it takes one thread: a step is bound by memory bandwidth, and
/// waiting threads spin, which costs several times as much when another program needs the cores.
void use_few_threads(const std::optional<int64_t>& threads);

}  // namespace stablemask::commands
