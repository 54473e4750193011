#include "stablemask/io/base_checkpoint.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "src/io/manifest.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/text.h"
#include "stablemask/io/finite.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

/// What base.json holds.
struct BaseRecord {
  std::string relative;  ///< from the checkpoint of the adapters; "": not stated
  BaseReference base;
};

BaseRecord read_record(const Checkpoint& adapters) {
  try {
    const auto json = nlohmann::ordered_json::parse(adapters.base_json);
    return {json.value("relative", ""),
            {json.at("checkpoint").get<std::string>(), json.at("model_sha256").get<std::string>()}};
  } catch (const nlohmann::ordered_json::exception&) {
    throw CheckpointError(adapters.folder +
                          "/base.json: is damaged: not JSON with checkpoint and model_sha256");
  }
}

/// Symbolic links resolved as far as the path is there.
fs::path resolved(const fs::path& path) {
  std::error_code error;
  const fs::path found = fs::weakly_canonical(path, error);
  return error ? fs::absolute(path).lexically_normal() : found;
}

/// "" when `folder` is the checkpoint of the model with this hash.
std::string problem_of(const std::string& folder, const std::string& model_sha256) {
  std::error_code ignored;
  if (!fs::exists(folder + "/" + kManifestFile, ignored)) return folder + " is gone";
  try {
    if (read_checkpoint_model_sha256(folder) == model_sha256) return "";
    return folder + " has another model.safetensors";
  } catch (const CheckpointError& error) {
    return error.what();
  }
}

struct FoundBase {
  BaseReference base;
  std::vector<std::string> problems;  ///< of the places, when none has the model
};

FoundBase look_for_base(const Checkpoint& adapters) {
  const auto [relative, base] = read_record(adapters);
  std::vector<std::string> places, problems;
  if (!relative.empty()) places.push_back(resolved(fs::path(adapters.folder) / relative));
  if (places.empty() || places[0] != resolved(base.folder)) places.push_back(base.folder);
  for (const std::string& place : places) {
    std::string problem = problem_of(place, base.model_sha256);
    if (problem.empty()) return {{place, base.model_sha256}, {}};
    problems.push_back(std::move(problem));
  }
  return {base, problems};
}

}  // namespace

std::string base_json(const BaseReference& base, const std::string& folder) {
  const nlohmann::ordered_json json = {
      {"checkpoint", fs::absolute(base.folder).lexically_normal()},
      {"relative", resolved(base.folder).lexically_relative(resolved(folder))},
      {"model_sha256", base.model_sha256}};
  constexpr int kBaseIndent = 2;
  return json_text(json, kBaseIndent) + "\n";
}

std::optional<BaseReference> recorded_base(const Checkpoint& adapters) {
  if (adapters.base_json.empty()) return std::nullopt;
  return look_for_base(adapters).base;
}

std::optional<BaseReference> find_base(const Checkpoint& adapters) {
  if (adapters.base_json.empty()) return std::nullopt;
  FoundBase found = look_for_base(adapters);
  if (found.problems.empty()) return std::move(found.base);
  throw CheckpointError(adapters.folder + ": the checkpoint that its adapters belong to is lost: " +
                        join(found.problems, ", ") + "; put it back" +
                        (found.problems.size() > 1 ? " at one of these places" : ""));
}

std::optional<Checkpoint> load_base(const Checkpoint& adapters, const HashProgress& progress) {
  const std::optional<BaseReference> reference = find_base(adapters);
  if (!reference) return std::nullopt;
  Checkpoint base =
      load_checkpoint(reference->folder, CheckpointParts::kWithoutOptimizer, progress);
  if (base.model_sha256 != reference->model_sha256) {
    throw CheckpointError(base.folder + ": was replaced while it was read; try again");
  }
  require_finite_weights(base);
  return base;
}

}  // namespace stablemask
