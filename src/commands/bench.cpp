#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/bench/bench.h"
#include "src/commands/commands.h"
#include "src/commands/json_file.h"
#include "src/commands/processes.h"
#include "src/commands/threads.h"
#include "src/commands/validators.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/output.h"
#include "stablemask/base/stop.h"
#include "stablemask/config/config.h"
#include "stablemask/dist/group.h"

namespace stablemask::commands {
namespace {

struct Options {
  std::string json;
  std::string model = "160m", position = "rope", mask = "stablemask", device = "auto";
  std::string shard = "optimizer", reduce_dtype = "fp32", trace;
  int64_t batch = 0, micro_batch = 0, context = 0, vocab = 50304, steps = 30, largest_mb = 1024;
  int64_t prompt = 128, tokens = 1024;
  std::optional<int64_t> threads;
  bool plain = false, deterministic = false, kernels = false, learnable = false;
  std::vector<std::string> overrides, only;
};

/// Batch of each process and context at which the model sizes are compared.
struct Load {
  int64_t batch, context;
};
const std::map<std::string, Load> kLoads = {
    {"71m", {64, 1024}}, {"160m", {32, 1024}}, {"400m", {16, 1024}}, {"1.4b", {8, 2048}}};

/// The flags as overrides of a config, followed by those of --set.
Config step_config(const Options& options, int64_t processes, bool learnable) {
  const Load& load = kLoads.at(options.model);
  const auto number = [](int64_t value) { return std::to_string(value); };
  const auto flag = [](bool value) { return std::string(value ? "true" : "false"); };
  std::vector<std::string> overrides = {
      "train.init_from=random",  // not read; lora.rank and train.freeze_layers ask for a source
      "model.preset=" + options.model,
      "model.vocab_size=" + number(options.vocab),
      "model.position=" + options.position,
      "model.stable_mask.enabled=" + flag(options.mask != "causal"),
      "train.device=" + options.device,
      "train.batch=" + number(options.batch ? options.batch : load.batch * processes),
      "train.micro_batch=" + number(options.micro_batch),
      "train.context=" + number(options.context ? options.context : load.context),
      "train.shard=" + options.shard,
      "train.reduce_dtype=" + options.reduce_dtype,
      "train.deterministic=" + flag(options.deterministic),
      "train.cuda_graph=" + flag(!options.plain)};
  if (options.mask == "infinite") overrides.push_back("model.stable_mask.mask_length=infinite");
  if (options.threads) {
    overrides.push_back("train.threads=" + std::to_string(*options.threads));
  }
  overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
  if (learnable) overrides.push_back("model.stable_mask.learnable=true");
  return parse_config("{}", "bench step", overrides);
}

/// `json`: null when no figures are to be written.
void finish(const bench::Report& report, OutputFile* json) {
  if (json != nullptr) write_json(*json, json_text(report.json, 2) + "\n");
  if (!report.right) {
    throw Error(ExitCode::kInternal, "a result above is WRONG against the reference");
  }
}

void add_json_option(CLI::App& command, Options& options) {
  command.add_option(
      "--json", options.json,
      "Also write every figure to this file; -: to standard output, after the table");
}

void add_device_option(CLI::App& command, Options& options) {
  command.add_option("--device", options.device, "auto (the GPU if there is one), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}).description(""));
}

void add_attention(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *parent.add_subcommand(
      "attention", "Time attention, forward and backward, against cuDNN's (needs a GPU)");
  add_json_option(command, *options);
  command.footer("Example:\n  stablemask bench attention --json attention.json");
  command.callback([options] {
    const std::unique_ptr<OutputFile> json = open_json(options->json);
    finish(bench::run_attention(), json.get());
  });
}

void add_ops(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App& command =
      *parent.add_subcommand("ops", "Time every CUDA kernel, with GB/s (needs a GPU)");
  command
      .add_option("--only", options->only,
                  "Kernels whose line contains this text; several times: all of the texts")
      ->type_size(1)
      ->allow_extra_args(false);
  add_json_option(command, *options);
  command.footer("Example:\n  stablemask bench ops --only fp8: --only 1.4B --json ops.json");
  command.callback([options] {
    const std::unique_ptr<OutputFile> json = open_json(options->json);
    finish(bench::run_ops(options->only), json.get());
  });
}

/// Runs `work` in all processes of the launcher; process 0 writes the figures.
void run_together(const Options& options, DeviceKind device, const Processes& processes,
                  const std::function<bench::Report(const bench::Processes&)>& work) {
  bench::Report report;
  std::unique_ptr<OutputFile> json;
  int signal = 0;
  processes.together(
      [&]() -> Processes::Meeting {
        if (processes.is_first()) json = open_json(options.json);
        return {.device = device};
      },
      [&](const std::shared_ptr<dist::Group>& group) {
        try {
          report = work({group, processes.local_rank()});
        } catch (const Stopped& stopped) {  // in all processes
          signal = stopped.signal();
        }
      });
  if (signal != 0) throw Stopped(signal, "benchmarking");
  finish(report, json.get());
}

void run_step(const Options& options) {
  const Processes processes;
  bench::StepOptions step;
  step.config = step_config(options, processes.size(), false);
  step.timed_steps = options.steps;
  step.kernels = options.kernels;
  if (options.learnable) {
    if (!step.config.model.stable_mask.enabled) {
      throw ConfigError("--learnable needs a mask: set --mask to stablemask or infinite");
    }
    step.compared = step_config(options, processes.size(), true);
  }
  require_equal_shares(step.config.train, processes.size());
  if (!options.trace.empty()) {  // the profiler opens the file after the work
    const OutputFile first(options.trace + ".0.json", OutputContent::kText, ExitCode::kConfig);
  }
  run_together(options, step.config.train.device, processes, [&](const bench::Processes& all) {
    step.processes = all;
    if (!options.trace.empty()) {
      step.trace = options.trace + "." + std::to_string(all.group->rank()) + ".json";
    }
    return bench::run_step(step);
  });
}

void add_model_options(CLI::App& command, Options& options) {
  command.add_option("--model", options.model, "71m, 160m, 400m or 1.4b")
      ->capture_default_str()
      ->check(CLI::IsMember(kLoads).description(""));
  command.add_option("--position", options.position, "rope, alibi or none")
      ->capture_default_str()
      ->check(CLI::IsMember({"rope", "alibi", "none"}).description(""));
  command.add_option("--mask", options.mask, "stablemask, causal or infinite")
      ->capture_default_str()
      ->check(CLI::IsMember({"stablemask", "causal", "infinite"}).description(""));
  command.add_option("--vocab", options.vocab, "Token ids")
      ->capture_default_str()
      ->check(number_from(1));
}

void add_workload_options(CLI::App& command, Options& options) {
  add_model_options(command, options);
  command
      .add_option("--batch", options.batch,
                  "Sequences a step of all processes (71m 64, 160m 32, 400m 16, 1.4b 8 a process)")
      ->check(number_from(1));
  command
      .add_option("--micro-batch", options.micro_batch,
                  "Sequences a forward pass (a process's share of --batch)")
      ->check(number_from(1));
  command.add_option("--context", options.context, "Tokens a sequence (1024; 1.4b 2048)")
      ->check(number_from(1));
}

void add_step(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *parent.add_subcommand(
      "step", "Time whole optimizer steps on random tokens: tokens/s, MFU, peak memory, start-up");
  add_workload_options(command, *options);
  command.add_option("--steps", options->steps, "Timed steps, after 5 steps of warm-up")
      ->capture_default_str()
      ->check(number_from(1));
  add_device_option(command, *options);
  add_threads_option(command, options->threads, "all cores");
  command.add_flag("--plain", options->plain, "Do not record the step into a CUDA graph");
  command.add_flag("--kernels", options->kernels, "GPU: also the time of each part of the step");
  command.add_flag("--learnable", options->learnable,
                   "Then the same step with learnable gamma and p_base, and its additional time");
  command.add_flag("--deterministic", options->deterministic,
                   "Deterministic kernels: the same bits in every run");
  command.add_option("--shard", options->shard, "Several processes: optimizer or none")
      ->capture_default_str()
      ->check(CLI::IsMember({"optimizer", "none"}).description(""));
  command
      .add_option("--reduce-dtype", options->reduce_dtype,
                  "Several processes, sums of gradients: fp32 or bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16"}).description(""));
  command
      .add_option("--trace", options->trace,
                  "Also write PREFIX.R.json, a trace of 3 more steps, for each process R")
      ->type_name("PREFIX");
  add_set_option(command, options->overrides);
  add_json_option(command, *options);
  command.footer(
      "Examples:\n"
      "  stablemask bench step --model 160m --json step.json\n"
      "  stablemask bench step --model 71m --batch 1 --context 8192 --mask causal\n"
      "  stablemask bench step --model 71m --learnable\n"
      "  torchrun --standalone --no-python --nproc-per-node 4 stablemask bench step --model 1.4b");
  command.callback([options] { run_step(*options); });
}

bench::GenerateOptions generate_options(const Options& options) {
  std::vector<std::string> overrides = {
      "model.preset=" + options.model,
      "model.vocab_size=" + std::to_string(options.vocab),
      "model.position=" + options.position,
      std::string("model.stable_mask.enabled=") + (options.mask == "causal" ? "false" : "true"),
      "train.device=" + options.device,
      "train.context=" + std::to_string(kLoads.at(options.model).context)};
  if (options.mask == "infinite") overrides.push_back("model.stable_mask.mask_length=infinite");
  if (options.threads) {
    overrides.push_back("train.threads=" + std::to_string(*options.threads));
  }
  overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
  return {parse_config("{}", "bench generate", overrides), std::max<int64_t>(options.batch, 1),
          options.prompt, options.tokens, options.plain};
}

void add_generate_bench(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *parent.add_subcommand(
      "generate", "Time generation by random weights: tokens/s, prompts' tokens/s, memory");
  add_model_options(command, *options);
  command.add_option("--batch", options->batch, "Texts at a time (1)")->check(number_from(1));
  command.add_option("--prompt", options->prompt, "Tokens of each prompt")
      ->capture_default_str()
      ->check(number_from(1));
  command.add_option("--tokens", options->tokens, "Tokens generated after each prompt")
      ->capture_default_str()
      ->check(number_from(2));
  add_device_option(command, *options);
  add_threads_option(command, options->threads, "all cores");
  command.add_flag("--plain", options->plain, "Do not record steps as CUDA graphs");
  add_set_option(command, options->overrides);
  add_json_option(command, *options);
  command.footer(
      "Examples:\n"
      "  stablemask bench generate --model 160m --batch 64 --json generate.json\n"
      "  stablemask bench generate --model 71m --device cpu --threads 2 --tokens 64");
  command.callback([options] {
    const bench::GenerateOptions workload = generate_options(*options);
    const std::unique_ptr<OutputFile> json = open_json(options->json);
    finish(bench::run_generate(workload), json.get());
  });
}

void add_collectives(CLI::App& parent) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *parent.add_subcommand(
      "collectives", "Time all-reduce, reduce-scatter and all-gather between processes");
  command
      .add_option("--largest", options->largest_mb, "MiB of the largest buffer; from 64 KiB by 4")
      ->capture_default_str()
      ->check(number_from(1, 1 << 14));
  add_device_option(command, *options);
  add_threads_option(command, options->threads, "all cores");
  add_json_option(command, *options);
  command.footer(
      "Example, in each process of a launcher:\n  stablemask bench collectives --largest 64\n"
      "Four of one machine: torchrun --standalone --no-python --nproc-per-node 4 stablemask bench "
      "collectives");
  command.callback([options] {
    const Processes processes;
    use_threads(options->threads);
    const Config config = parse_config("{}", "bench", {"train.device=" + options->device});
    run_together(*options, config.train.device, processes, [&](const bench::Processes& all) {
      return bench::run_collectives({all, config.train, options->largest_mb << 20});
    });
  });
}

}  // namespace

void add_bench(CLI::App& program) {
  CLI::App& command = *program.add_subcommand("bench",
                                              "Time training steps, generation, attention, kernels "
                                              "and collectives; results are checked first");
  command.require_subcommand(1);
  command.footer("Example:\n  stablemask bench step --model 160m");
  add_step(command);
  add_generate_bench(command);
  add_collectives(command);
  add_attention(command);
  add_ops(command);
}

}  // namespace stablemask::commands
