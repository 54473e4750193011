// Input: the JSON header of a safetensors file, perhaps a separator and the size of the data
// (default 24).
#include "src/io/safetensors_header.h"

#include <charconv>

#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {
namespace {

uint64_t number_in(std::string_view text) {
  uint64_t number = 24;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

void run(std::string_view input) {
  const std::vector<std::string_view> parts = split(input, 2);
  const uint64_t data_bytes = parts.size() > 1 ? number_in(parts[1]) : 24;
  accepted<CheckpointError>([&] {
    const SafetensorsHeader header = parse_safetensors_header(parts[0], data_bytes, "x");
    uint64_t total = 0;
    for (const auto& [name, entry] : header.entries) {
      const TensorView view{entry.type, entry.shape, nullptr};
      require(safetensors_name_problem(name).empty(), "names are sound");
      require(entry.begin <= entry.end && entry.end <= data_bytes, "tensors lie in the data");
      require(entry.end - entry.begin == view.bytes(), "offsets fit type and shape");
      total += view.bytes();
    }
    require(total == data_bytes, "tensors cover the data");
  });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
