#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <string>

#include "src/commands/commands.h"
#include "src/commands/weights_option.h"
#include "stablemask/infer/adapters.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

struct MergeOptions {
  std::string from, to;
  WeightKind weights = WeightKind::kAveraged;
};

void merge_adapters(const MergeOptions& options) {
  const std::string checkpoint = resolve_checkpoint(options.from);
  {
    WorkProgress progress("merging", "B");
    merge_checkpoint(checkpoint, options.to, options.weights, [&](uint64_t done, uint64_t total) {
      progress.show(static_cast<int64_t>(done), static_cast<int64_t>(total));
    });
  }
  std::printf("%s: %s merged with its base\n", options.to.c_str(), checkpoint.c_str());
}

}  // namespace

void add_checkpoint_merge(CLI::App& program) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App* command = program.get_subcommand("checkpoint")
                          ->add_subcommand("merge",
                                           "Fold the adapters of a checkpoint into the model that "
                                           "they belong to");
  command->add_option("adapters", options->from, "A checkpoint, or a run for its newest one")
      ->required();
  command->add_option("--out", options->to, "The folder to write; it must not exist")->required();
  add_weights_option(*command, options->weights);
  command->footer("Example:\n  stablemask checkpoint merge runs/lora --out runs/lora-merged");
  command->callback([options] { merge_adapters(*options); });
}

}  // namespace stablemask::commands
