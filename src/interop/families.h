#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "src/interop/field_reader.h"
#include "stablemask/config/config.h"
#include "stablemask/nn/parameters.h"

namespace stablemask::interop {

/// What config.json says about a model.
struct ExternalModel {
  ModelConfig model;
  int64_t context = 0;  ///< longest input, tokens
};

/// Name that `Family::place` gets for learned positions, which Llama does not have.
constexpr const char* kPositionTable = "model.embed_positions.weight";

/// Consecutive rows of a tensor of the family's files.
struct TensorRows {
  std::string name;
  int64_t first = 0, rows = 0;
  bool transposed = false;  ///< the tensor is stored as [columns, rows]
};

/// A model class of transformers. `read` and `write` are inverse to each other for every model that
/// the class can express.
struct Family {
  const char* architecture;  ///< "LlamaForCausalLM"
  const char* model_type;    ///< "llama"
  /// The model of a config.json. Refuses (FieldReader::refuse) values that ModelConfig cannot
  /// express; fields that it does not read are unknown to the family.
  ExternalModel (*read)(FieldReader& fields);
  /// The fields that `read` reads, except those that every family has (see common_fields). The
  /// model may be one that the family cannot express.
  nlohmann::ordered_json (*write)(const ExternalModel& model);
  /// Where the rows of a tensor of Llama are in the family's files, in the order of the rows.
  std::vector<TensorRows> (*place)(const ModelConfig& model, const nn::ExternalTensor& tensor);
  /// Prefix of all tensors but the head's, which files of the model without a head lack.
  const char* prefix;
  const char* head;  ///< name of the head's weight, which files of a tied model may have too
  /// Endings of the names of tensors that are no weights.
  std::vector<std::string> buffers;
};

/// The sizes that most classes state under the same names: vocab_size, hidden_size,
/// intermediate_size, num_hidden_layers and num_attention_heads.
void read_sizes(FieldReader& fields, ModelConfig& model);
void write_sizes(const ModelConfig& model, nlohmann::ordered_json& json);

/// In the order in which an export tries them.
const std::vector<Family>& families();

/// The family of a config.json, by `architectures` or, where that is absent, `model_type`. Refuses
/// a class that is not in the table.
const Family& family_of(FieldReader& fields);

/// Reads config.json with `family`; `ignored` are unknown fields to pass over.
ExternalModel read_external_model(const Family& family, FieldReader fields,
                                  const std::vector<std::string>& ignored);

/// Whether `family` can express the model exactly.
bool expresses(const Family& family, const ExternalModel& model);

/// Whether both compute the same from the same weights and tokens.
bool same_model(const ExternalModel& one, const ExternalModel& other);

/// The first of families() that expresses the model.
const Family& family_for(const ExternalModel& model);

}  // namespace stablemask::interop
