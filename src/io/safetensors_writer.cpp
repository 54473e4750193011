#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "src/io/file.h"
#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {
namespace {

constexpr size_t kAlignment = 64;  // of the data part, so that a mapped file has aligned weights

void check_writable(const std::string& path, const std::string& name,
                    const StreamedTensor& tensor) {
  std::string problem = safetensors_name_problem(name);
  if (problem.empty() && name == "__metadata__") problem = "is a reserved name";
  if (problem.empty() && tensor.shape.size() > kSafetensorsMaxRank)
    problem = "has too many dimensions";
  if (problem.empty() && tensor.bytes() > 0 && !tensor.produce) problem = "has no data";
  if (!problem.empty()) {
    throw CheckpointError(path + ": the tensor " + in_quotes(name) + " cannot be written: it " +
                          problem);
  }
}

/// The header's text with the padding.
std::string header_json(const std::string& path,
                        const std::map<std::string, StreamedTensor>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  if (tensors.size() > kSafetensorsMaxTensors) {
    throw CheckpointError(path + ": too many tensors for one file");
  }
  nlohmann::json header = nlohmann::json::object();  // sorted by key, as `tensors` is
  for (const auto& [key, value] : metadata) {
    if (!is_utf8(key) || !is_utf8(value)) {
      throw CheckpointError(path + ": the metadata " + in_quotes(key) + " is not UTF-8");
    }
    header["__metadata__"][key] = value;
  }
  uint64_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    check_writable(path, name, tensor);
    const uint64_t end = begin + tensor.bytes();
    header[name] = {{"dtype", element_name(tensor.type)},
                    {"shape", tensor.shape},
                    {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + kSafetensorsLengthBytes + kAlignment - 1) / kAlignment * kAlignment -
                  kSafetensorsLengthBytes,
              ' ');
  if (text.size() > kSafetensorsMaxHeaderBytes) {
    throw CheckpointError(path + ": the names and shapes need a longer header than readers accept");
  }
  return text;
}

StreamedTensor streamed(const TensorView& view) {
  StreamedTensor tensor{view.type, view.shape, {}};
  if (view.data != nullptr) {
    tensor.produce = [view](const ByteSink& write) { write(view.data, view.bytes()); };
  }
  return tensor;
}

}  // namespace

FileDigest write_streamed_safetensors(const std::string& path,
                                      const std::map<std::string, StreamedTensor>& tensors,
                                      const std::map<std::string, std::string>& metadata) {
  const std::string header = header_json(path, tensors, metadata);
  const uint64_t length = header.size();
  std::string start(reinterpret_cast<const char*>(&length), sizeof length);
  start += header;

  HashedFile file(path);
  file.write(start);
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.produce) continue;  // empty
    size_t missing = tensor.bytes();
    tensor.produce([&, &name = name](const void* data, size_t bytes) {
      if (bytes > missing) throw std::logic_error(name + ": more bytes than its shape has");
      missing -= bytes;
      file.write(data, bytes);
    });
    if (missing > 0) throw std::logic_error(name + ": fewer bytes than its shape has");
  }
  return file.finish();
}

FileDigest write_safetensors(const std::string& path,
                             const std::map<std::string, TensorView>& tensors,
                             const std::map<std::string, std::string>& metadata) {
  std::map<std::string, StreamedTensor> all;
  for (const auto& [name, view] : tensors) all.emplace(name, streamed(view));
  return write_streamed_safetensors(path, all, metadata);
}

}  // namespace stablemask
