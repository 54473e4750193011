// Input: a config file, then overrides of --set, each after a separator. An input that ends in a
// separator and has a multiple of 16 bytes is read from a file, whose buffer takes most of the
// time.
#include "stablemask/config/config.h"

#include "stablemask/config/model_source.h"
#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {
namespace {

constexpr bool kOneLine = false;  // one line for each error

/// What a config states is kept by the copy of it in a run folder.
void check_copy(const Config& config) {
  const std::string text = dump_config(config);
  const Config copy = parse_config(text, "copy.json");
  require(dump_config(copy) == text, "a stored config is the config");
  require(dump_config(parse_saved_config(text, "copy.json")) == text, "also of an older run");
  require(frozen_differences(config, copy).empty(), "a config does not differ from itself");
  for (const std::string& warning : config_warnings(config)) require_message(warning, true);
  accepted<ConfigError>([&] { require_equal_shares(config.train, 3); });
}

void check_file(std::string_view text, const std::vector<std::string>& overrides) {
  static MemoryFile file;
  file.write(text);
  accepted<ConfigError>(
      [&] {
        for (const StatedField& field : stated_fields(file.path(), overrides)) {
          require(!field.place.empty(), "a stated field has a place");
        }
      },
      kOneLine);
  const auto source = [](const Config&) {
    ModelConfig model;
    model.layers = 3;
    return model;
  };
  accepted<ConfigError>([&] { check_copy(load_config_with_model(file.path(), overrides, source)); },
                        kOneLine);
}

void run(std::string_view input) {
  std::vector<std::string_view> parts = split(input);
  const bool from_file = parts.size() > 1 && parts.back().empty() && input.size() % 16 == 0;
  if (from_file) parts.pop_back();
  const std::string text(parts.front());
  const std::vector<std::string> overrides(parts.begin() + 1, parts.end());
  if (from_file) return check_file(text, overrides);
  accepted<ConfigError>([&] { check_copy(parse_config(text, "c.json", overrides)); }, kOneLine);
  accepted<ConfigError>([&] { check_copy(parse_saved_config(text, "c.json", overrides)); },
                        kOneLine);
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
