#include "src/commands/threads.h"

#include <ATen/Parallel.h>

#include <cstdlib>
#include <string>

#include "src/commands/validators.h"

namespace stablemask::commands {

void add_threads_option(CLI::App& command, std::optional<int64_t>& threads,
                        const char* by_default) {
  command
      .add_option("--threads", threads,
                  std::string("CPU threads that compute; by default ") + by_default)
      ->check(number_from(1, 4096));
}

void use_threads(const std::optional<int64_t>& threads) {
  if (threads) at::set_num_threads(static_cast<int>(*threads));
}

void use_few_threads(const std::optional<int64_t>& threads) {
  const char* const environment = std::getenv("OMP_NUM_THREADS");
  if (!threads && environment != nullptr && *environment != '\0') return;
  at::set_num_threads(static_cast<int>(threads.value_or(1)));
}

}  // namespace stablemask::commands
