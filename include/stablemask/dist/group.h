#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

namespace stablemask::dist {

enum class Reduce { kSum, kMax };

/// The processes that train one model together. Every process calls the same functions in the same
/// order with tensors of equal shape and dtype; a call returns when its result may be used in the
/// current stream. All tensors are contiguous.
class Group {
 public:
  virtual ~Group() = default;

  virtual int64_t rank() const = 0;  ///< of this process, in [0, size())
  virtual int64_t size() const = 0;  ///< number of processes

  /// Replaces `tensor` on every process by the elementwise reduction over all processes. Every
  /// process receives the same bits.
  virtual void all_reduce(const at::Tensor& tensor, Reduce op) = 0;
  /// `flat` [N], N divisible by size(), consists of size() equal parts. Afterwards part rank() of
  /// this process holds the reduction over all processes; the other parts are unspecified.
  virtual void reduce_scatter(const at::Tensor& flat, Reduce op) = 0;
  /// `flat` as for reduce_scatter: afterwards part r holds, on every process, process r's part r.
  virtual void all_gather(const at::Tensor& flat) = 0;
  /// Replaces `tensor` on every process by that of process `root`.
  virtual void broadcast(const at::Tensor& tensor, int64_t root) = 0;
  /// The maximum of `decision` over all processes, so that all of them take the same branch. Waits
  /// for the other processes, on the host.
  virtual int64_t agree(int64_t decision) = 0;
};

/// A group of this process alone. Its results equal its inputs, so no call does any work.
std::shared_ptr<Group> single_process_group();

}  // namespace stablemask::dist
