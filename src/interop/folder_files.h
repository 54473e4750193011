#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "stablemask/base/json_source.h"

/// Files of a folder for Hugging Face's libraries. Errors are CheckpointErrors.
namespace stablemask::interop {

/// The object in a JSON file of at most 1 MiB.
JsonValue read_json_object(const std::string& path);

/// Writes a new file and fsyncs it.
void write_text(const std::string& path, const std::string& text);
void write_json(const std::string& path, const nlohmann::ordered_json& json);

void require_new_folder(const std::string& folder);
/// Of `bytes` and some MB for texts in the file system of `folder`.
void require_space(const std::string& folder, uint64_t bytes);

}  // namespace stablemask::interop
