#include "src/train/input_watch.h"

#include "stablemask/base/log.h"

namespace stablemask {
namespace {

bool has_same_tokens(const std::string& path, const Shard& shard) try {
  return Shard::open(path).info().payload_sha256 == shard.info().payload_sha256;
} catch (const DataError&) {
  return false;
}

}  // namespace

InputWatch::InputWatch(const RunInputs& inputs) {
  for (const auto& shard : inputs.train)
    train_.push_back({shard, shard->stamps_at_open(), false, ""});
  if (inputs.valid) valid_.push_back({inputs.valid, inputs.valid->stamps_at_open(), false, ""});
}

std::string InputWatch::train_problem() {
  for (Watched& watched : train_) {
    look_at(watched);
    if (!watched.problem.empty()) return watched.problem;
  }
  return "";
}

std::string InputWatch::valid_problem() {
  for (Watched& watched : valid_) {
    look_at(watched);
    if (!watched.problem.empty()) return watched.problem;
  }
  return "";
}

void InputWatch::look_at(Watched& watched) {
  const Shard& shard = *watched.shard;
  try {
    shard.verify_again(watched.known);
  } catch (const DataError& error) {
    watched.problem = error.what();
    return;
  }
  if (watched.warned || shard.is_named() || has_same_tokens(shard.path(), shard)) return;
  watched.warned = true;
  log_warning("shard " + shard.path() +
              ": was replaced or removed; the run goes on with the tokens that it has open, but a "
              "resume needs the same ones there");
}

}  // namespace stablemask
