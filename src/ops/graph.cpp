#include "stablemask/ops/graph.h"

#include <ATen/ATen.h>

#include <exception>

#ifdef STABLEMASK_HAS_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace stablemask::ops {

#ifdef STABLEMASK_HAS_CUDA

struct Graph::Impl {
  explicit Impl(at::Device device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  void record(const std::function<void()>& work) {
    const c10::MempoolId_t pool = at::cuda::graph_pool_handle();
    try {
      // Other threads of the process may wait for a GPU meanwhile.
      graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
      work();
      graph.capture_end();
    } catch (...) {
      abandon(pool);
      throw;
    }
    recorded = true;
  }

  /// Ends a failed capture. An open capture would spread to every stream that waits for this one,
  /// and the allocator would keep allocating from the graph's memory pool.
  void abandon(c10::MempoolId_t pool) noexcept {
    const auto attempt = [](const auto& call) {
      try {
        call();
        return true;
      } catch (const std::exception&) {  // the first error is the one to report
        return false;
      }
    };
    // If the capture was invalidated, capture_end throws before it tells the allocator.
    if (!attempt([&] { graph.capture_end(); })) {
      namespace allocator = c10::cuda::CUDACachingAllocator;
      const c10::DeviceIndex device = stream.device_index();
      attempt([&] {
        allocator::endAllocateToPool(device, pool);
        allocator::releasePool(device, pool);
      });
    }
    attempt([&] { graph.reset(); });
  }

  c10::cuda::CUDAStream stream;
  at::cuda::CUDAGraph graph;
  bool recorded = false;
};

struct Graph::OnItsStream::Guard {
  explicit Guard(c10::cuda::CUDAStream stream)
      : outer(c10::cuda::getCurrentCUDAStream(stream.device_index())),
        inner(stream),
        guard(stream) {
    wait(inner, outer);
  }
  /// After a device error the wait fails; the error is thrown by the next call that synchronises.
  ~Guard() {
    try {
      wait(outer, inner);
    } catch (const std::exception&) {
    }
  }

  static void wait(c10::cuda::CUDAStream later, c10::cuda::CUDAStream earlier) {
    at::cuda::CUDAEvent event;
    event.record(earlier);
    event.block(later);
  }

  c10::cuda::CUDAStream outer, inner;
  c10::cuda::CUDAStreamGuard guard;
};

Graph::Graph(at::Device device) {
  if (device.is_cuda()) impl_ = std::make_unique<Impl>(device);
}

bool Graph::recorded() const { return impl_ && impl_->recorded; }

void Graph::record(const std::function<void()>& work) {
  TORCH_CHECK(impl_ && !impl_->recorded, "Graph: record may be called once, on a GPU");
  // Memory cached by the uncaptured steps cannot be used by the graph's pool.
  c10::cuda::CUDACachingAllocator::emptyCache();
  impl_->record(work);
}

void Graph::replay() { impl_->graph.replay(); }

Graph::OnItsStream::OnItsStream(Graph& graph) {
  if (graph.impl_) guard_ = std::make_unique<Guard>(graph.impl_->stream);
}

#else

struct Graph::Impl {};
struct Graph::OnItsStream::Guard {};

Graph::Graph(at::Device) {}
bool Graph::recorded() const { return false; }
void Graph::record(const std::function<void()>&) {
  TORCH_CHECK(false, "Graph: this build has no CUDA");
}
void Graph::replay() {}
Graph::OnItsStream::OnItsStream(Graph&) {}

#endif

Graph::~Graph() = default;
Graph::OnItsStream::~OnItsStream() = default;

}  // namespace stablemask::ops
