// Input: state.json of a checkpoint whose step is the one that the text states, or 7.
#include <nlohmann/json.hpp>

#include "src/train/run_state.h"
#include "tests/fuzz/harness.h"

namespace stablemask::fuzz {
namespace {

int64_t stated_step(std::string_view text) {
  const auto json = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (!json.is_object() || !json.contains("step")) return 7;
  const auto& step = json["step"];
  if (!step.is_number_integer() || step > INT64_MAX) return 7;
  return step.get<int64_t>();
}

void run(std::string_view input) {
  const std::string text(input);
  const int64_t step = stated_step(input);
  accepted<CheckpointError>([&] {
    const RunState state = run_state_from_json(text, "state.json", step);
    require(state.step == step && step >= 0, "the step is the checkpoint's");
    require(state.skipped >= 0 && state.updates() >= 0, "no more steps are skipped than done");
    const std::string stored = to_json(state);
    const RunState again = run_state_from_json(stored, "state.json", step);
    require(to_json(again) == stored, "a stored state is the state");
  });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
