#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "src/commands/commands.h"
#include "src/commands/validators.h"
#include "src/commands/weights_option.h"
#include "stablemask/interop/hugging_face.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

HashProgress shown_by(WorkProgress& progress) {
  return [&progress](uint64_t done, uint64_t total) {
    progress.show(static_cast<int64_t>(done), static_cast<int64_t>(total));
  };
}

void run_import(interop::ImportOptions options, bool stable_mask) {
  // First, so that --set can change what it turns on.
  if (stable_mask) {
    options.overrides.insert(options.overrides.begin(), "model.stable_mask.enabled=true");
  }
  interop::ImportSummary summary;
  {
    WorkProgress progress("importing", "B");
    options.progress = shown_by(progress);
    summary = interop::import_model(options);
  }
  std::printf("%s: %s of %.1f million parameters\n", options.to.c_str(),
              summary.architecture.c_str(), static_cast<double>(summary.parameters) / 1e6);
}

void run_export(interop::ExportOptions options) {
  interop::ExportSummary summary;
  {
    WorkProgress progress("exporting", "B");
    options.progress = shown_by(progress);
    summary = interop::export_model(options);
  }
  std::printf("%s: %s, weights in %lld file%s\n", options.to.c_str(), summary.architecture.c_str(),
              static_cast<long long>(summary.files), summary.files == 1 ? "" : "s");
}

}  // namespace

void add_import(CLI::App& program) {
  auto options = std::make_shared<interop::ImportOptions>();
  auto stable_mask = std::make_shared<bool>(false);
  CLI::App* command = program.add_subcommand(
      "import", "Convert a model of Hugging Face's transformers, or adapters, into a checkpoint");
  command
      ->add_option("--from", options->from,
                   "Folder with config.json and safetensors files, or adapters of PEFT")
      ->required();
  command->add_option("--out", options->to, "Checkpoint folder to write; it must not exist")
      ->required();
  command->add_option("--tokenizer", options->tokenizer,
                      "SentencePiece model or tokenizer.json for the checkpoint; else that of the "
                      "folder");
  command->add_flag("--no-tokenizer", options->without_tokenizer,
                    "Write a checkpoint without a tokenizer, to finetune from");
  command->add_flag("--stable-mask", *stable_mask,
                    "Add StableMask with its defaults, to finetune with; the mask length is the "
                    "model's longest input");
  command->add_option("--base", options->base,
                      "Checkpoint or run that adapters of PEFT, in the folder, belong to");
  command->add_option("--ignore", options->ignored_fields,
                      "Field of config.json that is not known and may be passed over; may be "
                      "repeated");
  add_set_option(*command, options->overrides);
  command->footer("Example:\n  stablemask import --from Llama-3.2-1B --out runs/llama");
  command->callback([=] { run_import(*options, *stable_mask); });
}

void add_export(CLI::App& program) {
  auto options = std::make_shared<interop::ExportOptions>();
  const std::map<std::string, ElementType> types = {
      {"fp32", ElementType::kF32}, {"bf16", ElementType::kBf16}, {"fp16", ElementType::kF16}};
  auto shard_size = std::make_shared<double>(5.0);
  CLI::App* command = program.add_subcommand(
      "export", "Convert a checkpoint into a folder for Hugging Face's transformers, or PEFT");
  command->add_option("--checkpoint", options->from, "A checkpoint, or a run for its newest one")
      ->required();
  command->add_option("--to", options->to, "Folder to write; it must not exist")->required();
  add_weights_option(*command, options->weights);
  command->add_option("--dtype", options->type, "Type of the weights: fp32 (default), bf16, fp16")
      ->transform(one_of(types));
  command->add_option("--shard-size", *shard_size, "Most GB of weights in a file (default 5)")
      ->check(number_from(1e-6, 1e6));
  command->footer(
      "Example:\n  stablemask export --checkpoint runs/quickstart/pretrained --to exported");
  command->callback([=] {
    options->shard_bytes = static_cast<uint64_t>(*shard_size * 1e9);
    run_export(*options);
  });
}

}  // namespace stablemask::commands
