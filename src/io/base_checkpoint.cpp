#include "stablemask/io/base_checkpoint.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/io/finite.h"

namespace stablemask {
namespace {

struct BaseReference {
  std::string folder, model_sha256;
};

BaseReference read_reference(const Checkpoint& adapters) {
  try {
    const auto json = nlohmann::ordered_json::parse(adapters.base_json);
    return {json.at("checkpoint").get<std::string>(), json.at("model_sha256").get<std::string>()};
  } catch (const nlohmann::ordered_json::exception&) {
    throw CheckpointError(adapters.folder +
                          "/base.json: is damaged: not JSON with checkpoint and model_sha256");
  }
}

}  // namespace

std::string base_json(const Checkpoint& base) {
  const nlohmann::ordered_json json = {
      {"checkpoint", std::filesystem::absolute(base.folder).lexically_normal()},
      {"model_sha256", base.model_sha256}};
  constexpr int kBaseIndent = 2;
  return json_text(json, kBaseIndent) + "\n";
}

std::string base_folder(const Checkpoint& adapters) { return read_reference(adapters).folder; }

std::optional<Checkpoint> load_base(const Checkpoint& adapters, const HashProgress& progress) {
  if (adapters.base_json.empty()) return std::nullopt;
  const BaseReference reference = read_reference(adapters);
  std::error_code ignored;
  if (!std::filesystem::exists(reference.folder + "/manifest.json", ignored)) {
    throw CheckpointError(adapters.folder + ": holds adapters of " + reference.folder +
                          ", which is gone; put that checkpoint back");
  }
  Checkpoint base = load_checkpoint(reference.folder, CheckpointParts::kWithoutOptimizer, progress);
  if (base.model_sha256 != reference.model_sha256) {
    throw CheckpointError(adapters.folder + ": holds adapters of " + reference.folder +
                          ", whose model.safetensors has changed since; put the checkpoint that "
                          "was there back");
  }
  require_finite_weights(base);
  return base;
}

}  // namespace stablemask
