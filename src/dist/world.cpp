#include "stablemask/dist/world.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <string_view>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/text.h"

namespace stablemask::dist {
namespace {

constexpr int64_t kMostProcesses = 1 << 20;
constexpr int64_t kMostPorts = 65535;
/// From here on Slurm numbers steps that run one process each: batch script, interactive shell, ….
constexpr int64_t kReservedSteps = 0xfffffff0;

std::optional<int64_t> parse_integer(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// The variables of one launcher; an empty one counts as not set.
class Variables {
 public:
  Variables(const Environment& environment, std::string remedy)
      : environment_(environment), remedy_(std::move(remedy)) {}

  std::string_view text(const char* name) const {
    const char* value = environment_(name);
    return value == nullptr ? std::string_view() : std::string_view(value);
  }
  bool has(const char* name) const { return !text(name).empty(); }

  /// Of several names for one thing, the first that is set; if none is, the first.
  const char* first_set(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (has(name)) return name;
    }
    return *names.begin();
  }

  std::string_view required(const char* name) const {
    if (!has(name)) refuse(std::string(name) + " is not set");
    return text(name);
  }

  int64_t integer(const char* name, int64_t lowest, int64_t highest) const {
    const auto value = parse_integer(required(name));
    if (!value || *value < lowest || *value > highest) {
      malformed(name, "an integer of " + std::to_string(lowest) + " to " + std::to_string(highest));
    }
    return *value;
  }
  int64_t integer_or(const char* name, int64_t fallback, int64_t lowest, int64_t highest) const {
    return has(name) ? integer(name, lowest, highest) : fallback;
  }

  [[noreturn]] void malformed(const char* name, const std::string& expected) const {
    refuse(std::string(name) + " is " + in_quotes(text(name)) + ", not " + expected);
  }
  [[noreturn]] void refuse(const std::string& problem) const {
    throw ConfigError("environment: " + problem + "; " + remedy_);
  }

 private:
  const Environment& environment_;
  std::string remedy_;
};

bool agent_serves_store(const Variables& variables) {
  const char* name = "TORCHELASTIC_USE_AGENT_STORE";
  const std::string_view text = variables.text(name);
  if (text == "True") return true;
  if (!text.empty() && text != "False") variables.malformed(name, "True or False");
  return false;
}

World torchrun_world(const Environment& environment) {
  const Variables variables(environment,
                            "start the program with torchrun, or unset RANK and WORLD_SIZE to run "
                            "one process");
  World world;
  world.launcher = "torchrun";
  world.size = variables.integer("WORLD_SIZE", 1, kMostProcesses);
  world.rank = variables.integer("RANK", 0, world.size - 1);
  if (variables.has("LOCAL_RANK") || variables.has("LOCAL_WORLD_SIZE")) {
    world.local_size = variables.integer("LOCAL_WORLD_SIZE", 1, world.size);
    world.local_rank = variables.integer("LOCAL_RANK", 0, world.local_size - 1);
  } else {
    world.local_size = world.size;
    world.local_rank = world.rank;
  }
  if (world.size == 1) return world;
  world.address = variables.required("MASTER_ADDR");
  world.port = variables.integer("MASTER_PORT", 1, kMostPorts);
  world.launcher_serves = agent_serves_store(variables);
  const int64_t restarts = variables.integer_or("TORCHELASTIC_RESTART_COUNT", 0, 0, INT64_MAX);
  world.attempt =
      std::string(variables.text("TORCHELASTIC_RUN_ID")) + "." + std::to_string(restarts);
  // The agent's store lives on when machines come or go, which counts as no restart.
  if (world.launcher_serves) world.attempt += "." + std::to_string(world.size);
  return world;
}

/// The first name of a list like "gpu[003-007,9],x1"; "" when it is malformed.
std::string first_host(std::string_view list) {
  std::string host;
  for (size_t i = 0; i < list.size() && list[i] != ','; ++i) {
    if (list[i] == ']') return "";
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const size_t end = list.find(']', i);
    if (end == std::string_view::npos) return "";
    const std::string_view ranges = list.substr(i + 1, end - i - 1);
    const std::string_view first = ranges.substr(0, ranges.find_first_of(",-"));
    if (first.empty()) return "";
    host += first;
    i = end;
  }
  return host;
}

/// The numbers of a list like "4(x2),3": 4, 4, 3; empty when it is malformed.
std::vector<int64_t> tasks_per_node(std::string_view list) {
  std::vector<int64_t> counts;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    std::string_view entry = list.substr(begin, end - begin);
    std::optional<int64_t> nodes = 1;
    if (const size_t times = entry.find("(x"); times != std::string_view::npos) {
      if (entry.back() != ')') return {};
      nodes = parse_integer(entry.substr(times + 2, entry.size() - times - 3));
      entry = entry.substr(0, times);
    }
    const auto count = parse_integer(entry);
    if (!count || *count < 1 || *count > kMostProcesses || !nodes || *nodes < 1 ||
        *nodes + static_cast<int64_t>(counts.size()) > kMostProcesses) {
      return {};
    }
    counts.insert(counts.end(), *nodes, *count);
    begin = end + 1;
  }
  return counts;
}

int64_t tasks_of_node(const Variables& variables, int64_t size) {
  const char* name = variables.first_set({"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"});
  variables.required(name);
  const std::vector<int64_t> counts = tasks_per_node(variables.text(name));
  if (counts.empty()) variables.malformed(name, "a list like 4(x2),3");
  const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (sum != size) {
    variables.malformed(name, "a list of " + std::to_string(size) +
                                  " tasks in all, the number in " +
                                  variables.first_set({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}));
  }
  return counts[variables.integer("SLURM_NODEID", 0, static_cast<int64_t>(counts.size()) - 1)];
}

std::string step_address(const Variables& variables) {
  if (variables.has("MASTER_ADDR")) return std::string(variables.text("MASTER_ADDR"));
  const char* name = variables.first_set({"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"});
  const std::string host = first_host(variables.required(name));
  if (host.empty()) variables.malformed(name, "a list like gpu[003-007,9],x1");
  return host;
}

int64_t step_port(const Variables& variables, int64_t step) {
  if (variables.has("MASTER_PORT")) return variables.integer("MASTER_PORT", 1, kMostPorts);
  constexpr int64_t kFirst = 20000, kPorts = 20000;  // steps of one job differ, jobs mostly do
  return kFirst +
         (variables.integer("SLURM_JOB_ID", 0, INT64_MAX - kReservedSteps) + step) % kPorts;
}

World srun_world(const Environment& environment, int64_t step) {
  const Variables variables(environment,
                            "start the program with srun, or unset SLURM_STEP_ID to run one "
                            "process");
  World world;
  world.launcher = "srun";
  world.size = variables.integer(variables.first_set({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}), 1,
                                 kMostProcesses);
  world.rank = variables.integer("SLURM_PROCID", 0, world.size - 1);
  if (world.size == 1) return world;
  world.local_size = tasks_of_node(variables, world.size);
  world.local_rank = variables.integer("SLURM_LOCALID", 0, world.local_size - 1);
  world.address = step_address(variables);
  world.port = step_port(variables, step);
  world.attempt = std::to_string(step) + "." +
                  std::to_string(variables.integer_or("SLURM_RESTART_COUNT", 0, 0, INT64_MAX));
  return world;
}

}  // namespace

World world_from_environment(const Environment& environment) {
  const Variables variables(environment, "start the program with srun or torchrun");
  if (variables.has("RANK") || variables.has("WORLD_SIZE")) return torchrun_world(environment);
  // In a batch script the variables of the job are set, but there is no step yet.
  if (!variables.has("SLURM_STEP_ID") || !variables.has("SLURM_PROCID")) return {};
  const int64_t step = variables.integer("SLURM_STEP_ID", 0, UINT32_MAX);
  return step < kReservedSteps ? srun_world(environment, step) : World();
}

World world_from_environment() {
  return world_from_environment([](const char* name) { return std::getenv(name); });
}

}  // namespace stablemask::dist
