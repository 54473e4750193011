#include "stablemask/ops/overlap.h"

#include <utility>

#include "src/ops/overlap.h"

namespace stablemask::ops {
namespace {

struct Overlap {
  int scopes = 0;
  bool began = false;  ///< a kernel was enqueued in the outermost scope
};
thread_local Overlap overlap;

}  // namespace

OverlappedLaunches::OverlappedLaunches() {
  if (overlap.scopes++ == 0) overlap.began = false;
}
OverlappedLaunches::~OverlappedLaunches() { --overlap.scopes; }

bool overlaps_previous() { return overlap.scopes > 0 && std::exchange(overlap.began, true); }

}  // namespace stablemask::ops
