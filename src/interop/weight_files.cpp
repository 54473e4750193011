#include "src/interop/weight_files.h"

#include <filesystem>
#include <utility>

#include "src/interop/float_codec.h"
#include "stablemask/base/error.h"

namespace stablemask::interop {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

std::map<std::string, SafetensorsReader> open_all(const std::string& folder) {
  // The order in which transformers looks for them.
  if (exists(folder + "/" + kSingleFile)) {
    std::map<std::string, SafetensorsReader> files;
    files.emplace(kSingleFile, SafetensorsReader(folder + "/" + kSingleFile));
    return files;
  }
  if (exists(folder + "/" + kIndex)) return open_safetensors_readers(folder + "/" + kIndex);
  for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (exists(folder + "/" + name)) {
      throw CheckpointError(folder + "/" + name +
                            ": is a pickle, which may run any code when it is read; save the model "
                            "as safetensors: save_pretrained(FOLDER) of transformers does");
    }
  }
  throw CheckpointError(folder + ": has neither " + kSingleFile + " nor " + kIndex);
}

}  // namespace

WeightFiles::WeightFiles(const std::string& folder) : files_(open_all(folder)) {
  for (const auto& [file_name, file] : files_) {
    for (const auto& [name, view] : file.tensors()) {
      tensors_[name] = view;
      places_[name] = {&file, name};
    }
  }
}

void WeightFiles::add_prefix(const std::string& prefix) {
  std::map<std::string, TensorView> tensors;
  std::map<std::string, Place> places;
  for (auto& [name, view] : tensors_) tensors[prefix + name] = std::move(view);
  for (auto& [name, place] : places_) places[prefix + name] = std::move(place);
  tensors_ = std::move(tensors);
  places_ = std::move(places);
}

void WeightFiles::read(const std::string& name, int64_t first, size_t count, float* to) {
  const Place& place = places_.at(name);
  const ElementType type = place.file->tensors().at(place.name).type;
  const size_t size = element_size(type);
  buffer_.resize(count * size);
  place.file->read(place.name, static_cast<uint64_t>(first) * size, buffer_.data(), buffer_.size());
  decode_floats(type, buffer_.data(), count, to);
}

}  // namespace stablemask::interop
