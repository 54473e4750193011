#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "stablemask/base/config.h"

namespace stablemask::commands {

/// --device and --dtype of the commands that run a checkpoint's model.
inline void add_device_options(CLI::App& command, DeviceKind& device, DtypeKind& dtype) {
  static const std::map<std::string, DeviceKind> devices = {
      {"auto", DeviceKind::kAuto}, {"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}};
  static const std::map<std::string, DtypeKind> dtypes = {
      {"auto", DtypeKind::kAuto}, {"fp32", DtypeKind::kFp32}, {"bf16", DtypeKind::kBf16}};
  command.add_option("--device", device, "auto (the GPU if there is one), cpu or cuda")
      ->transform(CLI::CheckedTransformer(devices).description(""));
  command.add_option("--dtype", dtype, "auto (bf16 on a GPU, fp32 on the CPU), fp32 or bf16")
      ->transform(CLI::CheckedTransformer(dtypes).description(""));
}

}  // namespace stablemask::commands
