// Errors of an index, each with its name in the message:
//
//   not-json         syntax, encoding, more than 32 levels
//   duplicate-key    a key twice in one object
//   fields           no weight_map, or a key other than it and metadata
//   wrong-type       weight_map is not an object of strings, metadata not an object
//   file-name        empty, hidden, or with '/', '\' or a control character: the files must be in
//                    the folder of the index
//   missing-tensors  a file lacks tensors that the index assigns to it; all of them are listed
//   extra-tensors    a file has tensors that the index does not assign to it; all are listed
//
// An absent or damaged file has the error of SafetensorsFile::open.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <set>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/text.h"
#include "stablemask/io/safetensors.h"

namespace stablemask {
namespace {

// A tree of JSON values takes some hundred times the text in the worst case.
constexpr uint64_t kMaxIndexBytes = uint64_t{4} << 20;

using WeightMap = std::map<std::string, std::set<std::string>>;  // file → tensors

[[noreturn]] void fail(const std::string& path, const char* name, const std::string& detail) {
  throw CheckpointError(path + ": bad safetensors index (" + name + "): " + detail);
}

JsonValue parse_index(const std::string& path) {
  try {
    return parse_json(InputFile(path, ExitCode::kCheckpoint).text(kMaxIndexBytes));
  } catch (const JsonSyntaxError& error) {
    fail(path, "not-json", "line " + std::to_string(error.at().line) + ": " + error.what());
  }
}

void check_unique_keys(const std::string& path, const JsonValue& value) {
  std::set<std::string> keys;
  for (const JsonMember& member : value.members) {
    if (!keys.insert(member.key).second) {
      fail(path, "duplicate-key",
           "the key " + in_quotes(member.key) + " occurs twice in one object");
    }
    check_unique_keys(path, member.value);
  }
  for (const JsonValue& item : value.items) check_unique_keys(path, item);
}

void check_file_name(const std::string& path, const std::string& name) {
  const bool foreign = name.find_first_of("/\\") != std::string::npos || has_controls(name);
  if (name.empty() || name[0] == '.' || foreign) {
    fail(path, "file-name", in_quotes(name) + " is not the plain name of a file beside the index");
  }
}

WeightMap read_weight_map(const std::string& path) {
  const JsonValue index = parse_index(path);
  check_unique_keys(path, index);
  const JsonValue* weights = nullptr;
  for (const JsonMember& member : index.members) {
    if (member.value.kind != JsonValue::Kind::kObject) {
      fail(path, "wrong-type", in_quotes(member.key) + " is " + describe(member.value));
    }
    if (member.key == "weight_map") {
      weights = &member.value;
    } else if (member.key != "metadata") {
      fail(path, "fields", "unknown field " + in_quotes(member.key));
    }
  }
  if (weights == nullptr) fail(path, "fields", "there is no weight_map");
  WeightMap map;
  for (const JsonMember& member : weights->members) {
    if (member.value.kind != JsonValue::Kind::kString) {
      fail(path, "wrong-type",
           "the file of " + in_quotes(member.key) + " is " + describe(member.value));
    }
    check_file_name(path, member.value.text);
    map[member.value.text].insert(member.key);
  }
  return map;
}

std::string list_of(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + in_quotes(name);
  return text;
}

void check_tensors(const std::string& path, const std::string& file_name,
                   std::set<std::string> promised, const std::map<std::string, TensorView>& found) {
  std::set<std::string> extra;
  for (const auto& [name, view] : found) {
    if (promised.erase(name) == 0) extra.insert(name);
  }
  if (!promised.empty()) {
    fail(path, "missing-tensors", file_name + " lacks " + list_of(promised));
  }
  if (!extra.empty()) {
    fail(path, "extra-tensors",
         file_name + " has " + list_of(extra) + ", which the index does not assign to it");
  }
}

template <class File>
std::map<std::string, File> open_files(const std::string& path,
                                       const std::function<File(const std::string&)>& open) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::map<std::string, File> files;
  for (const auto& [name, tensors] : read_weight_map(path)) {
    File file = open((folder / name).string());
    check_tensors(path, name, tensors, file.tensors());
    files.emplace(name, std::move(file));
  }
  return files;
}

}  // namespace

std::map<std::string, SafetensorsFile> open_safetensors_index(const std::string& path) {
  return open_files<SafetensorsFile>(
      path, [](const std::string& file) { return SafetensorsFile::open(file); });
}

std::map<std::string, SafetensorsReader> open_safetensors_readers(const std::string& path) {
  return open_files<SafetensorsReader>(
      path, [](const std::string& file) { return SafetensorsReader(file); });
}

}  // namespace stablemask
