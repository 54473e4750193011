#include <cstdio>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/infer/evaluate.h"
#include "stablemask/infer/generate.h"
#include "stablemask/infer/generator.h"
#include "stablemask/infer/load.h"

using namespace stablemask;

/// Two texts that begin with `prompt`, generated together.
std::vector<std::string> two_texts(LoadedModel& loaded, const std::string& prompt) {
  std::vector<std::string> texts(2, prompt);
  infer::Generator generator(
      loaded.model, {.max_batch = 2, .capacity = 64, .vocab_size = loaded.tokenizer.vocab_size()});
  for (int64_t seed = 0; seed < 2; ++seed) {
    infer::GenerateRequest request;
    request.prompt = prompt_ids(loaded.tokenizer, prompt, "prompt");
    request.settings.max_tokens = 8;
    request.settings.seed = seed;
    request.emit = [&, seed](const infer::DrawnToken& token) {
      texts[seed] += loaded.tokenizer.decode({token.id});
      return true;
    };
    generator.add(std::move(request));
  }
  generator.run();
  return texts;
}

// consumer CHECKPOINT TEXT: greedy continuation of TEXT and two drawn ones, or the error and its
// exit code.
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
    for (const std::string& text : two_texts(loaded, argv[2])) std::printf("%s\n", text.c_str());
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
