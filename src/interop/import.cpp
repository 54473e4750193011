#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/interop/families.h"
#include "src/interop/float_codec.h"
#include "src/interop/folder_files.h"
#include "src/interop/peft_folder.h"
#include "src/interop/tensor_map.h"
#include "src/interop/weight_files.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/interop/hugging_face.h"

namespace stablemask::interop {
namespace {

constexpr int64_t kPieceElements = int64_t{1} << 20;

/// PEFT writes adapters to a folder of their own, without the model's config.json.
void require_no_adapters(const std::string& folder) {
  std::error_code ignored;
  if (std::filesystem::exists(folder + "/config.json", ignored) ||
      !std::filesystem::exists(folder + "/adapter_config.json", ignored)) {
    return;
  }
  throw ConfigError(folder +
                    ": holds adapters of PEFT; name the checkpoint of their base model by --base");
}

bool may_state(const std::string& field) {
  return std::ranges::any_of(import_fields(), [&](const std::string& name) {
    return name == field ||
           (name.ends_with(".*") && field.starts_with(name.substr(0, name.size() - 1)));
  });
}

/// The checkpoint's config: the defaults, the model and the overrides.
Config checkpoint_config(const ExternalModel& external, const ImportOptions& options) {
  for (const std::string& assignment : options.overrides) {
    const std::string field = assignment.substr(0, assignment.find('='));
    if (!may_state(field)) {
      throw ConfigError("--set " + field + ": cannot be set by an import; fields that can: " +
                        join(import_fields(), ", "));
    }
    if (external.model.stable_mask.learnable && field.starts_with("model.stable_mask")) {
      throw ConfigError("--set " + field + ": was learned by this model");
    }
  }
  Config config;
  config.model = external.model;
  config.train.context = external.context;
  config = parse_config(dump_config(config), options.from + " as a config of this program",
                        options.overrides);
  if (config.model.stable_mask.learnable && !external.model.stable_mask.learnable) {
    throw ConfigError(
        "--set model.stable_mask.learnable=true: the model has no weights for it; finetune the "
        "imported checkpoint with this option instead");
  }
  return config;
}

/// tokenizer.model of the folder or, where there is none, its tokenizer.json; "": neither.
std::string tokenizer_of(const std::string& folder) {
  for (const char* name : {"/tokenizer.model", "/tokenizer.json"}) {
    std::error_code ignored;
    if (std::filesystem::exists(folder + name, ignored)) return folder + name;
  }
  return "";
}

/// The tokenizer for a model of `vocab_size` ids; nullopt: none is wanted.
std::optional<Tokenizer> read_tokenizer(const ImportOptions& options, int64_t vocab_size) {
  const std::string remedy =
      "; give --tokenizer FILE, or --no-tokenizer for a checkpoint without one, to finetune from";
  if (options.without_tokenizer) {
    if (options.tokenizer.empty()) return std::nullopt;
    throw ConfigError("--no-tokenizer contradicts --tokenizer " + options.tokenizer);
  }
  const bool stated = !options.tokenizer.empty();
  const std::string path = stated ? options.tokenizer : tokenizer_of(options.from);
  if (path.empty()) {
    throw DataError(options.from + ": has neither tokenizer.model nor tokenizer.json" + remedy);
  }
  try {
    Tokenizer tokenizer = Tokenizer::load(path);
    if (tokenizer.vocab_size() > vocab_size) {
      throw DataError(format("%s: has %d ids, the model only %lld", path.c_str(),
                             tokenizer.vocab_size(), static_cast<long long>(vocab_size)));
    }
    return tokenizer;
  } catch (const DataError& error) {
    throw DataError(error.what() + (stated ? "" : remedy));
  }
}

void require_finite(const std::vector<float>& values, const std::string& tensor) {
  for (const float value : values) {
    if (!std::isfinite(value)) {
      throw NonFiniteError(tensor + " holds values that are not finite; import another model");
    }
  }
}

/// Reads the files of a model in the order of the checkpoint's parameters.
class Importer {
 public:
  Importer(const Family& family, const ModelConfig& model, const ImportOptions& options)
      : options_(options), files_(options.from), map_(tensor_map(family, model)) {
    const auto is_in_base = [&](const auto& item) { return item.first.starts_with(family.prefix); };
    if (std::ranges::none_of(files_.tensors(), is_in_base)) files_.add_prefix(family.prefix);
    remove_buffers(family.buffers);
    if (model.tied_head) remove_tied_head(family.head);
    require_fitting(family);
  }

  std::map<std::string, StreamedTensor> tensors() {
    std::map<std::string, StreamedTensor> all;
    for (const nn::Parameter& parameter : map_.parameters) {
      StreamedTensor& tensor = all[parameter.name];
      tensor = {ElementType::kF32, parameter.shape, {}};
      tensor.produce = [this, name = parameter.name](const ByteSink& write) {
        for (const RowBlock& block : map_.by_parameter.at(name)) produce(block, write);
      };
      total_ += tensor.bytes();
    }
    return all;
  }

  int64_t parameters() const { return static_cast<int64_t>(total_ / sizeof(float)); }

