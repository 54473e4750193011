// Input: an index, perhaps a separator and the file c.safetensors. Beside the index lie
// a.safetensors with the tensors x and y, and b.safetensors with z.
#include "stablemask/io/safetensors.h"
#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {
namespace {

std::string make_folder() {
  const float values[2] = {1, 2};
  const TensorView view{ElementType::kF32, {2}, values};
  write_safetensors(scratch_folder() + "/a.safetensors", {{"x", view}, {"y", view}});
  write_safetensors(scratch_folder() + "/b.safetensors", {{"z", view}});
  return scratch_folder();
}

void run(std::string_view input) {
  static const std::string folder = make_folder();
  const std::vector<std::string_view> parts = split(input, 2);
  const std::string path = folder + "/model.safetensors.index.json";
  write_file(path, parts[0]);
  if (parts.size() > 1) write_file(folder + "/c.safetensors", parts[1]);
  accepted<CheckpointError>([&] {
    size_t bytes = 0;
    for (const auto& [name, file] : open_safetensors_index(path)) {
      require(name.find('/') == std::string::npos, "files lie beside the index");
      for (const auto& [tensor, view] : file.tensors()) bytes += view.bytes();
    }
    require(bytes <= 24 + input.size(), "tensors lie in the files");
  });
  if (parts.size() > 1) std::remove((folder + "/c.safetensors").c_str());
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
