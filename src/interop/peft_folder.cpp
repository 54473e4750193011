#include "src/interop/peft_folder.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "src/interop/float_codec.h"
#include "src/interop/folder_files.h"
#include "src/interop/peft.h"
#include "src/interop/tensor_map.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/io/base_checkpoint.h"
#include "stablemask/io/finite.h"
#include "stablemask/io/temporary_folder.h"

namespace stablemask::interop {
namespace {

constexpr const char* kConfigFile = "/adapter_config.json";
constexpr const char* kWeightsFile = "/adapter_model.safetensors";

ExternalModel without_adapters(const Config& config, int64_t context) {
  ExternalModel external{config.model, context};
  external.model.lora = {};
  return external;
}

/// Of the base of a checkpoint of adapters, whose config is `config`. PEFT gets the base's model.
const Family& family_of_base(const Checkpoint& adapters, const Config& config) {
  const std::string folder = find_base(adapters)->folder;
  const Config base = parse_saved_config(read_checkpoint_config(folder), folder + "/config.json");
  const ExternalModel external = without_adapters(base, base.train.context);
  if (!same_model(external, without_adapters(config, external.context))) {
    throw CheckpointError(adapters.folder +
                          ": its config changes fields of the model of its base, " + folder +
                          ", which adapters alone cannot tell PEFT; fold them in by "
                          "`stablemask checkpoint merge` and export the whole model");
  }
  return family_for(external);
}

std::string one_tensor_text(const Family& family, const std::string& target) {
  return "\"" + target + "\", whose matrices are one tensor of " + family.architecture +
         ", for which PEFT has one pair of factors and this program one for each matrix";
}

std::vector<char> encoded(const Checkpoint& checkpoint, const PeftTensor& tensor,
                          ElementType type) {
  const auto count = static_cast<size_t>(tensor.rows * tensor.columns);
  std::vector<float> values(count);
  const auto* data = static_cast<const char*>(checkpoint.model.tensors().at(tensor.parameter).data);
  std::memcpy(values.data(),
              data + static_cast<size_t>(tensor.row * tensor.columns) * sizeof(float),
              count * sizeof(float));
  std::vector<char> bytes(count * element_size(type));
  if (!encode_floats(type, values.data(), count, bytes.data())) {
    throw CheckpointError(checkpoint.folder + ": " + tensor.parameter +
                          " has values beyond the range of " + element_name(type) +
                          "; export it as fp32");
  }
  return bytes;
}

void require_shapes(const Checkpoint& checkpoint, const ModelConfig& model) {
  std::map<std::string, std::vector<int64_t>> wanted;
  for (const nn::Parameter& parameter : nn::parameters(model)) {
    if (parameter.role == nn::Role::kAdapter) wanted[parameter.name] = parameter.shape;
  }
  std::vector<std::string> problems = shape_problems(wanted, checkpoint.model.tensors());
  for (const auto& [name, view] : checkpoint.model.tensors()) {
    if (problems.empty() && view.type != ElementType::kF32) {
      problems.push_back(name + " is " + element_name(view.type) + " instead of F32");
    }
  }
  if (problems.empty()) return;
  throw CheckpointError(checkpoint.folder +
                        "/model.safetensors: does not fit the config: " + join(problems));
}

/// The adapters of a folder of PEFT as parameters of a model.
class AdapterReader {
 public:
  AdapterReader(const Family& family, const ModelConfig& model, const std::string& folder)
      : path_(folder + kWeightsFile), file_(SafetensorsFile::open(path_)) {
    for (PeftTensor& tensor : peft_tensors(family, model)) {
      known_.emplace(tensor.name(), std::move(tensor));
    }
    std::vector<std::string> problems = this->problems();
    if (problems.empty()) return;
    const std::string fused = target_without_peft(family, model);
    if (!fused.empty()) {
      problems.push_back("not importable are adapters of " + one_tensor_text(family, fused));
    }
    throw CheckpointError(path_ + ": does not fit the model of --base: " + join(problems));
  }

  /// Those of `all` that have adapters, in that order.
  std::vector<std::string> targets(const std::vector<std::string>& all) const {
    std::set<std::string> present;
    for (const auto& [name, view] : file_.tensors()) present.insert(known_.at(name).target);
    std::vector<std::string> found;
    std::ranges::copy_if(all, std::back_inserter(found),
                         [&](const std::string& target) { return present.contains(target); });
    return found;
  }

  /// Writes the tensors to `parameters`, whose other elements stay.
  void read(std::map<std::string, std::vector<float>>& parameters) const {
    for (const auto& [name, view] : file_.tensors()) {
      const PeftTensor& tensor = known_.at(name);
      float* to = parameters.at(tensor.parameter).data() + tensor.row * tensor.columns;
      decode_floats(view.type, view.data, static_cast<size_t>(tensor.rows * tensor.columns), to);
    }
  }

