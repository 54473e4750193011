#pragma once

#include <string>

namespace stablemask::dist {

/// Of this machine; "unknown host" if the system does not say.
std::string host_name();

}  // namespace stablemask::dist
