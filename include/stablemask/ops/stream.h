#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>

namespace stablemask::ops {

/// A stream of a GPU for work that overlaps with that of the current stream, such as communication;
/// may be used while a CUDA graph is recorded, if the recorded stream waits for it in the end. On
/// the CPU and in builds without CUDA nothing here does anything, and work is done where it is
/// called.
class SideStream {
 public:
  explicit SideStream(c10::Device device);
  ~SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  /// Makes the side stream the current one during its lifetime. The side stream first waits for the
  /// work queued so far on the stream that was current.
  class Entered {
   public:
    explicit Entered(SideStream& stream);
    ~Entered();
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;

   private:
    struct Guard;
    std::unique_ptr<Guard> guard_;
  };

  /// A position in the side stream, after all work queued on it so far.
  class Point {
   public:
    /// The current stream waits until the side stream has got there. A default-constructed point
    /// has been passed.
    void wait() const;
    /// The host waits until then.
    void synchronize() const;

   private:
    friend class SideStream;
    struct Event;
    std::shared_ptr<Event> event_;
  };
  Point point();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The next `products` matrix products that this thread enqueues on a GPU leave `multiprocessors`
/// of it free, for a collective that is enqueued now on a side stream. The kernels of products have
/// one thread block for each multiprocessor; if some of these are occupied, the blocks that find no
/// place begin when the others have ended, and a product takes up to twice as long. A product's
/// algorithm is chosen for the number that is left; without collectives it takes longer in
/// proportion.
void leave_multiprocessors(int64_t multiprocessors, int64_t products);

}  // namespace stablemask::ops
