#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

namespace stablemask::ops {

/// A CUDA graph of a training step or of an evaluation's forward, and the stream that it is
/// captured and replayed on. On the CPU and in builds without CUDA recorded() is always false and
/// OnItsStream does nothing.
class Graph {
 public:
  explicit Graph(at::Device device);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Makes the graph's stream the current one during its lifetime. The graph's stream waits for
  /// work queued earlier on the outer stream; on destruction the outer stream waits for the
  /// graph's.
  class OnItsStream {
   public:
    explicit OnItsStream(Graph& graph);
    ~OnItsStream();
    OnItsStream(const OnItsStream&) = delete;
    OnItsStream& operator=(const OnItsStream&) = delete;

   private:
    struct Guard;
    std::unique_ptr<Guard> guard_;
  };

  bool recorded() const;
  /// Captures the device work that `work` enqueues, without executing it. Call once, on a GPU,
  /// inside OnItsStream or SideStream::Entered; otherwise c10::Error. Exceptions of `work` pass
  /// through; then nothing is recorded and the device and the allocator remain usable.
  void record(const std::function<void()>& work);
  /// Enqueues the recorded work on the current stream; call where `record` may be called.
  void replay();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stablemask::ops
