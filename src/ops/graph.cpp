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

struct Graph::State {
  explicit State(at::Device device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  void record(const std::function<void()>& work) {
    const c10::MempoolId_t pool = at::cuda::graph_pool_handle();
    try {
      graph.capture_begin(pool);
      work();
      graph.capture_end();
    } catch (...) {
      abandon(pool);
      throw;
    }
    recorded = true;
  }

  /// Ends a capture that failed. Left open, it would draw in every stream that waits for its own,
  /// and the allocator would go on giving out the graph's memory.
  void abandon(c10::MempoolId_t pool) noexcept {
    const auto attempt = [](const auto& call) {
      try {
        call();
        return true;
      } catch (const std::exception&) {  // what began the failure is what the user is to hear of
        return false;
      }
    };
    // A capture that an operation made invalid ends as well, but not in the allocator's books.
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
      : before(c10::cuda::getCurrentCUDAStream()), own(stream), guard(stream) {
    wait(own, before);
  }
  /// A device that has failed cannot wait; the next call that asks it for a result throws.
  ~Guard() {
    try {
      wait(before, own);
    } catch (const std::exception&) {
    }
  }

  static void wait(c10::cuda::CUDAStream later, c10::cuda::CUDAStream earlier) {
    at::cuda::CUDAEvent event;
    event.record(earlier);
    event.block(later);
  }

  c10::cuda::CUDAStream before, own;
  c10::cuda::CUDAStreamGuard guard;
};

Graph::Graph(at::Device device) {
  if (device.is_cuda()) state_ = std::make_unique<State>(device);
}

bool Graph::recorded() const { return state_ && state_->recorded; }

void Graph::record(const std::function<void()>& work) {
  TORCH_CHECK(state_ && !state_->recorded, "Graph: records once, and only on a GPU");
  // What the plain steps left in the allocator is of no use to the graph's own pool.
  c10::cuda::CUDACachingAllocator::emptyCache();
  state_->record(work);
}

void Graph::replay() { state_->graph.replay(); }

Graph::OnItsStream::OnItsStream(Graph& graph) {
  if (graph.state_) guard_ = std::make_unique<Guard>(graph.state_->stream);
}

#else

struct Graph::State {};
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
