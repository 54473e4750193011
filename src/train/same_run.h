#pragma once

#include <string>

#include "src/train/run_inputs.h"
#include "stablemask/config/config.h"
#include "stablemask/dist/group.h"

namespace stablemask {

/// Throws on every process of `group` the same ConfigError when the processes differ in the
/// program, the config, the contents of tokenizer or shards, the kind of device or the compute
/// type. The error names the first process that differs and how.
void require_same_run(dist::Group& group, const Config& config, const RunInputs& inputs,
                      const std::string& device, bool bf16);

}  // namespace stablemask
