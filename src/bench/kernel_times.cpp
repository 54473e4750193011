#include "src/bench/kernel_times.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

namespace stablemask::bench {
namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

/// {substring of a kernel's name, part of the step}; the first match decides.
constexpr std::pair<const char*, const char*> kParts[] = {
    {"nccl", "communication"},
    {"SymmetricEpilogue", "Muon, symmetric products"},
    {"muon", "Muon, elementwise"},
    {"nvjet", "matrix products"},
    {"gemm", "matrix products"},  // includes fused_gemm with any epilogue
    {"cutlass", "matrix products"},
    {"splitKreduce", "matrix products"},
    {"quantize", "FP8 conversions"},
    {"update_scales", "FP8 conversions"},
    {"stable_mask", "StableMask correction"},
    {"rms_norm", "RMSNorm"},
    {"swiglu", "SwiGLU"},
    {"rope", "RoPE"},
    {"cross_entropy", "cross-entropy"},
    {"adamw", "AdamW"},
    {"squares", "gradient norm"},
    {"embedding", "embedding"},
    {"RadixSort", "embedding"},
    {"indexSelect", "embedding"},
    {"sdpa", "attention"},
    {"fmha", "attention"},
    {"flash", "attention"},
    {"cudnn", "attention"},
    {"Memcpy", "copies and zeros"},
    {"Memset", "copies and zeros"},
    {"FillFunctor", "copies and zeros"},
};

std::string part_of(const std::string& kernel) {
  for (const auto& [text, part] : kParts) {
    if (kernel.find(text) != std::string::npos) return part;
  }
  return "other";
}

std::string shortened(std::string name) {
  constexpr size_t kLength = 60;
  for (const char* noise : {"void ", "stablemask::ops::cuda::", "(anonymous namespace)::"}) {
    const size_t at = name.find(noise);
    if (at != std::string::npos) name.erase(at, std::string(noise).size());
  }
  return name.substr(0, kLength);
}

std::unique_ptr<profiler::ProfilerResult> profiled(const std::function<void()>& work) {
  const ProfilerConfig config(ProfilerState::KINETO);
  const std::set<ActivityType> activities = {ActivityType::CPU, ActivityType::CUDA};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  work();
  return profiler::disableProfiler();
}

}  // namespace

void save_trace(const std::string& file, const std::function<void()>& work) {
  profiled(work)->save(file);
}

std::vector<KernelTime> kernel_times(const std::function<void()>& work) {
  const auto result = profiled(work);
  std::map<std::string, KernelTime> parts;
  std::map<std::string, std::map<std::string, double>> kernels;
  for (const profiler::KinetoEvent& event : result->events()) {
    if (event.deviceType() != c10::DeviceType::CUDA) continue;
    const std::string name = event.name(), part = part_of(name);
    if (name == kStepScope) continue;
    const double milliseconds = static_cast<double>(event.durationNs()) * 1e-6;
    ++parts[part].launches;
    parts[part].milliseconds += milliseconds;
    kernels[part][name] += milliseconds;
  }
  std::vector<KernelTime> times;
  for (auto& [part, time] : parts) {
    const auto& of_part = kernels[part];
    const auto longest =
        std::max_element(of_part.begin(), of_part.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    time.part = part;
    time.kernel = shortened(longest->first);
    times.push_back(std::move(time));
  }
  std::sort(times.begin(), times.end(), [](const KernelTime& a, const KernelTime& b) {
    return a.milliseconds > b.milliseconds;
  });
  return times;
}

}  // namespace stablemask::bench
