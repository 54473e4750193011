#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/config/config.h"

namespace stablemask {

using Strings = std::vector<std::string>;

/// A config's text, or an override, and the error message that it gives.
struct Case {
  std::string text;
  std::string message;
};

/// The message of the ConfigError that the text gives; "" when it is valid.
inline std::string problems(const std::string& text, const Strings& overrides = {}) {
  try {
    parse_config(text, "c.json", overrides);
    return "";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    return error.what();
  }
}

}  // namespace stablemask
