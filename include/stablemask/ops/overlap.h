#pragma once

namespace stablemask::ops {

/// While an object exists, the kernels that this thread enqueues on a GPU for products of few rows
/// and for decode_attention may start before the kernel enqueued before them has ended, and read at
/// once what that kernel does not write: weights; positions, rows, masks and cached keys and values
/// (programmatic dependent launch). Everything else they read and write after that kernel's end, so
/// results are the same. The caller promises that nothing enqueued during the object's lifetime
/// writes those, but for decode_attention, of which each call has a cache that no other one has.
/// Also in CUDA graphs. The first such kernel is an ordinary one: work enqueued before the object
/// existed may write them. Objects may be nested; no effect on a CPU.
class OverlappedLaunches {
 public:
  OverlappedLaunches();
  ~OverlappedLaunches();
  OverlappedLaunches(const OverlappedLaunches&) = delete;
  OverlappedLaunches& operator=(const OverlappedLaunches&) = delete;
};

}  // namespace stablemask::ops
