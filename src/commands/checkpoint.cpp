#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "src/commands/commands.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

/// The checkpoints of a run folder or checkpoints folder; CheckpointError when there is none.
std::vector<CheckpointSummary> checkpoints_in(const std::string& folder) {
  std::vector<CheckpointSummary> found = list_checkpoints(checkpoint_root(folder));
  if (found.empty()) {
    resolve_checkpoint(folder);  // throws unless the folder is a checkpoint
    throw CheckpointError(folder + ": is one checkpoint; name its run");
  }
  return found;
}

void list(const std::string& folder) {
  std::printf("%10s  %12s  %-10s  %s\n", "step", "MB", "state", "folder");
  for (const CheckpointSummary& summary : checkpoints_in(folder)) {
    std::printf("%10lld  %12.1f  %-10s  %s\n", static_cast<long long>(summary.step),
                static_cast<double>(summary.bytes) / 1e6,
                summary.complete ? "complete" : "incomplete", summary.folder.c_str());
  }
}

/// The folder itself when it is a checkpoint, else all complete checkpoints in it.
std::vector<std::string> folders_to_verify(const std::string& folder) {
  if (std::filesystem::exists(folder + "/manifest.json")) return {folder};
  std::vector<std::string> folders;
  for (const CheckpointSummary& summary : checkpoints_in(folder)) {
    if (summary.complete) folders.push_back(summary.folder);
  }
  if (folders.empty()) throw CheckpointError(folder + ": holds no complete checkpoint");
  return folders;
}

void verify(const std::string& folder) {
  const std::vector<std::string> folders = folders_to_verify(folder);
  size_t damaged = 0;
  for (const std::string& checkpoint : folders) {
    check_stop("verifying checkpoints");
    std::vector<std::string> problems;
    {
      WorkProgress progress("verifying", "B");
      problems = verify_checkpoint(checkpoint, [&](uint64_t done, uint64_t total) {
        progress.show(static_cast<int64_t>(done), static_cast<int64_t>(total));
      });
    }
    if (problems.empty()) std::printf("%s: sound\n", checkpoint.c_str());
    for (const std::string& problem : problems) std::printf("%s\n", problem.c_str());
    damaged += problems.empty() ? 0 : 1;
  }
  std::fflush(stdout);
  if (damaged > 0) {
    throw CheckpointError(
        format("%s: %zu of %zu checkpoints damaged", folder.c_str(), damaged, folders.size()));
  }
}

using Action = void (*)(const std::string& folder);

void add_action(CLI::App& parent, const char* name, const char* what, const char* example,
                Action action) {
  auto folder = std::make_shared<std::string>();
  CLI::App* command = parent.add_subcommand(name, what);
  command->add_option("folder", *folder, "A run, the checkpoints of a run, or one checkpoint")
      ->required();
  command->footer(std::string("Example:\n  ") + example);
  command->callback([folder, action] { action(*folder); });
}

}  // namespace

void add_checkpoint(CLI::App& program) {
  CLI::App* command = program.add_subcommand("checkpoint", "List and verify checkpoints");
  command->require_subcommand(1);
  command->footer("Example:\n  stablemask checkpoint verify runs/quickstart/pretrained");
  add_action(*command, "ls", "List the checkpoints of a run, oldest first",
             "stablemask checkpoint ls runs/quickstart/pretrained", &list);
  add_action(*command, "verify", "Check every hash; exit code 4 when something is damaged",
             "stablemask checkpoint verify runs/quickstart/pretrained/checkpoints/step-00000600",
             &verify);
}

}  // namespace stablemask::commands
