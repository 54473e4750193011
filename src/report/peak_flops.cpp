#include "stablemask/report/peak_flops.h"

namespace stablemask {
namespace {

struct DevicePeak {
  const char* name;  ///< a part of the device's name
  double flops;
};

/// The first match counts: variants stand before the name they contain.
constexpr DevicePeak kDevicePeaks[] = {
    {"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989e12},
    {"H200 NVL", 836e12},  {"H200", 989e12},     {"A100", 312e12},
    {"A30", 165e12},       {"L40S", 362e12},     {"L4", 121e12},
};

}  // namespace

std::optional<double> peak_flops(const std::string& device_name) {
  for (const DevicePeak& peak : kDevicePeaks) {
    const size_t at = device_name.find(peak.name);
    if (at == std::string::npos) continue;
    // "L4" must not match "L40", nor "A30" "A3000".
    const size_t end = at + std::string(peak.name).size();
    if (end == device_name.size() || device_name[end] == ' ' || device_name[end] == '-') {
      return peak.flops;
    }
  }
  return std::nullopt;
}

}  // namespace stablemask
