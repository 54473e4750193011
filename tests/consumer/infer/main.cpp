#include <cstdio>

#include "stablemask/base/error.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/generate.h"
#include "stablemask/infer/load.h"

using namespace stablemask;

// consumer CHECKPOINT TEXT: greedy continuation of TEXT, or the error and its exit code.
int main(int argc, char** argv) {
  if (argc != 3) return 1;
  try {
    LoadedModel loaded = load_model(argv[1], {.device = DeviceKind::kCpu});
    GenerateConfig config = loaded.config.generate;
    config.temperature = 0;
    config.max_tokens = 8;
    const auto ids = generate(loaded.model, loaded.tokenizer.encode(argv[2]), config,
                              {.vocab_size = loaded.tokenizer.vocab_size()});
    std::printf("%s%s\n", argv[2], loaded.tokenizer.decode(ids).c_str());
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
