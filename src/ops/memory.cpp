#include "stablemask/ops/memory.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>

#include <new>
#include <regex>

namespace stablemask::ops {

std::string out_of_memory_message(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return "host memory is exhausted";
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  if (torch_error == nullptr) return "";
  const std::string text = torch_error->what_without_backtrace();
  const bool is_memory = dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
                         text.find("can't allocate memory") != std::string::npos;
  if (!is_memory) return "";
  // LibTorch's message has several lines of allocator statistics and Python advice; keep the size.
  static const std::regex kSize("ried to allocate ([0-9.]+ ?[A-Za-z]+)");
  std::smatch match;
  return std::regex_search(text, match, kSize) ? "could not allocate " + match[1].str()
                                               : "device memory is exhausted";
}

int64_t peak_memory_bytes(at::Device device) {
  if (device.is_cpu()) {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<int64_t>(usage.ru_maxrss) * 1024;
  }
  constexpr size_t kAllPools = 0;
  return at::getDeviceAllocator(device.type())
      ->getDeviceStats(device.index() < 0 ? 0 : device.index())
      .allocated_bytes[kAllPools]
      .peak;
}

}  // namespace stablemask::ops
