#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/run_table.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/config/config.h"
#include "stablemask/report/run_summary.h"

namespace stablemask::commands {
namespace {

/// "model.stable_mask.gamma" and its value for every field of a config.
void flatten(const nlohmann::ordered_json& value, const std::string& path, RunRow& row) {
  for (const auto& [key, member] : value.items()) {
    const std::string name = path.empty() ? key : path + "." + key;
    if (member.is_object()) {
      flatten(member, name, row);
    } else {
      row.fields.emplace_back(name, json_text(member));
    }
  }
}

/// Reads config.json, migrated to the program's version, so that runs of several versions compare.
void read_config(const std::string& run, RunRow& row) {
  constexpr uint64_t kLimit = 1 << 20;
  const std::string path = run + "/config.json";
  const Config config = parse_saved_config(InputFile(path, ExitCode::kData).text(kLimit), path);
  row.steps = config.train.steps;
  auto json = nlohmann::ordered_json::parse(dump_config(config));
  json.erase("version");
  flatten(json, "", row);
}

/// Takes over the first line of an error as the row's problem.
template <typename Action>
void try_reading(RunRow& row, Action action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string text = error.what();
    if (row.problem.empty()) row.problem = text.substr(0, text.find('\n'));
  }
}

RunRow read_row(const std::string& folder, const std::string& run) {
  namespace fs = std::filesystem;
  RunRow row;
  row.path = run;
  row.name = run == folder ? fs::weakly_canonical(run).filename().string()
                           : fs::path(run).lexically_relative(folder).string();
  try_reading(row, [&] { row.summary = summarize_run(run); });
  try_reading(row, [&] { read_config(run, row); });
  if (row.problem.empty() && row.summary.damaged > 0) {
    row.problem =
        run + "/metrics.jsonl: damaged lines left out: " + std::to_string(row.summary.damaged);
  }
  return row;
}

/// Columns of the terminal on standard output; 80 for files and pipes.
size_t output_width() {
  winsize size{};
  const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return std::max<size_t>(known ? size.ws_col : kRunTableWidth, kRunTableWidth);
}

struct RunsOptions {
  std::string folder;
  bool csv = false, json = false;
};

void show(const RunsOptions& options) {
  std::vector<RunRow> rows;
  for (const std::string& run : find_runs(options.folder)) {
    check_stop("reading runs");
    rows.push_back(read_row(options.folder, run));
  }
  if (rows.empty()) {
    throw DataError(options.folder + ": holds no run, which is a folder with metrics.jsonl");
  }
  const std::string text = options.csv    ? run_csv(rows)
                           : options.json ? run_json(rows)
                                          : run_table(rows, output_width());
  std::fputs(text.c_str(), stdout);
}

}  // namespace

void add_runs(CLI::App& program) {
  auto options = std::make_shared<RunsOptions>();
  CLI::App* command = program.add_subcommand(
      "runs", "List runs with their figures and the config fields in which they differ");
  command->add_option("folder", options->folder, "A folder; every run at and below it is listed")
      ->required();
  CLI::Option* csv = command->add_flag("--csv", options->csv, "CSV with every figure and field");
  command->add_flag("--json", options->json, "The same as JSON")->excludes(csv);
  command->footer(
      "loss: last mean training loss; valid, word ppl: lowest validation loss and its word\n"
      "perplexity; tok/s: median. Runs in progress are read as far as they are;\n"
      "nothing is locked.\n"
      "Example:\n  stablemask runs runs");
  command->callback([options] { show(*options); });
}

}  // namespace stablemask::commands
