// Input: a safetensors file. After a separator at the front the header's length is left out: it is
// that of the bytes up to the next separator.
#include "stablemask/io/safetensors.h"

#include "src/io/safetensors_header.h"
#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {
namespace {

std::string file_of(std::string_view input) {
  if (input.empty() || input[0] != kSeparator) return std::string(input);
  const std::vector<std::string_view> parts = split(input.substr(1), 2);
  const uint64_t length = parts[0].size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  file += parts[0];
  if (parts.size() > 1) file += parts[1];
  return file;
}

void run(std::string_view input) {
  static MemoryFile file;
  file.write(file_of(input));
  accepted<CheckpointError>([&] {
    const SafetensorsFile tensors = SafetensorsFile::open(file.path(), /*max_header_bytes=*/2048);
    std::string bytes;
    for (const auto& [name, view] : tensors.tensors()) {
      bytes.append(static_cast<const char*>(view.data), view.bytes());
    }
    // Written again and read again it is the same.
    const std::string copy = scratch_folder() + "/copy.safetensors";
    std::remove(copy.c_str());
    write_safetensors(copy, tensors.tensors(), tensors.metadata());
    const SafetensorsFile again = SafetensorsFile::open(copy);
    require(again.metadata() == tensors.metadata(), "metadata is kept");
    require(again.tensors().size() == tensors.tensors().size(), "tensors are kept");
    std::string bytes_again;
    for (const auto& [name, view] : again.tensors()) {
      const TensorView& original = tensors.tensors().at(name);
      require(view.type == original.type && view.shape == original.shape, "shapes are kept");
      bytes_again.append(static_cast<const char*>(view.data), view.bytes());
    }
    require(bytes == bytes_again, "values are kept");
  });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
