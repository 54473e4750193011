#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "src/commands/commands.h"
#include "src/commands/sample_preview.h"
#include "src/commands/text_data.h"
#include "src/commands/validators.h"
#include "src/synth/synth.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/data/prepare.h"
#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask::commands {
namespace {

unsigned long long ull(uint64_t value) { return value; }

nlohmann::ordered_json to_json(const std::string& path, const ShardInfo& info) {
  nlohmann::ordered_json json = {{"path", path},
                                 {"version", info.version},
                                 {"token_bytes", info.token_bytes},
                                 {"vocab_size", info.vocab_size},
                                 {"tokens", info.tokens},
                                 {"lines", info.lines},
                                 {"words", info.words},
                                 {"bytes", info.bytes},
                                 {"documents", info.documents},
                                 {"tokenizer_sha256", info.tokenizer_sha256},
                                 {"text_sha256", info.text_sha256},
                                 {"payload_sha256", info.payload_sha256}};
  if (info.has_samples()) {
    json["template"] = info.sample_template;
    json["trained"] = info.trained;
  }
  return json;
}

/// Of a shard whose text is known; ids come without it.
void print_text_counts(const ShardInfo& info) {
  std::printf("  lines      %llu\n", ull(info.lines));
  std::printf("  words      %llu (%llu with EOS)\n", ull(info.words), ull(info.words + info.lines));
  std::printf("  bytes      %llu\n", ull(info.bytes));
  std::printf("  tokens per word, EOS counted as one: %.4f\n",
              static_cast<double>(info.tokens) / static_cast<double>(info.words + info.lines));
}

void print_info(const std::string& path, const ShardInfo& info) {
  const bool text_known = info.bytes > 0;
  std::printf("%s: version %u, %s tokens of a vocabulary of %llu\n", path.c_str(), info.version,
              info.token_bytes == 2 ? "uint16" : "uint32", ull(info.vocab_size));
  std::printf("  tokens     %llu%s\n", ull(info.tokens),
              text_known ? " (an EOS for each line included)" : " (given as ids)");
  if (text_known) print_text_counts(info);
  std::printf("  documents  %llu\n", ull(info.documents));
  if (info.has_samples()) {
    std::printf("  samples    %llu, template \"%s\"; %llu tokens (%.1f %%) are trained\n",
                ull(info.documents), info.sample_template.c_str(), ull(info.trained),
                100 * static_cast<double>(info.trained) / static_cast<double>(info.tokens));
  }
  std::printf("  tokenizer  %s\n  text       %s\n  payload    %s\n", info.tokenizer_sha256.c_str(),
              text_known ? info.text_sha256.c_str() : "not known", info.payload_sha256.c_str());
}

/// The corpus replaces nothing: the folder may hold a genuine WikiText.
void require_absent(const std::string& folder) {
  for (const char* split : {"train", "valid", "test"}) {
    const std::string path = folder + "/wiki." + split + ".tokens";
    std::error_code absent;
    if (std::filesystem::exists(std::filesystem::symlink_status(path, absent))) {
      throw ConfigError(path + ": exists; name another --output, or replace it with --force");
    }
  }
}

void add_synth(CLI::App& parent) {
  struct Options {
    std::string folder;
    uint64_t seed = 1;
    double megabytes = 3.0;
    bool force = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = parent.add_subcommand(
      "synth", "Write an invented encyclopedia in WikiText format: train, valid, test");
  command->add_option("--output", options->folder, "Folder to write into")->required();
  command->add_option("--seed", options->seed, "Seed of the invented facts")
      ->capture_default_str()
      ->check(number_from(0));
  command->add_option("--megabytes", options->megabytes, "Size of the training split")
      ->capture_default_str()
      ->check(number_from(0.1, 1000.0));
  command->add_flag("--force", options->force,
                    "Replace wiki.{train,valid,test}.tokens in the folder");
  command->footer("Example:\n  stablemask data synth --output runs/encyclopedia --megabytes 3");
  command->callback([options] {
    if (options->folder == "-") {
      throw ConfigError("--output -: three files are written; name a folder");
    }
    if (!options->force) require_absent(options->folder);
    synthesize_corpus(options->folder, options->seed,
                      static_cast<uint64_t>(options->megabytes * 1e6));
    for (const char* split : {"train", "valid", "test"}) {
      const std::string path = options->folder + "/wiki." + split + ".tokens";
      const TextCounts counts = count_text(path);
      std::printf("%s: %llu lines, %llu words, %llu bytes, %llu documents\n", path.c_str(),
                  ull(counts.lines), ull(counts.words), ull(counts.bytes), ull(counts.documents));
    }
  });
}

void add_prepare(CLI::App& parent) {
  struct Options {
    std::string input, ids, output, tokenizer;
    PrepareOptions prepare;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = parent.add_subcommand(
      "prepare", "Encode text or JSONL into a token shard, in constant memory");
  CLI::App& source = *command->add_option_group("source");
  source.add_option("--input", options->input, "Text or JSONL file; - is standard input");
  source.add_option("--ids", options->ids,
                    "Token ids of another program as JSONL, {\"ids\": [5, 6]} a document, in place "
                    "of --input; - is standard input");
  source.require_option(1);
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "SentencePiece model; with --ids also a tokenizer.json")
      ->required();
  command->add_option("--output", options->output, "The shard to write")->required();
  add_text_format(*command, options->prepare);
  command->add_option("--threads", options->prepare.threads, "CPU threads")
      ->capture_default_str()
      ->check(number_from(1, 1024));
  command->footer(
      "Examples:\n"
      "  stablemask data prepare --input wiki.train.tokens --tokenizer tokenizer.model --output "
      "train.shard --threads 2\n"
      "  xz -dc wiki.train.tokens.xz | stablemask data prepare --input - --tokenizer "
      "tokenizer.model --output train.shard\n"
      "  scripts/encode.sh --tokenizer Qwen3 --input text.jsonl | stablemask data prepare --ids - "
      "--tokenizer Qwen3/tokenizer.json --output train.shard");
  command->callback([options] {
    require_other_file(options->output, {options->tokenizer});
    const Tokenizer tokenizer = Tokenizer::load(options->tokenizer);
    const ShardInfo info =
        options->ids.empty()
            ? prepare_shown(options->input, options->output, tokenizer, options->prepare)
            : prepare_shown(options->ids, options->output, tokenizer, options->prepare,
                            &prepare_ids);
    print_info(options->output, info);
  });
}

struct InspectOptions {
  std::string shard, tokenizer;
  bool verify = false;
  bool json = false;
  int64_t samples = 0, context = 0;
};

/// The first samples, with what is trained on and what is masked.
void print_samples(const Shard& shard, const InspectOptions& options) {
  if (options.context > 0) std::fputs(packing_text(shard, options.context).c_str(), stdout);
  if (options.samples == 0) return;
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  shard.require_tokenizer(tokenizer.sha256());
  std::fputs(preview_legend(tokenizer).c_str(), stdout);
  const auto all = static_cast<int64_t>(shard.info().documents);
  for (int64_t number = 0; number < std::min(options.samples, all); ++number) {
    check_stop("printing samples");
    std::fputs(sample_preview(shard, tokenizer, number, options.context).c_str(), stdout);
  }
}

void require_fitting(const InspectOptions& options, const Shard& shard) {
  const bool of_samples = options.samples > 0 || options.context > 0;
  if (of_samples && options.json) {
    throw ConfigError("--json prints the header; leave out --samples and --context");
  }
  if (of_samples && !shard.info().has_samples()) {
    throw DataError("shard " + shard.path() +
                    ": is of text, every token of which is trained on; --samples and --context are "
                    "for a shard of samples");
  }
  if (options.samples > 0 && options.tokenizer.empty()) {
    throw ConfigError("--samples needs --tokenizer, the SentencePiece model of the shard");
  }
}

void add_inspect(CLI::App& parent) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = parent.add_subcommand(
      "inspect", "Print the header of a token shard, and samples of instruction data");
  command->add_option("shard", options->shard, "The shard")->required();
  command->add_flag("--verify", options->verify, "Read the payload and check its hash");
  command->add_flag("--json", options->json, "Print JSON");
  command
      ->add_option("--samples", options->samples,
                   "Instruction data: print the first N samples, what is trained on and what is "
                   "masked")
      ->check(number_from(1));
  command->add_option("--tokenizer", options->tokenizer, "SentencePiece model, for --samples");
  command
      ->add_option("--context", options->context,
                   "Instruction data: what training with this context packs, truncates and drops")
      ->check(number_from(1, 1 << 24));
  command->footer(
      "Examples:\n  stablemask data inspect train.shard --verify\n"
      "  stablemask data inspect chat.shard --samples 3 --tokenizer tokenizer.model --context "
      "1024");
  command->callback([options] {
    const Shard shard = Shard::open(options->shard);
    require_fitting(*options, shard);
    if (options->verify) verify_shown(shard);
    if (options->json) {
      auto json = to_json(options->shard, shard.info());
      json["verified"] = options->verify;
      std::printf("%s\n", json_text(json, 2).c_str());
      return;
    }
    print_info(options->shard, shard.info());
    if (options->verify) std::printf("  verified: the payload is intact\n");
    print_samples(shard, *options);
  });
}

}  // namespace

void add_data(CLI::App& program) {
  CLI::App* command = program.add_subcommand("data", "Generate, prepare and inspect corpora");
  command->require_subcommand(1);
  command->footer(
      "Example:\n  stablemask data prepare --input wiki.train.tokens --tokenizer tokenizer.model "
      "--output train.shard");
  add_synth(*command);
  add_prepare(*command);
  add_inspect(*command);
}

}  // namespace stablemask::commands
