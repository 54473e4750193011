#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

namespace stablemask::ops {

/// A recorded CUDA graph, of a training step or of an evaluation's forward, with the stream it was
/// recorded on. On the CPU, or in a build without CUDA, nothing is ever recorded and the stream is
/// none.
class Graph {
 public:
  explicit Graph(at::Device device);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// While it lives, work is queued on the graph's stream, behind all that was queued before; work
  /// queued after it waits for that of the graph's stream.
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
  /// Runs `work` once without executing it on the device. Call on the graph's stream. What `work`
  /// throws passes through; nothing is recorded then, and device and allocator serve as before.
  void record(const std::function<void()>& work);
  void replay();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stablemask::ops
