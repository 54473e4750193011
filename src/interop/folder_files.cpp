#include "src/interop/folder_files.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"

namespace stablemask::interop {
namespace {

constexpr uint64_t kMaxJsonBytes = uint64_t{1} << 20;
constexpr uint64_t kSlackBytes = uint64_t{8} << 20;  // config, tokenizer and headers

}  // namespace

JsonValue read_json_object(const std::string& path) {
  JsonValue json;
  try {
    json = parse_json(InputFile(path, ExitCode::kCheckpoint).text(kMaxJsonBytes));
  } catch (const JsonSyntaxError& error) {
    throw CheckpointError(path + ":" + std::to_string(error.at().line) + ":" +
                          std::to_string(error.at().column) + ": " + error.what());
  }
  if (json.kind != JsonValue::Kind::kObject) {
    throw CheckpointError(path + ": is " + describe(json) + " instead of an object");
  }
  return json;
}

void write_text(const std::string& path, const std::string& text) {
  DurableFile file(path, ExitCode::kCheckpoint);
  file.write(text.data(), text.size());
  file.finish();
}

void write_json(const std::string& path, const nlohmann::ordered_json& json) {
  constexpr int kIndent = 2;
  write_text(path, json_text(json, kIndent) + "\n");
}

void require_new_folder(const std::string& folder) {
  std::error_code ignored;
  if (std::filesystem::symlink_status(folder, ignored).type() !=
      std::filesystem::file_type::not_found) {
    throw CheckpointError(folder + ": exists already; name a new folder");
  }
}

void require_space(const std::string& folder, uint64_t bytes) {
  const std::optional<uint64_t> free = free_space(folder);
  if (!free || *free >= bytes + kSlackBytes) return;
  throw CheckpointError(format("%s: not enough space: %.1f MB needed, %.1f MB free", folder.c_str(),
                               static_cast<double>(bytes + kSlackBytes) / 1e6,
                               static_cast<double>(*free) / 1e6));
}

}  // namespace stablemask::interop
