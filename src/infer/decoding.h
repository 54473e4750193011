#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/infer/launched_step.h"
#include "src/infer/scheduler.h"
#include "src/infer/step_table.h"
#include "stablemask/nn/decoder.h"
#include "stablemask/ops/graph.h"
#include "stablemask/ops/stream.h"

namespace stablemask::infer {

/// Decoding steps of sequences on the model's device. On a GPU everything runs on a stream of its
/// own and the host waits for nothing here; a step for 1, 2, 4, 8, … sequences runs plainly once
/// (libraries set themselves up, which cannot be recorded) and is then recorded as a CUDA graph.
class Decoding {
 public:
  /// `slots`: sequences at a time. `vocabulary`: ids that may be drawn.
  Decoding(nn::Transformer model, int64_t slots, int64_t capacity, int64_t vocabulary,
           bool use_graphs);
  ~Decoding();
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;

  /// Enqueues the caching of further tokens of prompts (prompt_cache.h). Returns how many.
  int64_t prefill(const std::vector<SequencePtr>& sequences);
  /// Enqueues a step that draws the next id of each sequence. At most two launched steps may be
  /// unread.
  LaunchedStep launch(const std::vector<SequencePtr>& sequences);
  /// Computes the logits of the sequence's next id again: "generated token 3: the logit of id 7 is
  /// nan". Only for an id that a step has drawn as −1.
  std::string non_finite(const Sequence& sequence);

  at::Device device() const { return device_; }
  int64_t graphs() const;  ///< recorded so far
  const nn::KvCache& cache() const { return decoder_.cache(); }

 private:
  struct Results {
    at::Tensor logits, sampled;
  };
  struct RecordedStep {
    explicit RecordedStep(at::Device device) : graph(device) {}
    ops::Graph graph;
    Results results;
    bool warm = false;
  };

  int64_t batch_for(int64_t sequences) const;
  void mark_prompts(const std::vector<SequencePtr>& sequences);
  Results step(const std::vector<SequencePtr>& sequences, int64_t batch, bool penalised);
  Results step_by_graph(RecordedStep& recorded, const std::vector<SequencePtr>& sequences,
                        int64_t batch, bool penalised);

  const at::Device device_;
  const int64_t slots_, vocabulary_;
  bool use_graphs_;
  ops::SideStream stream_;
  nn::Decoder decoder_;
  StepTable table_;
  at::Tensor seen_;         ///< uint8 [slots,V]; undefined until a sequence has a penalty
  at::Tensor host_ids_[2];  ///< in turn
  int64_t launches_ = 0;
  std::map<std::pair<int64_t, bool>, std::unique_ptr<RecordedStep>> steps_;
};

}  // namespace stablemask::infer
