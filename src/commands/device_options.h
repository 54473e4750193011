#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "src/commands/validators.h"
#include "stablemask/config/config.h"

namespace stablemask::commands {

/// --device and --dtype of the commands that run a checkpoint's model.
inline void add_device_options(CLI::App& command, DeviceKind& device, DtypeKind& dtype) {
  const std::map<std::string, DeviceKind> devices = {
      {"auto", DeviceKind::kAuto}, {"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}};
  const std::map<std::string, DtypeKind> dtypes = {
      {"auto", DtypeKind::kAuto}, {"fp32", DtypeKind::kFp32}, {"bf16", DtypeKind::kBf16}};
  command.add_option("--device", device, "auto (the GPU if there is one), cpu or cuda")
      ->transform(one_of(devices));
  command.add_option("--dtype", dtype, "auto (bf16 on a GPU, fp32 on the CPU), fp32 or bf16")
      ->transform(one_of(dtypes));
}

}  // namespace stablemask::commands
