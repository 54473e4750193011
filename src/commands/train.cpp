#include <stdio_ext.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/processes.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/config/config.h"
#include "stablemask/report/progress.h"
#include "stablemask/train/trainer.h"

namespace stablemask::commands {
namespace {

struct Options {
  std::string file;
  std::vector<std::string> overrides;
  std::string resume = "auto";
  bool dry_run = false;
  bool quiet = false;
};

RunOptions run_options(const Options& options, const Processes& processes) {
  RunOptions run;
  run.quiet = options.quiet || !processes.is_first();
  run.local_rank = processes.local_rank();
  if (options.resume == "auto") {
    run.resume = ResumePolicy::kAuto;
  } else if (options.resume == "never") {
    run.resume = ResumePolicy::kNever;
  } else {
    run.resume = ResumePolicy::kFolder;
    run.resume_folder = options.resume;
  }
  return run;
}

/// A run folder gets a config.json of its own, which must not replace the config that the user
/// wrote. In the folder of a run that has begun it is the program's.
Config with_config_kept(const std::string& file, Config config) {
  std::error_code absent;
  if (!std::filesystem::exists(config.train.out + "/metrics.jsonl", absent)) {
    require_other_file(config.train.out + "/config.json", {file});
  }
  return config;
}

/// A run's result is its folder. Lines that a closed terminal or pipe did not take are a warning,
/// and main finds nothing left to report.
void accept_lost_output() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  log_warning("standard output was lost; the run is not affected");
  ::__fpurge(stdout);
  std::clearerr(stdout);
}

void train(const Options& options, const Processes& processes,
           const std::function<Config()>& load_config_file) {
  const auto load = [&] { return with_config_kept(options.file, load_config_file()); };
  if (options.dry_run) {
    const std::string report = dry_run_report(load(), processes.size());
    if (processes.is_first()) std::fputs(report.c_str(), stdout);
    return;
  }
  Config config;
  RunResult result;
  processes.together(
      [&]() -> Processes::Meeting {
        config = load();
        return {config.train.device, config.train.peer_timeout_s};
      },
      [&](const std::shared_ptr<dist::Group>& group) {
        RunOptions run = run_options(options, processes);
        run.group = group;
        result = Trainer(config, run).run();
      });
  const auto step = static_cast<long long>(result.step);
  if (result.finished) {
    Progress(stdout, config.train.steps, options.quiet || !processes.is_first())
        .note(format("done: step %lld, %s", step, result.checkpoint.c_str()));
    accept_lost_output();
    return;
  }
  if (result.out_of_patience) {
    Progress(stdout, config.train.steps, options.quiet || !processes.is_first())
        .note(format("done: step %lld, no better validation since step %lld (loss %.4f), as "
                     "train.patience says; %s",
                     step, static_cast<long long>(result.best_step), result.best_loss,
                     result.checkpoint.c_str()));
    accept_lost_output();
    return;
  }
  const std::string saved = format("after step %lld; saved %s; the same command goes on from there",
                                   step, result.checkpoint.c_str());
  if (result.signal != 0) throw Stopped(result.signal, "training, " + saved);
  log_info("stablemask: stopped by train.time_limit_s " + saved);
  accept_lost_output();
}

/// Where the config or --set states train.init_from.
std::string place_of_init_from(const Options& options) {
  for (const StatedField& field : stated_fields(options.file, options.overrides)) {
    if (field.pointer == "/train/init_from") return field.place;
  }
  return options.file;
}

CLI::App* add_command(CLI::App& program, const char* name, const char* what,
                      std::shared_ptr<Options> options) {
  CLI::App* command = program.add_subcommand(name, what);
  command->add_option("config", options->file, "Config file, JSON")->required();
  add_set_option(*command, options->overrides);
  command
      ->add_option(
          "--resume", options->resume,
          "auto: from the newest checkpoint of train.out if there is one; never: refuse to "
          "start where there is one; or a checkpoint or run folder")
      ->capture_default_str();
  command->add_flag("--dry-run", options->dry_run,
                    "Print parameters, memory, steps and epochs; train nothing");
  command->add_flag("--quiet", options->quiet, "No progress; errors and warnings only");
  return command;
}

}  // namespace

void add_train(CLI::App& program) {
  auto pretrain = std::make_shared<Options>();
  CLI::App* command =
      add_command(program, "pretrain", "Train a model from random weights, or resume", pretrain);
  command->footer(
      "Example:\n  stablemask pretrain configs/pretrain/quickstart.json --set train.steps=500 "
      "--set train.out=runs/mine\n"
      "Ctrl-C and every other signal that ends a process save a checkpoint first; exit code 128 + "
      "signal.\n"
      "Several GPUs: torchrun --no-python --nproc-per-node 4 stablemask pretrain CONFIG, or srun.");
  command->callback([pretrain] {
    train(*pretrain, Processes(), [&] {
      Config config = load_config(pretrain->file, pretrain->overrides);
      if (config.train.init_from.empty()) return config;
      throw ConfigError(place_of_init_from(*pretrain) +
                        ": /train/init_from: is for finetuning; use `stablemask finetune` or "
                        "remove it");
    });
  });

  auto finetune = std::make_shared<Options>();
  command = add_command(program, "finetune",
                        "Train from the weights of another run (train.init_from)", finetune);
  command->footer(
      "Example:\n  stablemask finetune configs/finetune/quickstart.json "
      "--set train.init_from=runs/quickstart/pretrained --set train.freeze_layers=2\n"
      "The model is the checkpoint's, except for stated fields, such as --set "
      "model.stable_mask=true;\nthe optimizer starts with zeroed state.");
  command->callback([finetune] {
    const Processes processes;
    train(*finetune, processes, [&] {
      return load_finetune_config(finetune->file, finetune->overrides,
                                  run_options(*finetune, processes));
    });
  });
}

}  // namespace stablemask::commands