 private:
  std::vector<std::string> problems() const {
    std::map<std::string, std::vector<int64_t>> wanted;
    std::vector<std::string> other;
    for (const auto& [name, view] : file_.tensors()) {
      const auto found = known_.find(name);
      if (found == known_.end()) continue;
      const PeftTensor& tensor = found->second;
      wanted[name] = {tensor.rows, tensor.columns};
      PeftTensor partner = tensor;
      partner.factor = tensor.factor == "lora_A" ? "lora_B" : "lora_A";
      if (!file_.tensors().contains(partner.name()))
        other.push_back(partner.name() + " is missing");
      if (!is_float(view.type)) other.push_back(name + " is " + element_name(view.type));
    }
    std::vector<std::string> all = shape_problems(wanted, file_.tensors());
    all.insert(all.end(), other.begin(), other.end());
    if (file_.tensors().empty()) all.push_back("it has no tensors");
    return all;
  }

  std::string path_;
  SafetensorsFile file_;
  std::map<std::string, PeftTensor> known_;
};

void check_options(const ImportOptions& options) {
  if (!options.tokenizer.empty() || options.without_tokenizer || !options.overrides.empty()) {
    throw ConfigError(
        "--base: tokenizer and config of an adapter are those of its base; leave out --tokenizer, "
        "--no-tokenizer, --stable-mask and --set");
  }
}

Checkpoint whole_model(const std::string& path) {
  Checkpoint base = load_checkpoint(resolve_checkpoint(path), CheckpointParts::kWithoutOptimizer);
  if (base.base_json.empty()) return base;
  throw CheckpointError(base.folder +
                        ": holds adapters; give --base the checkpoint of a whole model");
}

}  // namespace

ExportSummary export_adapters(const Checkpoint& checkpoint, const Config& config,
                              const std::string& folder, const ExportOptions& options) {
  const Family& family = family_of_base(checkpoint, config);
  if (const std::string target = target_without_peft(family, config.model); !target.empty()) {
    throw CheckpointError(checkpoint.folder + ": adapts " + one_tensor_text(family, target) +
                          "; fold the adapters in by `stablemask checkpoint merge` and export the "
                          "whole model");
  }
  require_shapes(checkpoint, config.model);
  const std::vector<PeftTensor> tensors = peft_tensors(family, config.model);
  std::map<std::string, std::vector<char>> bytes;
  std::map<std::string, TensorView> views;
  uint64_t total = 0;
  for (const PeftTensor& tensor : tensors) {
    std::vector<char>& data = bytes[tensor.name()];
    data = encoded(checkpoint, tensor, options.type);
    total += data.size();
    views[tensor.name()] = {options.type, {tensor.rows, tensor.columns}, data.data()};
  }
  ModelConfig whole = config.model;
  whole.lora = {};
  const auto map = tensor_map(family, whole);
  const bool transposed = map.tensors.at(tensors.at(0).module + ".weight").transposed;
  create_folders(parent_folder(folder), ExitCode::kCheckpoint);
  require_space(parent_folder(folder), total);
  TemporaryFolder temporary(folder);
  write_text(temporary.path() + kConfigFile,
             adapter_config_json(config.model.lora, tensors, transposed));
  write_safetensors(temporary.path() + kWeightsFile, views, {{"format", "pt"}});
  temporary.publish();
  return {std::string("adapters of ") + family.architecture, 1};
}

ImportSummary import_adapters(const ImportOptions& options) {
  check_options(options);
  const Checkpoint base = whole_model(options.base);
  Config config = parse_saved_config(base.config_json, base.folder + "/config.json");
  const ExternalModel base_model = without_adapters(config, config.train.context);
  const Family& family = family_for(base_model);
  const std::string path = options.from + kConfigFile;
  const JsonValue json = read_json_object(path);
  const std::vector<std::string> all_targets = LoraConfig().targets;
  config.model.lora = read_adapter_config(FieldReader(json, path), options.ignored_fields);
  config.model.lora.targets = all_targets;
  const AdapterReader reader(family, config.model, options.from);
  config.model.lora.targets = reader.targets(all_targets);
  config.train.init_from = base.folder;
  config.train.freeze_layers = 0;

  CheckpointContent content;
  std::map<std::string, std::vector<float>> values;
  ImportSummary summary{std::string("adapters of ") + family.architecture, 0};
  for (const nn::Parameter& parameter : nn::parameters(config.model)) {
    if (parameter.role != nn::Role::kAdapter) continue;
    std::vector<float>& data = values[parameter.name];
    data.resize(static_cast<size_t>(parameter.numel()));
    content.model[parameter.name] = {ElementType::kF32, parameter.shape, data.data()};
    summary.parameters += parameter.numel();
  }
  reader.read(values);
  if (const std::string name = first_not_finite(content.model); !name.empty()) {
    throw NonFiniteError(options.from + ": " + name +
                         " holds values that are not finite; import another adapter");
  }
  content.config_json = dump_config(config);
  content.state_json = "{\"imported_from\": \"PEFT\"}\n";
  content.tokenizer_model = base.tokenizer_model;
  content.tokenizer_companions = base.tokenizer_companions;
  content.base = {base.folder, base.model_sha256};
  create_folders(parent_folder(options.to), ExitCode::kCheckpoint);
  write_checkpoint(options.to, content);
  return summary;
}

}  // namespace stablemask::interop
