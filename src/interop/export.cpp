#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/interop/families.h"
#include "src/interop/float_codec.h"
#include "src/interop/folder_files.h"
#include "src/interop/peft_folder.h"
#include "src/interop/python_files.h"
#include "src/interop/tensor_map.h"
#include "src/interop/tokenizer_json.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/interop/hugging_face.h"
#include "stablemask/io/finite.h"
#include "stablemask/io/temporary_folder.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kPiece = int64_t{1} << 20;

/// Makes the tensors of a family from those of a checkpoint.
class Exporter {
 public:
  Exporter(const Family& family, const ModelConfig& model, const Checkpoint& checkpoint,
           const ExportOptions& options)
      : checkpoint_(checkpoint), options_(options), map_(tensor_map(family, model)) {
    std::map<std::string, std::vector<int64_t>> wanted;
    for (const nn::Parameter& parameter : map_.parameters) {
      wanted[parameter.name] = parameter.shape;
    }
    std::vector<std::string> problems = shape_problems(wanted, checkpoint.model.tensors());
    for (const auto& [name, view] : checkpoint.model.tensors()) {
      if (problems.empty() && view.type != ElementType::kF32) {
        problems.push_back(name + " is " + element_name(view.type) + " instead of F32");
      }
    }
    if (!problems.empty()) {
      throw CheckpointError(checkpoint.model_path + ": does not fit the config: " + join(problems));
    }
  }

  std::map<std::string, StreamedTensor> tensors() {
    std::map<std::string, StreamedTensor> all;
    for (const auto& [name, shape] : map_.tensors) {
      StreamedTensor& tensor = all[name];
      tensor = {options_.type, shape.stored(), {}};
      tensor.produce = [this, &name = name, &shape = shape](const ByteSink& write) {
        if (shape.transposed) {
          produce_transposed(name, shape, write);
        } else {
          produce(name, shape, write);
        }
      };
      total_ += tensor.bytes();
    }
    return all;
  }

  uint64_t bytes() const { return total_; }

 private:
  /// The elements of a block's parameter; may be unaligned.
  const char* data_of(const RowBlock& block) const {
    return static_cast<const char*>(checkpoint_.model.tensors().at(block.parameter).data);
  }

  void produce(const std::string& name, const ExternalShape& shape, const ByteSink& write) {
    for (const RowBlock& block : map_.by_tensor.at(name)) {
      const int64_t begin = block.parameter_row * shape.columns;
      const int64_t end = begin + block.rows * shape.columns;
      for (int64_t first = begin; first < end; first += kPiece) {
        piece_.resize(static_cast<size_t>(std::min(kPiece, end - first)));
        std::memcpy(piece_.data(), data_of(block) + static_cast<size_t>(first) * sizeof(float),
                    piece_.size() * sizeof(float));
        emit(name, write);
      }
    }
  }

  void produce_transposed(const std::string& name, const ExternalShape& shape,
                          const ByteSink& write) {
    piece_.resize(static_cast<size_t>(shape.rows));
    for (int64_t column = 0; column < shape.columns; ++column) {
      for (const RowBlock& block : map_.by_tensor.at(name)) {
        const int64_t first = block.parameter_row * shape.columns + column;
        const char* from = data_of(block) + static_cast<size_t>(first) * sizeof(float);
        float* to = &piece_[static_cast<size_t>(block.tensor_row)];
        for (int64_t row = 0; row < block.rows; ++row) {
          std::memcpy(to + row, from + static_cast<size_t>(row * shape.columns) * sizeof(float),
                      sizeof(float));
        }
      }
      emit(name, write);
    }
  }

  void emit(const std::string& name, const ByteSink& write) {
    check_stop("exporting a model");
    encoded_.resize(piece_.size() * element_size(options_.type));
    if (!encode_floats(options_.type, piece_.data(), piece_.size(), encoded_.data())) {
      throw CheckpointError(checkpoint_.folder + ": " + name + " has values beyond the range of " +
                            element_name(options_.type) + "; export it as fp32");
    }
    write(encoded_.data(), encoded_.size());
    done_ += encoded_.size();
    if (options_.progress) options_.progress(done_, total_);
  }

  const Checkpoint& checkpoint_;
  const ExportOptions& options_;
  TensorMap map_;
  std::vector<float> piece_;
  std::vector<char> encoded_;
  uint64_t done_ = 0, total_ = 0;
};

using Shards = std::vector<std::map<std::string, StreamedTensor>>;

