#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <string>

#include "src/commands/commands.h"
#include "stablemask/infer/adapters.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

void merge_adapters(const std::string& from, const std::string& to) {
  const std::string checkpoint = resolve_checkpoint(from);
  {
    WorkProgress progress("merging", "B");
    merge_checkpoint(checkpoint, to, [&](uint64_t done, uint64_t total) {
      progress.show(static_cast<int64_t>(done), static_cast<int64_t>(total));
    });
  }
  std::printf("%s: %s merged with its base\n", to.c_str(), checkpoint.c_str());
}

}  // namespace

void add_checkpoint_merge(CLI::App& program) {
  struct Folders {
    std::string from, to;
  };
  auto folders = std::make_shared<Folders>();
  CLI::App* command = program.get_subcommand("checkpoint")
                          ->add_subcommand("merge",
                                           "Fold the adapters of a checkpoint into the model that "
                                           "they belong to");
  command->add_option("adapters", folders->from, "A checkpoint, or a run for its newest one")
      ->required();
  command->add_option("--out", folders->to, "The folder to write; it must not exist")->required();
  command->footer("Example:\n  stablemask checkpoint merge runs/lora --out runs/lora-merged");
  command->callback([folders] { merge_adapters(folders->from, folders->to); });
}

}  // namespace stablemask::commands
