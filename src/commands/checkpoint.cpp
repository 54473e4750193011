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
#include "stablemask/io/finite.h"
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

bool has_manifest(const std::string& folder) {
  std::error_code ignored;
  return std::filesystem::exists(folder + "/manifest.json", ignored);
}

/// The folder itself when it is a checkpoint, that of RUN/best, else all complete checkpoints in
/// it.
std::vector<std::string> folders_to_verify(const std::string& folder) {
  if (has_manifest(folder)) return {folder};
  std::error_code ignored;
  if (!std::filesystem::exists(folder, ignored)) return {resolve_checkpoint(folder)};
  std::vector<std::string> folders;
  for (const CheckpointSummary& summary : checkpoints_in(folder)) {
    if (summary.complete) folders.push_back(summary.folder);
  }
  if (folders.empty()) throw CheckpointError(folder + ": holds no complete checkpoint");
  return folders;
}

/// Prints the first tensor of an undamaged checkpoint that is not finite.
bool has_finite_weights(const std::string& checkpoint) {
  for (const char* name : {"/model.safetensors", "/trained.safetensors"}) {
    const std::string file = checkpoint + name;
    std::error_code ignored;
    if (!std::filesystem::exists(file, ignored)) continue;
    const std::string tensor = first_not_finite(file);
    if (tensor.empty()) continue;
    std::printf("%s: %s holds values that are not finite\n", file.c_str(), tensor.c_str());
    return false;
  }
  return true;
}

void verify(const std::string& folder) {
  const std::vector<std::string> folders = folders_to_verify(folder);
  size_t damaged = 0, not_finite = 0;
  for (const std::string& checkpoint : folders) {
    check_stop("verifying checkpoints");
    std::vector<std::string> problems;
    {
      WorkProgress progress("verifying", "B");
      problems = verify_checkpoint(checkpoint, [&](uint64_t done, uint64_t total) {
        progress.show(static_cast<int64_t>(done), static_cast<int64_t>(total));
      });
    }
    if (!problems.empty() && checkpoint != folder && !has_manifest(checkpoint)) {
      std::printf("%s: removed by its run in the meantime\n", checkpoint.c_str());
      continue;
    }
    for (const std::string& problem : problems) std::printf("%s\n", problem.c_str());
    if (!problems.empty()) {
      ++damaged;
      continue;
    }
    if (has_finite_weights(checkpoint)) {
      std::printf("%s: sound\n", checkpoint.c_str());
    } else {
      ++not_finite;
    }
  }
  std::fflush(stdout);
  if (damaged > 0) {
    throw CheckpointError(
        format("%s: %zu of %zu checkpoints damaged", folder.c_str(), damaged, folders.size()));
  }
  if (not_finite > 0) {
    throw NonFiniteError(
        format("%s: the weights of %zu of %zu checkpoints are not finite; use another one",
               folder.c_str(), not_finite, folders.size()));
  }
}

void strip(const std::string& from, const std::string& to) {
  const std::string checkpoint = resolve_checkpoint(from);
  {
    WorkProgress progress("stripping", "B");
    strip_checkpoint(checkpoint, to, [&](uint64_t done, uint64_t total) {
      progress.show(static_cast<int64_t>(done), static_cast<int64_t>(total));
    });
  }
  std::printf("%s: %s without the optimizer's state\n", to.c_str(), checkpoint.c_str());
}

struct Folders {
  std::string from, to;
};

void add_strip(CLI::App& parent) {
  auto folders = std::make_shared<Folders>();
  CLI::App* command = parent.add_subcommand(
      "strip",
      "Copy a checkpoint without what only training needs: a third of the size, to share, "
      "evaluate and finetune from");
  command->add_option("from", folders->from, "A checkpoint, or a run for its newest one")
      ->required();
  command->add_option("to", folders->to, "The folder to write; it must not exist")->required();
  command->footer(
      "Example:\n  stablemask checkpoint strip runs/quickstart/pretrained shared/pretrained");
  command->callback([folders] { strip(folders->from, folders->to); });
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
  CLI::App* command =
      program.add_subcommand("checkpoint", "List, verify, strip and merge checkpoints");
  command->require_subcommand(1);
  command->footer("Example:\n  stablemask checkpoint verify runs/quickstart/pretrained");
  add_action(*command, "ls", "List the checkpoints of a run, oldest first",
             "stablemask checkpoint ls runs/quickstart/pretrained", &list);
  add_action(*command, "verify",
             "Check every hash (exit code 4 for damage) and that all weights are finite (5)",
             "stablemask checkpoint verify runs/quickstart/pretrained/checkpoints/step-00000600",
             &verify);
  add_strip(*command);
}

}  // namespace stablemask::commands
