#include "src/train/same_run.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "stablemask/base/json_text.h"
#include "stablemask/dist/agreement.h"

namespace stablemask {

void require_same_run(dist::Group& group, const Config& config, const RunInputs& inputs,
                      const std::string& device, bool bf16) {
  std::vector<dist::Fact> facts = {
      dist::program_fact(), {"device", device}, {"compute type", bf16 ? "bf16" : "fp32"}};
  const nlohmann::json fields = nlohmann::json::parse(dump_config(config)).flatten();
  for (const auto& [pointer, value] : fields.items()) facts.emplace_back(pointer, json_text(value));
  facts.emplace_back("SHA-256 of data.tokenizer", inputs.tokenizer.sha256());
  for (const auto& shard : inputs.train) {
    facts.emplace_back("SHA-256 of " + shard->path(), shard->info().payload_sha256);
  }
  if (inputs.valid) {
    facts.emplace_back("SHA-256 of " + inputs.valid->path(), inputs.valid->info().payload_sha256);
  }
  dist::require_equal(group, facts);
}

}  // namespace stablemask
