#pragma once

#include <cstdint>

namespace stablemask::ops {

/// How many multiprocessors the product that is enqueued now leaves free; each call counts as one
/// of the products that leave_multiprocessors() announced.
int64_t multiprocessors_left();

}  // namespace stablemask::ops
