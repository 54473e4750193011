#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "src/bench/bench.h"
#include "src/bench/start_together.h"
#include "stablemask/base/error.h"
#include "stablemask/infer/load.h"
#include "stablemask/ops/device.h"
#include "stablemask/train/torch_settings.h"

namespace stablemask::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int64_t kSmallestBytes = 64 << 10;
constexpr int64_t kGrowth = 4;  ///< from one size to the next
constexpr int kRounds = 5;

struct Collective {
  const char* name;
  std::function<void(dist::Group&, const at::Tensor&)> run;
  double traffic;  ///< of the bus bandwidth: a buffer crosses a link traffic * (n - 1) / n times
};

const Collective kCollectives[] = {
    {"all_reduce",
     [](auto& group, const auto& flat) { group.all_reduce(flat, dist::Reduce::kSum); }, 2},
    {"reduce_scatter",
     [](auto& group, const auto& flat) { group.reduce_scatter(flat, dist::Reduce::kSum); }, 1},
    {"all_gather", [](auto& group, const auto& flat) { group.all_gather(flat); }, 1}};

/// Small buffers take little time: several calls, so that waiting for the result counts less.
int64_t calls_per_round(int64_t bytes) {
  return std::clamp<int64_t>((int64_t{256} << 20) / bytes, 2, 20);
}

/// Seconds of a call: the median of the rounds, of which the slowest process counts.
double time_of(const Collective& collective, dist::Group& group, const at::Tensor& flat) {
  const int64_t calls = calls_per_round(flat.nbytes());
  std::vector<double> seconds;
  for (int round = 0; round <= kRounds; ++round) {
    start_together(group);
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls; ++i) collective.run(group, flat);
    group.read(flat.narrow(0, 0, 1));
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    if (round > 0) seconds.push_back(elapsed / static_cast<double>(calls));
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  const at::Tensor median = at::full({1}, seconds[kRounds / 2], flat.options().dtype(at::kDouble));
  group.all_reduce(median, dist::Reduce::kMax);
  return group.read(median).item<double>();
}

/// Whether the own part holds the sum over processes, and all parts where all are reduced or
/// gathered, when process r has contributed r + 1.
bool right(const Collective& collective, dist::Group& group, const at::Tensor& flat) {
  const int64_t size = group.size(), part = flat.numel() / size;
  flat.fill_(static_cast<double>(group.rank() + 1));
  collective.run(group, flat);
  const at::Tensor parts = group.read(flat).view({size, part});
  const bool gathers = std::string(collective.name) == "all_gather";
  bool equal = true;
  for (int64_t r = 0; r < size; ++r) {
    if (std::string(collective.name) == "reduce_scatter" && r != group.rank()) continue;
    const double expected =
        gathers ? static_cast<double>(r + 1) : static_cast<double>(size * (size + 1)) / 2;
    equal = equal && parts[r].eq(expected).all().item<bool>();
  }
  return group.agree(equal ? 0 : 1) == 0;
}

void measure(dist::Group& group, at::Device device, int64_t bytes, Report& report) {
  const auto size = static_cast<double>(group.size());
  const int64_t unit = group.size() * static_cast<int64_t>(sizeof(float));
  const at::Tensor flat =
      at::empty({bytes / unit * group.size()}, at::TensorOptions(at::kFloat).device(device));
  for (const Collective& collective : kCollectives) {
    if (!right(collective, group, flat)) {
      if (group.rank() == 0)
        std::printf("%-15s %12zu bytes: WRONG\n", collective.name, flat.nbytes());
      report.right = false;
      continue;
    }
    flat.zero_();  // sums of sums would overflow
    const double seconds = time_of(collective, group, flat);
    const double bandwidth =
        collective.traffic * (size - 1) / size * static_cast<double>(flat.nbytes()) / seconds;
    report.json["collectives"].push_back({{"collective", collective.name},
                                          {"bytes", flat.nbytes()},
                                          {"microseconds", 1e6 * seconds},
                                          {"bus_bytes_per_second", bandwidth}});
    if (group.rank() == 0) {
      std::printf("%-15s %12.3f %12.1f %10.2f\n", collective.name,
                  static_cast<double>(flat.nbytes()) / (1 << 20), 1e6 * seconds, 1e-9 * bandwidth);
    }
  }
}

}  // namespace

Report run_collectives(const CollectivesOptions& options) {
  configure_torch(options.train);
  dist::Group& group = *options.processes.group;
  if (group.size() == 1) {
    throw ConfigError(
        "this benchmark needs several processes: start it with `torchrun --standalone --no-python "
        "--nproc-per-node N`");
  }
  const at::Device device = select_device(options.train.device, options.processes.local_rank);
  Report report;
  report.json = {{"device", ops::device_name(device)},
                 {"processes", group.size()},
                 {"collectives", Json::array()}};
  if (group.rank() == 0) {
    std::printf("%lld processes, %s\n%-15s %12s %12s %10s\n", static_cast<long long>(group.size()),
                ops::device_name(device).c_str(), "collective", "MiB", "us", "bus GB/s");
  }
  for (int64_t bytes = kSmallestBytes; bytes <= options.largest_bytes; bytes *= kGrowth) {
    measure(group, device, bytes, report);
  }
  return report;
}

}  // namespace stablemask::bench
