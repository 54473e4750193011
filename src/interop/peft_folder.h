#pragma once

#include <string>

#include "stablemask/config/config.h"
#include "stablemask/interop/hugging_face.h"
#include "stablemask/io/checkpoint.h"

namespace stablemask::interop {

/// import_model of a folder of PEFT: a checkpoint of adapters of options.base.
ImportSummary import_adapters(const ImportOptions& options);

/// export_model of a checkpoint of adapters, to the new folder `folder`.
ExportSummary export_adapters(const Checkpoint& checkpoint, const Config& config,
                              const std::string& folder, const ExportOptions& options);

}  // namespace stablemask::interop
