#include "stablemask/infer/weights.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>

#include "stablemask/base/error.h"
#include "stablemask/base/text.h"
#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string text_of(const std::vector<ElementType>& types) {
  std::vector<std::string> names;
  for (const ElementType type : types) names.emplace_back(element_name(type));
  return join(names, " or ");
}

/// One line for each tensor of `stored` that does not fit its namesake in `wanted`.
std::vector<std::string> differences(const std::map<std::string, at::Tensor>& wanted,
                                     const std::map<std::string, TensorView>& stored,
                                     const std::vector<ElementType>& types) {
  std::vector<std::string> problems;
  for (const auto& [name, tensor] : wanted) {
    const auto found = stored.find(name);
    if (found == stored.end()) {
      problems.push_back(name + " is missing");
      continue;
    }
    const TensorView& view = found->second;
    if (view.shape != tensor.sizes().vec()) {
      problems.push_back(name + " is " + shape_text(view.shape) + " instead of " +
                         shape_text(tensor.sizes().vec()));
    } else if (std::ranges::find(types, view.type) == types.end()) {
      problems.push_back(name + " is " + element_name(view.type) + " instead of " + text_of(types));
    }
  }
  for (const auto& [name, view] : stored) {
    if (wanted.count(name) == 0) problems.push_back(name + " is not part of the model");
  }
  return problems;
}

}  // namespace

void copy_rounded(const at::Tensor& host, at::Tensor& tensor) {
  tensor.copy_(tensor.scalar_type() == at::kBFloat16 ? ops::split_weights(host).rounded : host);
}

void for_each_tensor(const std::map<std::string, at::Tensor>& wanted, const SafetensorsFile& file,
                     const std::string& path,
                     const std::function<void(const std::string&, const at::Tensor&)>& take,
                     const std::vector<ElementType>& types) {
  const std::vector<std::string> problems = differences(wanted, file.tensors(), types);
  if (!problems.empty())
    throw CheckpointError(path + ": does not fit the config: " + join(problems));
  at::NoGradGuard no_grad;
  for (const auto& [name, view] : file.tensors()) {
    // Copied into an aligned buffer: tensors in the file may be misaligned.
    at::Tensor host =
        at::empty(view.shape, view.type == ElementType::kBf16 ? at::kBFloat16 : at::kFloat);
    std::memcpy(host.mutable_data_ptr(), view.data, view.bytes());
    take(name, host);
  }
}

}  // namespace stablemask
