#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/stop.h"
#include "stablemask/ops/memory.h"

namespace {

using namespace stablemask;

/// One line of stderr for each line of the message.
int fail(int code, const std::string& message) {
  for (size_t begin = 0; begin <= message.size();) {
    const size_t end = std::min(message.find('\n', begin), message.size());
    std::fprintf(stderr, "stablemask: error: %s\n", message.substr(begin, end - begin).c_str());
    begin = end + 1;
  }
  return code;
}
int fail(ExitCode code, const std::string& message) {
  return fail(static_cast<int>(code), message);
}

/// LibTorch's messages end with a stack trace.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

/// CLI11 says only that a subcommand is missing; this names the word that is none.
void require_known_command(const CLI::App& program, int argc, char** argv) {
  const CLI::App* group = &program;
  std::string path = group->get_name();
  for (int i = 1; i < argc && argv[i][0] != '-'; ++i) {
    const CLI::App* found = nullptr;
    std::vector<std::string> names;
    for (const CLI::App* command : group->get_subcommands([](const CLI::App*) { return true; })) {
      names.push_back(command->get_name());
      if (names.back() == argv[i]) found = command;
    }
    if (names.empty()) return;
    if (found == nullptr) {
      std::string message = "unknown command \"" + std::string(argv[i]) + "\"";
      const std::string meant = did_you_mean(argv[i], names);
      message += meant.empty() ? "; choose one of " + CLI::detail::join(names, ", ") : meant;
      throw ConfigError(message + " (see " + path + " --help)");
    }
    group = found;
    path += " " + group->get_name();
  }
}

int parse_and_run(CLI::App& program, int argc, char** argv) {
  try {
    require_known_command(program, argc, argv);
    program.parse(argc, argv);
    return 0;
  } catch (const CLI::Success& request) {  // --help, --version
    return program.exit(request);
  } catch (const CLI::ParseError& error) {
    return fail(ExitCode::kConfig,
                error.what() + commands::set_option_hint(program, argc, argv) + " (see --help)");
  } catch (const commands::ExitWith& exit) {
    return exit.code;
  } catch (const Stopped& stopped) {
    log_info(std::string("stablemask: ") + stopped.what());
    return 128 + stopped.signal();
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::exception& error) {
    const std::string memory = ops::out_of_memory_message(error);
    if (memory.empty()) return fail(ExitCode::kInternal, first_line(error.what()));
    return fail(ExitCode::kOutOfMemory,
                "out of memory: " + memory + "; free memory, or lower the batch or the model");
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
  commands::add_generate(program);
  commands::add_checkpoint(program);
  commands::add_bench(program);

  return with_output_written(parse_and_run(program, argc, argv));
}
