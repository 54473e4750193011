#include <nlohmann/json.hpp>
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

void check_writable(const std::string& path, const std::string& name, const TensorView& view) {
  std::string problem = safetensors_name_problem(name);
  if (problem.empty() && name == "__metadata__") problem = "is a reserved name";
  if (problem.empty() && view.shape.size() > kSafetensorsMaxRank)
    problem = "has too many dimensions";
  if (problem.empty() && view.bytes() > 0 && view.data == nullptr) problem = "has no data";
  if (!problem.empty()) {
    throw CheckpointError(path + ": the tensor " + in_quotes(name) + " cannot be written: it " +
                          problem);
  }
}

/// The header's text with the padding.
std::string header_json(const std::string& path, const std::map<std::string, TensorView>& tensors,
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
  for (const auto& [name, view] : tensors) {
    check_writable(path, name, view);
    const uint64_t end = begin + view.bytes();
    header[name] = {
        {"dtype", element_name(view.type)}, {"shape", view.shape}, {"data_offsets", {begin, end}}};
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

}  // namespace

FileDigest write_safetensors(const std::string& path,
                             const std::map<std::string, TensorView>& tensors,
                             const std::map<std::string, std::string>& metadata) {
  const std::string header = header_json(path, tensors, metadata);
  const uint64_t length = header.size();
  std::string start(reinterpret_cast<const char*>(&length), sizeof length);
  start += header;

  HashedFile file(path);
  file.write(start);
  for (const auto& [name, view] : tensors) file.write(view.data, view.bytes());
  return file.finish();
}

}  // namespace stablemask
