#include "src/interop/tensor_map.h"

#include <algorithm>
#include <stdexcept>

#include "stablemask/base/log.h"

namespace stablemask::interop {
namespace {

/// Learned positions and learned masks have no name in Llama: the former get that of other families
/// of transformers, the latter one that follows from their block's attention.
std::vector<nn::ExternalTensor> external_names(const nn::Parameter& parameter) {
  if (!parameter.external.empty()) return parameter.external;
  if (parameter.role == nn::Role::kPositions) return {{kPositionTable, parameter.shape[0]}};
  const std::string& ours = parameter.name;
  const size_t last = ours.rfind('.'), before = ours.rfind('.', last - 1);
  return {{"model.layers." + std::to_string(parameter.block) + ".self_attn" + ours.substr(before),
           parameter.shape[0]}};
}

void add(TensorMap& map, const nn::Parameter& parameter, int64_t& row, const TensorRows& rows) {
  const RowBlock block{parameter.name, row, rows.name, rows.first, rows.rows};
  ExternalShape& shape = map.tensors[rows.name];
  shape.rows = std::max(shape.rows, rows.first + rows.rows);
  shape.is_vector = parameter.shape.size() == 1;
  shape.columns = shape.is_vector ? 1 : parameter.shape[1];
  shape.transposed = rows.transposed;
  map.by_parameter[parameter.name].push_back(block);
  map.by_tensor[rows.name].push_back(block);
  row += rows.rows;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

std::vector<int64_t> ExternalShape::stored() const {
  if (is_vector) return {rows};
  return transposed ? std::vector{columns, rows} : std::vector{rows, columns};
}

TensorMap tensor_map(const Family& family, const ModelConfig& model) {
  TensorMap map;
  map.parameters = nn::parameters(model);
  for (const nn::Parameter& parameter : map.parameters) {
    int64_t row = 0;
    for (const nn::ExternalTensor& tensor : external_names(parameter)) {
      for (const TensorRows& rows : family.place(model, tensor)) add(map, parameter, row, rows);
    }
    if (row != parameter.shape[0]) throw std::logic_error("not all rows of " + parameter.name);
    if (parameter.role == nn::Role::kEmbedding) {
      map.embedding = map.by_parameter.at(parameter.name)[0].tensor;
    }
  }
  for (auto& [name, blocks] : map.by_tensor) {
    std::ranges::sort(blocks, {}, &RowBlock::tensor_row);
    int64_t row = 0;
    for (const RowBlock& block : blocks) {
      if (block.tensor_row != row)
        throw std::logic_error("rows of " + name + " without a parameter");
      row += block.rows;
    }
  }
  return map;
}

std::vector<std::string> shape_problems(const std::map<std::string, std::vector<int64_t>>& wanted,
                                        const std::map<std::string, TensorView>& found) {
  constexpr size_t kMost = 10;
  std::vector<std::string> problems;
  for (const auto& [name, shape] : wanted) {
    const auto view = found.find(name);
    if (view == found.end()) {
      problems.push_back(name + " is missing");
    } else if (view->second.shape != shape) {
      problems.push_back(name + " is " + shape_text(view->second.shape) + " instead of " +
                         shape_text(shape));
    }
  }
  for (const auto& [name, view] : found) {
    if (wanted.count(name) == 0) problems.push_back(name + " is not part of the model");
  }
  if (problems.size() > kMost) {
    const std::string more = format("and %zu more", problems.size() - kMost);
    problems.resize(kMost);
    problems.push_back(more);
  }
  return problems;
}

}  // namespace stablemask::interop
