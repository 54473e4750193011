#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "src/commands/commands.h"
#include "src/commands/known_command.h"
#include "src/commands/processes.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/output.h"
#include "stablemask/base/stop.h"
#include "stablemask/ops/memory.h"

namespace {

using namespace stablemask;

/// One line of stderr for each line of the message.
int fail(int code, const std::string& message) {
  for (size_t begin = 0; begin <= message.size();) {
    const size_t end = std::min(message.find('\n', begin), message.size());
    const std::string line = terminal_prefix() + message.substr(begin, end - begin);
    std::fprintf(stderr, "stablemask: error: %s\n", line.c_str());
    begin = end + 1;
  }
  return code;
}
int fail(ExitCode code, const std::string& message) {
  return fail(static_cast<int>(code), message);
}

int parse_and_run(CLI::App& program, int argc, char** argv) {
  try {
    commands::require_utf8_arguments(argc, argv);
    const std::string list = commands::missing_command_list(program, argc, argv);
    if (!list.empty()) {
      std::fputs(list.c_str(), stderr);
      return fail(ExitCode::kConfig, "no command given; name one of these");
    }
    commands::require_known_command(program, argc, argv);
    program.parse(argc, argv);
    return 0;
  } catch (const CLI::Success& request) {  // --help, --version
    return program.exit(request);
  } catch (const CLI::ParseError& error) {
    return fail(ExitCode::kConfig,
                error.what() + commands::set_option_hint(program, argc, argv) + " (see --help)");
  } catch (const Stopped& stopped) {
    log_info(std::string("stablemask: ") + stopped.what());
    return 128 + stopped.signal();
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::exception& error) {
    const bool memory = !ops::out_of_memory_message(error).empty();
    return fail(memory ? ExitCode::kOutOfMemory : ExitCode::kInternal, commands::error_text(error));
  }
}

/// Output that is lost is no success, however well the work went.
int with_output_written(int code) {
  if (code != 0) return code;
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
  const std::string reason = errno != 0 ? std::string(": ") + std::strerror(errno) : "";
  return fail(ExitCode::kInternal, "standard output: cannot be written" + reason +
                                       "; free space there or send it elsewhere, and run again");
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  install_stop_handlers();

  CLI::App program("Pretraining and finetuning of language models with StableMask attention.",
                   "stablemask");
  program.set_version_flag("--version", "stablemask " STABLEMASK_VERSION);
  program.require_subcommand(1);
  program.footer(
      "Example:\n  stablemask pretrain configs/pretrain/quickstart.json --dry-run\n"
      "Each subcommand has --help with an example.");

  commands::add_tokenizer(program);
  commands::add_data(program);
  commands::add_config(program);
  commands::add_train(program);
  commands::add_eval(program);
  commands::add_score(program);
  commands::add_generate(program);
  commands::add_serve(program);
  commands::add_inspect_model(program);
  commands::add_checkpoint(program);
  commands::add_checkpoint_merge(program);
  commands::add_import(program);
  commands::add_export(program);
  commands::add_runs(program);
  commands::add_bench(program);

  return with_output_written(parse_and_run(program, argc, argv));
}
