#include "stablemask/ops/stream.h"

#include <c10/util/Exception.h>

#include "src/ops/multiprocessors.h"

#ifdef STABLEMASK_HAS_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace stablemask::ops {

#ifdef STABLEMASK_HAS_CUDA

struct SideStream::Impl {
  // Of high priority: its kernels get the next free multiprocessors, so that what is waited for
  // later is not queued behind all the work it overlaps with.
  explicit Impl(c10::DeviceIndex device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device)) {}
  c10::cuda::CUDAStream stream;
};

struct SideStream::Entered::Guard {
  explicit Guard(c10::cuda::CUDAStream stream) : guard(waiting(stream)) {}

  static c10::cuda::CUDAStream waiting(c10::cuda::CUDAStream stream) {
    at::cuda::CUDAEvent event;
    event.record(c10::cuda::getCurrentCUDAStream(stream.device_index()));
    event.block(stream);
    return stream;
  }

  c10::cuda::CUDAStreamGuard guard;
};

struct SideStream::Point::Event {
  at::cuda::CUDAEvent event;
};

SideStream::SideStream(c10::Device device) {
  if (device.is_cuda()) {
    impl_ = std::make_unique<Impl>(device.has_index() ? device.index() : c10::DeviceIndex{-1});
  }
}

SideStream::Entered::Entered(SideStream& stream) {
  if (stream.impl_) guard_ = std::make_unique<Guard>(stream.impl_->stream);
}

SideStream::Point SideStream::point() {
  Point point;
  if (impl_) {
    point.event_ = std::make_shared<Point::Event>();
    point.event_->event.record(impl_->stream);
  }
  return point;
}

void SideStream::Point::wait() const {
  if (event_) {
    const c10::DeviceIndex device = event_->event.device_index();
    event_->event.block(c10::cuda::getCurrentCUDAStream(device));
  }
}

void SideStream::Point::synchronize() const {
  if (event_) event_->event.synchronize();
}

#else

struct SideStream::Impl {};
struct SideStream::Entered::Guard {};
struct SideStream::Point::Event {};

SideStream::SideStream(c10::Device) {}
SideStream::Entered::Entered(SideStream&) {}
SideStream::Point SideStream::point() { return {}; }
void SideStream::Point::wait() const {}
void SideStream::Point::synchronize() const {}

#endif

namespace {

struct LeftFree {
  int64_t multiprocessors = 0, products = 0;
};
thread_local LeftFree left_free;

}  // namespace

void leave_multiprocessors(int64_t multiprocessors, int64_t products) {
  TORCH_CHECK(multiprocessors >= 0 && products >= 0,
              "leave_multiprocessors: both numbers must be at least 0, got ", multiprocessors,
              " and ", products);
  left_free = {multiprocessors, products};
}

int64_t multiprocessors_left() {
  if (left_free.products == 0) return 0;
  --left_free.products;
  return left_free.multiprocessors;
}

SideStream::~SideStream() = default;
SideStream::Entered::~Entered() = default;

}  // namespace stablemask::ops
