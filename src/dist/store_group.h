#pragma once

#include <memory>

#include "src/dist/host_group.h"

namespace stablemask::dist {

/// A group for CPU tensors, whose collectives go through the store: for tests and toy runs. Sums
/// and maxima are formed in the order of the ranks, in the tensor's dtype: float32, float64,
/// bfloat16 or int64.
std::shared_ptr<Group> make_store_group(HostPart part);

}  // namespace stablemask::dist