/// Consecutive tensors of at most `most` bytes; a longer one is alone.
Shards shards_of(std::map<std::string, StreamedTensor> tensors, uint64_t most) {
  Shards shards;
  uint64_t bytes = 0;
  for (auto& [name, tensor] : tensors) {
    const uint64_t size = tensor.bytes();
    if (shards.empty() || (bytes > 0 && bytes + size > most)) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().emplace(name, std::move(tensor));
    bytes += size;
  }
  return shards;
}

void write_weights(const std::string& folder, const Shards& shards, uint64_t bytes) {
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};  // transformers wants it
  if (shards.size() == 1) {
    write_streamed_safetensors(folder + "/model.safetensors", shards[0], metadata);
    return;
  }
  Json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", Json::object()}};
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = format("model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    write_streamed_safetensors(folder + "/" + name, shards[i], metadata);
    for (const auto& [tensor, content] : shards[i]) index["weight_map"][tensor] = name;
  }
  write_json(folder + "/model.safetensors.index.json", index);
}

/// Of a lossless tokenizer a text begins after the id EOS and may hold any number of it, since it
/// stands for an end of line: what ends a generation is end-of-text.
Json special_ids(const std::optional<Tokenizer>& tokenizer) {
  if (!tokenizer) return {{"bos_token_id", nullptr}, {"eos_token_id", nullptr}};
  return {{"bos_token_id", tokenizer->start_id()}, {"eos_token_id", tokenizer->end_of_text_id()}};
}

/// The files of a tokenizer, by name: of a foreign one those that it was imported with.
std::map<std::string, std::string> exported_tokenizer(const Tokenizer& tokenizer, int64_t context) {
  std::map<std::string, std::string> files =
      tokenizer.lossless() ? tokenizer_files(tokenizer, context) : tokenizer.companions();
  files[tokenizer_file_name(tokenizer.bytes())] = tokenizer.bytes();
  return files;
}

Json config_json(const Family& family, const ExternalModel& external,
                 const std::optional<Tokenizer>& tokenizer, ElementType type) {
  Json json;
  json["architectures"] = {family.architecture};
  json["model_type"] = family.model_type;
  json.update(family.write(external));
  json.update(special_ids(tokenizer));
  const char* name = type == ElementType::kF32    ? "float32"
                     : type == ElementType::kBf16 ? "bfloat16"
                                                  : "float16";
  json["dtype"] = name;        // transformers 5
  json["torch_dtype"] = name;  // transformers 4
  json["use_cache"] = true;
  return json;
}

}  // namespace

ExportSummary export_model(const ExportOptions& options) {
  const std::filesystem::path target = std::filesystem::path(options.to).lexically_normal();
  const std::string folder = (target.has_filename() ? target : target.parent_path()).string();
  require_new_folder(folder);
  if (!is_float(options.type)) throw std::logic_error("export_model: no float type");
  std::optional<Checkpoint> loaded;
  with_checkpoint(options.from, [&](const std::string& name) {
    loaded = load_checkpoint(name, parts_with(options.weights));
  });
  const Checkpoint& checkpoint = *loaded;
  require_finite_weights(checkpoint);
  const Config config =
      parse_saved_config(checkpoint.config_json, checkpoint.folder + "/config.json");
  if (!checkpoint.base_json.empty()) return export_adapters(checkpoint, config, folder, options);
  std::optional<Tokenizer> tokenizer;
  if (!checkpoint.tokenizer_model.empty()) {
    tokenizer = Tokenizer::from_bytes(
        checkpoint.tokenizer_model,
        checkpoint.folder + "/" + tokenizer_file_name(checkpoint.tokenizer_model),
        checkpoint.tokenizer_companions);
  }
  const ExternalModel external{config.model, config.train.context};
  const Family& family = family_for(external);
  Exporter exporter(family, config.model, checkpoint, options);
  const Shards shards = shards_of(exporter.tensors(), options.shard_bytes);

  create_folders(parent_folder(folder), ExitCode::kCheckpoint);
  require_space(parent_folder(folder), exporter.bytes());
  TemporaryFolder temporary(folder);
  const std::string& path = temporary.path();
  write_json(path + "/config.json", config_json(family, external, tokenizer, options.type));
  write_json(path + "/generation_config.json", special_ids(tokenizer));
  write_weights(path, shards, exporter.bytes());
  if (tokenizer) {
    for (const auto& [name, text] : exported_tokenizer(*tokenizer, external.context)) {
      write_text(path + "/" + name, text);
    }
  }
  if (std::string(family.model_type) == "stablemask") {
    for (const PythonFile& file : python_files()) {
      write_text(path + "/" + file.name, std::string(file.text));
    }
  }
  temporary.publish();
  return {family.architecture, static_cast<int64_t>(shards.size())};
}

}  // namespace stablemask::interop
