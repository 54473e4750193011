#pragma once

namespace stablemask::ops {

/// Whether the kernel that is enqueued now may overlap with the one before it
/// (stablemask/ops/overlap.h); each call counts as one kernel.
bool overlaps_previous();

}  // namespace stablemask::ops
