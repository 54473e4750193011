#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stablemask/io/safetensors.h"

namespace stablemask::interop {

/// The tensors of a model's folder, from model.safetensors or from the files that
/// model.safetensors.index.json lists.
class WeightFiles {
 public:
  /// Throws CheckpointError for files that the readers of io/safetensors.h refuse, when there are
  /// none, and when the weights are in a pickle only.
  explicit WeightFiles(const std::string& folder);

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }  ///< no data
  void remove(const std::string& name) { tensors_.erase(name); }
  /// Prepends `prefix` to the names of all tensors.
  void add_prefix(const std::string& prefix);

  /// Values of `count` elements of a tensor from element `first` on, as fp32.
  void read(const std::string& name, int64_t first, size_t count, float* to);

 private:
  struct Place {
    const SafetensorsReader* file;
    std::string name;  ///< in the file
  };

  std::map<std::string, SafetensorsReader> files_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, Place> places_;
  std::vector<char> buffer_;
};

}  // namespace stablemask::interop
