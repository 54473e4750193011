#include <memory>
#include <stdexcept>
#include <utility>

#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {

struct SafetensorsReader::State {
  explicit State(const std::string& path) : file(path, ExitCode::kCheckpoint) {}

  InputFile file;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, uint64_t> offsets;  ///< in the file
};

SafetensorsReader::SafetensorsReader(const std::string& path, size_t max_header_bytes)
    : state_(std::make_unique<State>(path)) {
  SafetensorsLayout layout = read_safetensors_layout(state_->file, path, max_header_bytes);
  for (auto& [name, entry] : layout.header.entries) {
    state_->offsets[name] = layout.data_offset + entry.begin;
    state_->tensors[name] = {entry.type, std::move(entry.shape), nullptr};
  }
}

SafetensorsReader::SafetensorsReader(SafetensorsReader&&) noexcept = default;
SafetensorsReader& SafetensorsReader::operator=(SafetensorsReader&&) noexcept = default;
SafetensorsReader::~SafetensorsReader() = default;

const std::map<std::string, TensorView>& SafetensorsReader::tensors() const {
  return state_->tensors;
}

void SafetensorsReader::read(const std::string& name, uint64_t offset, void* data,
                             size_t bytes) const {
  const uint64_t size = state_->tensors.at(name).bytes();
  if (offset > size || bytes > size - offset) throw std::out_of_range("beyond the tensor " + name);
  state_->file.read(state_->offsets.at(name) + offset, data, bytes);
}

}  // namespace stablemask
