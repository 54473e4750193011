#include "src/train/resume.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/train/loop.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/text.h"
#include "stablemask/train/schedule.h"

namespace stablemask {
namespace {

std::vector<std::string> changed_fields(const Config& saved, const Config& now) {
  using FlatJson = nlohmann::json;
  const FlatJson before = FlatJson::parse(dump_config(saved)).flatten();
  const FlatJson after = FlatJson::parse(dump_config(now)).flatten();
  std::vector<std::string> changes;
  const auto compare = [&](const std::string& pointer) {
    const auto text = [&](const FlatJson& json) {
      return json.contains(pointer) ? json_text(json[pointer]) : "(none)";
    };
    if (text(before) != text(after)) {
      changes.push_back(pointer + ": " + text(before) + " -> " + text(after));
    }
  };
  for (const auto& [pointer, value] : after.items()) compare(pointer);
  for (const auto& [pointer, value] : before.items()) {
    if (!after.contains(pointer)) compare(pointer);
  }
  return changes;
}

/// Adds what step `state.step` is due by the config of now, but was not by the saved one: a run
/// that was stopped at step 60 of 70 and goes on with train.steps = 60 ends with step 60's
/// validation.
void add_due_work(RunState& state, const Config& saved, const Config& now) {
  if (state.step == 0) return;
  const bool has_validation = !now.data.valid.empty();
  const DueWork before = due_work(saved.train, !saved.data.valid.empty(), state.step);
  const DueWork after = due_work(now.train, has_validation, state.step);
  state.validation_pending =
      has_validation && (state.validation_pending || (after.validation && !before.validation));
  state.line_pending =
      state.line_pending || state.validation_pending || (after.line && !before.line);
}

/// Throws CheckpointError for more tokens than the updates of `train` can have had.
void require_possible(const RunState& state, const TrainConfig& train, const std::string& folder) {
  const double most = static_cast<double>(state.updates()) * static_cast<double>(train.batch) *
                      static_cast<double>(train.context);
  if (static_cast<double>(state.tokens) <= most) return;
  throw CheckpointError(
      format("%s/state.json: has %lld tokens, but the %lld updates of its config.json have at most "
             "%.0f; take another checkpoint",
             folder.c_str(), static_cast<long long>(state.tokens),
             static_cast<long long>(state.updates()), most));
}

}  // namespace

void require_same_tokenizer(const Checkpoint& checkpoint, const Tokenizer& tokenizer) {
  const std::string& model = checkpoint.tokenizer_model;
  if (sha256_hex(model.data(), model.size()) != tokenizer.sha256()) {
    throw DataError(checkpoint.folder + ": was trained with another tokenizer than data.tokenizer");
  }
}

ResumePoint resume_point(const Checkpoint& checkpoint, const Config& now, const RunInputs& inputs) {
  ResumePoint point;
  point.state = run_state_from_json(checkpoint.state_json, checkpoint.folder + "/state.json",
                                    checkpoint.step);
  const Config saved =
      parse_saved_config(checkpoint.config_json, checkpoint.folder + "/config.json");
  const std::vector<std::string> frozen = frozen_differences(saved, now);
  if (!frozen.empty()) {
    throw ConfigError(checkpoint.folder + ": cannot be resumed with another config: " +
                      join(frozen) + "; restore these, or choose another train.out");
  }
  require_same_tokenizer(checkpoint, inputs.tokenizer);
  if (point.state.train_sha256 != inputs.train_sha256()) {
    throw DataError(checkpoint.folder +
                    ": was trained on other shards than data.train; the data order could not "
                    "continue");
  }
  require_possible(point.state, saved.train, checkpoint.folder);
  point.changes = changed_fields(saved, now);
  point.retention_before = {saved.train.keep_last, saved.train.keep_every,
                            saved.train.keep_best ? point.state.best_step : 0};
  add_due_work(point.state, saved, now);
  if (std::isnan(point.state.lr) && point.state.step > 0) {
    // Not stored by older versions.
    point.state.lr =
        learning_rate(saved.schedule, saved.optimizer.lr, point.state.step, saved.train.steps);
  }
  return point;
}

}  // namespace stablemask