 private:
  void remove_buffers(const std::vector<std::string>& endings) {
    std::vector<std::string> buffers;
    for (const auto& [name, view] : files_.tensors()) {
      const auto ends_here = [&name = name](const std::string& end) { return name.ends_with(end); };
      if (std::ranges::any_of(endings, ends_here)) buffers.push_back(name);
    }
    for (const std::string& name : buffers) files_.remove(name);
  }

  /// Files of a tied model may hold the head too. A head with other values would be dropped
  /// silently.
  void remove_tied_head(const std::string& head) {
    const auto found = files_.tensors().find(head), table = files_.tensors().find(map_.embedding);
    if (found == files_.tensors().end() || table == files_.tensors().end()) return;
    const int64_t count =
        static_cast<int64_t>(found->second.bytes() / element_size(found->second.type));
    bool same = found->second.shape == table->second.shape && is_float(found->second.type) &&
                is_float(table->second.type);
    std::vector<float> a, b;
    for (int64_t first = 0; same && first < count; first += kPieceElements) {
      const auto size = static_cast<size_t>(std::min(kPieceElements, count - first));
      a.resize(size);
      b.resize(size);
      files_.read(head, first, size, a.data());
      files_.read(map_.embedding, first, size, b.data());
      same = a == b;
    }
    if (!same) {
      throw CheckpointError(options_.from + ": config.json has tie_word_embeddings, but " + head +
                            " is not equal to " + map_.embedding +
                            "; set tie_word_embeddings to false to keep both");
    }
    files_.remove(head);
  }

  void require_fitting(const Family& family) {
    std::map<std::string, std::vector<int64_t>> wanted;
    for (const auto& [name, shape] : map_.tensors) wanted[name] = shape.stored();
    std::vector<std::string> problems = shape_problems(wanted, files_.tensors());
    for (const auto& [name, view] : files_.tensors()) {
      if (problems.empty() && !is_float(view.type)) {
        problems.push_back(name + " is " + element_name(view.type) +
                           " instead of F32, BF16 or F16");
      }
    }
    if (problems.empty()) return;
    throw CheckpointError(options_.from + ": the weights do not fit its config.json, a " +
                          family.architecture + ": " + join(problems));
  }

  void produce(const RowBlock& block, const ByteSink& write) {
    const ExternalShape& shape = map_.tensors.at(block.tensor);
    if (shape.transposed) return produce_transposed(block, shape, write);
    const int64_t begin = block.tensor_row * shape.columns;
    const int64_t end = begin + block.rows * shape.columns;
    for (int64_t first = begin; first < end; first += kPieceElements) {
      piece_.resize(static_cast<size_t>(std::min(kPieceElements, end - first)));
      files_.read(block.tensor, first, piece_.size(), piece_.data());
      emit(block.tensor, write);
    }
  }

  void produce_transposed(const RowBlock& block, const ExternalShape& shape,
                          const ByteSink& write) {
    if (whole_name_ != block.tensor) {
      whole_.resize(static_cast<size_t>(shape.rows * shape.columns));
      files_.read(block.tensor, 0, whole_.size(), whole_.data());
      whole_name_ = block.tensor;
    }
    piece_.resize(static_cast<size_t>(shape.columns));
    for (int64_t row = block.tensor_row; row < block.tensor_row + block.rows; ++row) {
      for (int64_t column = 0; column < shape.columns; ++column) {
        piece_[static_cast<size_t>(column)] =
            whole_[static_cast<size_t>(column * shape.rows + row)];
      }
      emit(block.tensor, write);
    }
  }

  void emit(const std::string& tensor, const ByteSink& write) {
    check_stop("importing a model");
    require_finite(piece_, options_.from + ": " + tensor);
    const size_t bytes = piece_.size() * sizeof(float);
    write(piece_.data(), bytes);
    done_ += bytes;
    if (options_.progress) options_.progress(done_, total_);
  }

  const ImportOptions& options_;
  WeightFiles files_;
  TensorMap map_;
  std::vector<float> piece_, whole_;
  std::string whole_name_;
  uint64_t done_ = 0, total_ = 0;
};

}  // namespace

const std::vector<std::string>& import_fields() {
  static const std::vector<std::string> fields = {
      "model.stable_mask", "model.stable_mask.*", "model.attention", "train.context", "eval.*",
      "generate.*"};
  return fields;
}

ImportSummary import_model(const ImportOptions& options) {
  if (!options.base.empty()) return import_adapters(options);
  const std::string path = options.from + "/config.json";
  require_no_adapters(options.from);
  const JsonValue json = read_json_object(path);
  FieldReader fields(json, path);
  const Family& family = family_of(fields);
  const ExternalModel external = read_external_model(family, fields, options.ignored_fields);
  const Config config = checkpoint_config(external, options);

  CheckpointContent content;
  content.config_json = dump_config(config);
  // No state of training: such a checkpoint cannot be resumed.
  content.state_json = "{\"imported_from\": \"" + std::string(family.architecture) + "\"}\n";
  if (const auto tokenizer = read_tokenizer(options, config.model.vocab_size)) {
    content.tokenizer_model = tokenizer->bytes();
    content.tokenizer_companions = tokenizer->companions();
  }
  Importer importer(family, external.model, options);
  content.streamed_model = importer.tensors();
  create_folders(parent_folder(options.to), ExitCode::kCheckpoint);
  write_checkpoint(options.to, content);
  return {family.architecture, importer.parameters()};
}

}  // namespace stablemask::interop
