#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "src/infer/scheduler.h"
#include "stablemask/ops/stream.h"

namespace stablemask::infer {

/// A decoding step that has been enqueued.
struct LaunchedStep {
  std::vector<SequencePtr> sequences;  ///< by slot
  at::Tensor ids;                      ///< int64 [slots] in host memory
  /// Of all slots, fp32 [batch] and [batch,K], int64 [batch,K]; undefined where no sequence asks.
  at::Tensor logprobs, top_logprobs, top_ids;
  ops::SideStream::Point finished;

  /// Enqueues the copies of what the sequences ask about logits [batch,V] and the ids drawn from
  /// the first `vocabulary` of them, int64 [batch].
  void read_logprobs(const at::Tensor& logits, const at::Tensor& sampled, int64_t vocabulary);
  /// Waits until the step has finished; the tensors may then be read.
  void await() const { finished.synchronize(); }
  /// What was drawn for the sequence in `slot`; id −1: a logit is not finite.
  DrawnToken token(int64_t slot) const;
};

/// int64 values on a device, by a copy that the host does not wait for.
at::Tensor to_device(const std::vector<int64_t>& values, at::Device device);

}  // namespace stablemask::infer
