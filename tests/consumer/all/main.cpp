#include <cstdio>

#include "stablemask/base/error.h"
#include "stablemask/config/config.h"
#include "stablemask/train/trainer.h"

using namespace stablemask;

// Reaches through every layer down to the tokenizer's library; training without data is refused.
int main() {
  try {
    Trainer trainer(parse_config("{}", "empty"), {});
  } catch (const ConfigError& error) {
    std::printf("%s\n", error.what());
    return 0;
  }
  return 1;
}
