#include "src/commands/commands.h"
#include "stablemask/base/error.h"

namespace stablemask::commands {

void add_serve(CLI::App& program) {
  CLI::App& command = *program.add_subcommand(
      "serve", "Continue texts over HTTP (left out of this build: no libcpp-httplib-dev)");
  command.allow_extras();
  command.callback([] {
    throw ConfigError(
        "serve: this build is without it, since libcpp-httplib-dev was missing; run "
        "scripts/setup.sh, which installs the package and builds again");
  });
}

}  // namespace stablemask::commands
