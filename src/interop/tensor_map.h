#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "src/interop/families.h"
#include "stablemask/io/safetensors.h"
#include "stablemask/nn/parameters.h"

namespace stablemask::interop {

/// `rows` rows of a parameter from `parameter_row` on are the rows of a tensor from `tensor_row`
/// on.
struct RowBlock {
  std::string parameter;
  int64_t parameter_row = 0;
  std::string tensor;
  int64_t tensor_row = 0;
  int64_t rows = 0;
};

/// A tensor of a family's files. Of vectors each element is a row.
struct ExternalShape {
  int64_t rows = 0, columns = 1;
  bool is_vector = false;
  bool transposed = false;  ///< stored as [columns, rows]
  std::vector<int64_t> stored() const;
};

/// How the parameters of a model are cut into the tensors of a family's files. Every element of
/// both sides is in exactly one block.
struct TensorMap {
  std::vector<nn::Parameter> parameters;
  std::map<std::string, ExternalShape> tensors;
  std::map<std::string, std::vector<RowBlock>> by_parameter;  ///< in the order of its rows
  std::map<std::string, std::vector<RowBlock>> by_tensor;     ///< in the order of its rows
  std::string embedding;                                      ///< tensor of the token embedding
};

TensorMap tensor_map(const Family& family, const ModelConfig& model);

/// One line for each difference between the shapes of `wanted` and the tensors `found`, at most
/// ten of them: "NAME is missing", "NAME is [2, 3] instead of [3, 2]", "NAME is not part of the
/// model".
std::vector<std::string> shape_problems(const std::map<std::string, std::vector<int64_t>>& wanted,
                                        const std::map<std::string, TensorView>& found);

}  // namespace stablemask::interop
