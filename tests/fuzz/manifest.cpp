// Input: manifest.json, as it is, and again in the manifest's spelling with its own hash put right.
#include "src/io/manifest.h"

#include <nlohmann/json.hpp>

#include "stablemask/base/sha256.h"
#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {
namespace {

using Json = nlohmann::ordered_json;

void check(const std::string& text) {
  accepted<CheckpointError>([&] {
    const Manifest manifest = parse_manifest(text, "manifest.json");
    require(render_manifest(manifest) == text, "a manifest has one spelling");
    require(manifest.step >= 0, "a step is not negative");
    for (const char* name : {kModelFile, kStateFile, kConfigFile}) {
      require(manifest.files.count(name) == 1, "a manifest lists what every checkpoint has");
    }
  });
}

void run(std::string_view input) {
  check(std::string(input));
  Json json = Json::parse(input.begin(), input.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return;
  json.erase("sha256");
  const std::string body = json.dump(2);
  json["sha256"] = sha256_hex(body.data(), body.size());
  check(json.dump(2) + "\n");
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
