#include "src/train/step_graph.h"

#include <ATen/ATen.h>

#ifdef STABLEMASK_HAS_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace stablemask {

#ifdef STABLEMASK_HAS_CUDA

struct StepGraph::State {
  explicit State(at::Device device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}
  c10::cuda::CUDAStream stream;
  at::cuda::CUDAGraph graph;
  bool recorded = false;
};

struct StepGraph::OnItsStream::Guard {
  explicit Guard(c10::cuda::CUDAStream stream)
      : before(c10::cuda::getCurrentCUDAStream()), own(stream), guard(stream) {
    wait(own, before);
  }
  ~Guard() { wait(before, own); }

  static void wait(c10::cuda::CUDAStream later, c10::cuda::CUDAStream earlier) {
    at::cuda::CUDAEvent event;
    event.record(earlier);
    event.block(later);
  }

  c10::cuda::CUDAStream before, own;
  c10::cuda::CUDAStreamGuard guard;
};

StepGraph::StepGraph(at::Device device) {
  if (device.is_cuda()) state_ = std::make_unique<State>(device);
}

bool StepGraph::recorded() const { return state_ && state_->recorded; }

void StepGraph::record(const std::function<void()>& work) {
  TORCH_CHECK(state_ && !state_->recorded, "StepGraph: records once, and only on a GPU");
  // What the plain steps left in the allocator is of no use to the graph's own pool.
  c10::cuda::CUDACachingAllocator::emptyCache();
  state_->graph.capture_begin();
  work();
  state_->graph.capture_end();
  state_->recorded = true;
}

void StepGraph::replay() { state_->graph.replay(); }

StepGraph::OnItsStream::OnItsStream(StepGraph& graph) {
  if (graph.state_) guard_ = std::make_unique<Guard>(graph.state_->stream);
}

#else

struct StepGraph::State {};
struct StepGraph::OnItsStream::Guard {};

StepGraph::StepGraph(at::Device) {}
bool StepGraph::recorded() const { return false; }
void StepGraph::record(const std::function<void()>&) {
  TORCH_CHECK(false, "StepGraph: this build has no CUDA");
}
void StepGraph::replay() {}
StepGraph::OnItsStream::OnItsStream(StepGraph&) {}

#endif

StepGraph::~StepGraph() = default;
StepGraph::OnItsStream::~OnItsStream() = default;

}  // namespace stablemask
