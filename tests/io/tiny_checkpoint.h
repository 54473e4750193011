#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "stablemask/io/checkpoint.h"

namespace stablemask {

/// A checkpoint of a few hundred bytes whose every byte follows from its step.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(int64_t step) : weights_(24), moments_(48) {
    for (size_t k = 0; k < weights_.size(); ++k) weights_[k] = static_cast<float>(step * 100 + k);
    for (size_t k = 0; k < moments_.size(); ++k) moments_[k] = static_cast<float>(k) / step;
    content_.step = step;
    content_.model = {{"embedding", {ElementType::kF32, {4, 5}, weights_.data()}},
                      {"norm", {ElementType::kF32, {4}, weights_.data() + 20}}};
    content_.optimizer = {{"m.embedding", {ElementType::kF32, {4, 5}, moments_.data()}},
                          {"v.embedding", {ElementType::kF32, {4, 5}, moments_.data() + 20}}};
    content_.state_json = "{\"step\": " + std::to_string(step) + "}\n";
    content_.config_json = "{}\n";
    content_.tokenizer_model = std::string("\0pieces\xFF", 8);
  }
  TinyCheckpoint(const TinyCheckpoint&) = delete;
  TinyCheckpoint& operator=(const TinyCheckpoint&) = delete;

  const CheckpointContent& content() const { return content_; }
  CheckpointContent& content() { return content_; }

 private:
  std::vector<float> weights_;
  std::vector<float> moments_;
  CheckpointContent content_;
};

inline bool same_tensors(const std::map<std::string, TensorView>& a,
                         const std::map<std::string, TensorView>& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, view] : a) {
    const auto other = b.find(name);
    if (other == b.end() || other->second.type != view.type || other->second.shape != view.shape ||
        std::memcmp(other->second.data, view.data, view.bytes()) != 0) {
      return false;
    }
  }
  return true;
}

/// Whether `loaded` is TinyCheckpoint(loaded.step), bit by bit.
inline bool is_tiny_checkpoint(const Checkpoint& loaded) {
  const TinyCheckpoint expected(loaded.step);
  const CheckpointContent& content = expected.content();
  return loaded.optimizer && same_tensors(loaded.model.tensors(), content.model) &&
         same_tensors(loaded.optimizer->tensors(), content.optimizer) &&
         loaded.state_json == content.state_json && loaded.config_json == content.config_json &&
         loaded.tokenizer_model == content.tokenizer_model;
}

}  // namespace stablemask
