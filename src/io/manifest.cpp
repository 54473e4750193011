#include "src/io/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "stablemask-checkpoint";
constexpr int64_t kVersion = 1;
constexpr int kIndent = 2;

struct KnownFile {
  const char* name;
  bool required;
};
constexpr KnownFile kKnownFiles[] = {{kModelFile, true},
                                     {kOptimizerFile, false},
                                     {kTrainedFile, false},
                                     {kStateFile, true},
                                     {kConfigFile, true},
                                     {kTokenizerFile, false},
                                     {kTokenizerJsonFile, false},
                                     {kTokenizerCompanions[0], false},
                                     {kTokenizerCompanions[1], false},
                                     {kTokenizerCompanions[2], false},
                                     {kTokenizerCompanions[3], false},
                                     {kBaseFile, false}};

/// Json::get also converts a fraction of any size, for which C++ defines no result.
template <typename Integer>
Integer integer(const Json& json, const std::string& path) {
  if (json.is_number_integer()) return json.get<Integer>();
  throw CheckpointError(path + ": is damaged: a size, step or version is not an integer");
}

void check_files(const Manifest& manifest, const std::string& path) {
  for (const KnownFile& known : kKnownFiles) {
    if (known.required && manifest.files.count(known.name) == 0) {
      throw CheckpointError(path + ": lists no " + known.name);
    }
  }
  for (const auto& [name, digest] : manifest.files) {
    const auto is_this = [&name = name](const KnownFile& known) { return name == known.name; };
    if (std::none_of(std::begin(kKnownFiles), std::end(kKnownFiles), is_this)) {
      throw CheckpointError(path + ": lists a file " + in_quotes(name) + " that no checkpoint has");
    }
  }
}

}  // namespace

std::string render_manifest(const Manifest& manifest) {
  Json json = {{"format", kFormat}, {"version", kVersion}, {"step", manifest.step}};
  json["files"] = Json::object();
  for (const auto& [name, digest] : manifest.files) {
    json["files"][name] = {{"bytes", digest.bytes}, {"sha256", digest.sha256}};
  }
  const std::string body = json.dump(kIndent);
  json["sha256"] = sha256_hex(body.data(), body.size());
  return json.dump(kIndent) + "\n";
}

Manifest parse_manifest(const std::string& text, const std::string& path) {
  Manifest manifest;
  bool same = false;
  try {
    const Json json = Json::parse(text);
    if (json.at("format").get<std::string>() != kFormat) {
      throw CheckpointError(path + ": is not the manifest of a checkpoint");
    }
    const auto version = integer<int64_t>(json.at("version"), path);
    if (version > kVersion) {
      throw NewerVersionError(
          format("%s: was written by a newer version of the program (manifest "
                 "version %lld; this program reads %lld); update the program",
                 path.c_str(), static_cast<long long>(version), static_cast<long long>(kVersion)));
    }
    manifest.step = integer<int64_t>(json.at("step"), path);
    for (const auto& [name, file] : json.at("files").items()) {
      manifest.files[name] = {integer<uint64_t>(file.at("bytes"), path),
                              file.at("sha256").get<std::string>()};
    }
    // One comparison instead of a check of each type, key and space.
    same = render_manifest(manifest) == text;
  } catch (const Json::exception&) {
    throw CheckpointError(path + ": is damaged: not JSON, or a field is absent or of a wrong type");
  }
  if (!same) throw CheckpointError(path + ": is damaged: its hash differs");
  if (manifest.step < 0) throw CheckpointError(path + ": has a negative step");
  check_files(manifest, path);
  return manifest;
}

}  // namespace stablemask
