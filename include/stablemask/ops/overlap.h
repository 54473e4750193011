#pragma once

namespace stablemask::ops {

/// While an object exists, kernels that this thread enqueues on a GPU for products of few rows may
/// start before the kernel enqueued before them has ended, and read their weights at once
/// (programmatic dependent launch). Everything else they read and write after that kernel's end, so
/// results are the same. The caller promises that nothing enqueued during the object's lifetime
/// writes a weight. Also in CUDA graphs. The first such kernel is an ordinary one: work enqueued
/// before the object existed may write weights. Objects may be nested; no effect on a CPU.
class OverlappedLaunches {
 public:
  OverlappedLaunches();
  ~OverlappedLaunches();
  OverlappedLaunches(const OverlappedLaunches&) = delete;
  OverlappedLaunches& operator=(const OverlappedLaunches&) = delete;
};

}  // namespace stablemask::ops
