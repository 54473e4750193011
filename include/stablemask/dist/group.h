#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace stablemask::dist {

enum class Reduce { kSum, kMax };

/// The processes that train one model together. Every process calls the same functions in the same
/// order with tensors of equal shape and dtype, on its own device. Collectives on tensors are
/// enqueued on the current stream (on the CPU they have finished when they return) and may be
/// recorded in a CUDA graph. All tensors are contiguous.
///
/// Functions that wait on the host throw PeerLostError, naming the process and the reason, when
/// another process has died, failed, or kept this one waiting for longer than the timeout.
class Group {
 public:
  virtual ~Group() = default;

  virtual int64_t rank() const = 0;  ///< of this process, in [0, size())
  virtual int64_t size() const = 0;  ///< number of processes
  /// How many multiprocessors of a GPU a collective occupies, at most; 0: none, or unknown.
  virtual int64_t multiprocessors() const { return 0; }

  /// Replaces `tensor` on every process by the elementwise reduction over all processes. Every
  /// process receives the same bits, and the same ones from run to run for one number of processes.
  virtual void all_reduce(const at::Tensor& tensor, Reduce op) = 0;
  /// `flat` [N], N divisible by size(), consists of size() equal parts. Afterwards part rank() of
  /// this process holds the reduction over all processes; the other parts are unspecified.
  virtual void reduce_scatter(const at::Tensor& flat, Reduce op) = 0;
  /// `flat` as for reduce_scatter, of any dtype: afterwards part r holds, on every process, process
  /// r's part r.
  virtual void all_gather(const at::Tensor& flat) = 0;
  /// Replaces `tensor`, of any dtype, on every process by that of process `root`.
  virtual void broadcast(const at::Tensor& tensor, int64_t root) = 0;

  /// A copy of `tensor` in host memory, once the collectives enqueued before on the current stream
  /// are done. Results of collectives are read with this function, which notices lost processes.
  virtual at::Tensor read(const at::Tensor& tensor) = 0;
  /// The maximum of `decision` over all processes, so that all of them take the same branch. Waits
  /// for the other processes, on the host.
  virtual int64_t agree(int64_t decision) = 0;
  /// The `text` of every process, by rank. Waits on the host.
  virtual std::vector<std::string> share(const std::string& text) = 0;
  /// The result of `make`, which one process calls for all: the first that asks for `key`. Not
  /// every process need ask. Waits on the host for the process that calls.
  virtual std::string once(const std::string& key, const std::function<std::string()>& make) = 0;

  /// Tells the other processes that this one ends because of `reason`; the functions that wait
  /// then throw PeerLostError there. For a process that leaves the run with an exception.
  virtual void fail(const std::string& reason) noexcept = 0;
};

/// A group of this process alone. Its results equal its inputs, so no call does any work.
std::shared_ptr<Group> single_process_group();

}  // namespace stablemask::dist
