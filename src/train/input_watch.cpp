#include "src/train/input_watch.h"

#include <utility>

#include "stablemask/base/log.h"
#include "stablemask/dist/agreement.h"

namespace stablemask {
namespace {

bool has_same_tokens(const std::string& path, const Shard& shard) try {
  return Shard::open(path).info().payload_sha256 == shard.info().payload_sha256;
} catch (const DataError&) {
  return false;
}

}  // namespace

InputWatch::InputWatch(const RunInputs& inputs, std::shared_ptr<dist::Group> group)
    : group_(std::move(group)) {
  for (const auto& shard : inputs.train) train_.push_back({shard, shard->stamps_at_open(), false});
  if (inputs.valid) valid_.push_back({inputs.valid, inputs.valid->stamps_at_open(), false});
}

void InputWatch::require(std::vector<Watched>& shards) {
  std::string problem;
  try {
    for (Watched& watched : shards) look_at(watched);
  } catch (const DataError& error) {
    problem = error.what();
  }
  if (dist::any_failed(*group_, problem)) throw InputsChanged(problem);
}

void InputWatch::look_at(Watched& watched) {
  const Shard& shard = *watched.shard;
  shard.verify_again(watched.known);
  if (watched.warned || shard.is_named() || has_same_tokens(shard.path(), shard)) return;
  watched.warned = true;
  log_warning("shard " + shard.path() +
              ": was replaced or removed; the run goes on with the tokens that it has open, but a "
              "resume needs the same ones there");
}

}  // namespace stablemask
