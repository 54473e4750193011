#pragma once

#include "src/dist/single_process.h"

namespace stablemask {

/// A process alone, for tests that override single functions.
using LoneGroup = dist::SingleProcess;

}  // namespace stablemask
