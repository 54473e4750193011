#pragma once

#include <string_view>
#include <vector>

namespace stablemask::interop {

/// A Python file that an exported StableMaskForCausalLM needs. The build embeds those of
/// src/interop/python.
struct PythonFile {
  const char* name;
  std::string_view text;
};

const std::vector<PythonFile>& python_files();

}  // namespace stablemask::interop
