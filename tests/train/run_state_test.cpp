#include "src/train/run_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"

namespace stablemask {
namespace {

using nlohmann::json;

RunState state_of_step_7() {
  RunState state;
  state.step = 7;
  state.tokens = 700;
  state.skipped = 2;
  state.skipped_in_a_row = 1;
  state.validation_pending = true;
  state.line_pending = true;
  state.loss = 2.5;
  state.grad_norm = std::numeric_limits<double>::infinity();
  state.seconds = 1.5;
  state.train_sha256 = std::string(64, 'a');
  state.lr = 1e-3;
  state.loss_sum = 0.1 + 0.2;
  state.loss_tokens = 300;
  state.valid_tokens = 55;
  state.best_loss = 0.1 + 0.7;
  state.best_step = 5;
  state.stale_validations = 2;
  return state;
}

std::string refusal(const std::string& text, int64_t step = 7) {
  try {
    run_state_from_json(text, "state.json", step);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

/// The state with one field changed.
std::string with(const std::string& key, const json& value) {
  json changed = json::parse(to_json(state_of_step_7()));
  changed[key] = value;
  return changed.dump();
}

TEST(RunState, ReadsWhatItWrites) {
  const RunState state = run_state_from_json(to_json(state_of_step_7()), "state.json", 7);
  EXPECT_EQ(state.step, 7);
  EXPECT_EQ(state.tokens, 700);
  EXPECT_EQ(state.skipped, 2);
  EXPECT_EQ(state.skipped_in_a_row, 1);
  EXPECT_TRUE(state.validation_pending);
  EXPECT_TRUE(state.line_pending);
  EXPECT_EQ(state.loss, 2.5);
  EXPECT_TRUE(std::isnan(state.grad_norm)) << "JSON has no infinity";
  EXPECT_TRUE(std::isnan(state.valid_loss));
  EXPECT_EQ(state.seconds, 1.5);
  EXPECT_EQ(state.train_sha256, std::string(64, 'a'));
  EXPECT_EQ(state.lr, 1e-3);
  EXPECT_EQ(state.loss_sum, 0.1 + 0.2) << "to the last bit: a resumed run adds to it";
  EXPECT_EQ(state.loss_tokens, 300);
  EXPECT_EQ(state.valid_tokens, 55);
  EXPECT_EQ(state.best_loss, 0.1 + 0.7);
  EXPECT_EQ(state.best_step, 5);
  EXPECT_EQ(state.stale_validations, 2);
  EXPECT_EQ(state.updates(), 5);
}

TEST(RunState, MeanLossIsThatOfTheTokensElseOfTheStep) {
  RunState state;
  state.loss = 2.5;
  EXPECT_EQ(state.loss_mean(), 2.5);
  state.loss_sum = 30;
  state.loss_tokens = 10;
  EXPECT_EQ(state.loss_mean(), 3.0);
}

TEST(RunState, ComparesValidations) {
  RunState state;
  const auto compare = [&](int64_t step, double loss) {
    state.step = step;
    state.compare(loss);
  };
  compare(1, std::nan(""));
  EXPECT_EQ(state.best_step, 0) << "no loss to be better than";
  compare(2, 3.0);
  EXPECT_EQ(state.best_step, 2);
  EXPECT_EQ(state.stale_validations, 0);
  compare(3, 3.0);
  compare(4, std::nan(""));
  EXPECT_EQ(state.best_step, 2) << "an equal loss is not better";
  EXPECT_EQ(state.stale_validations, 2);
  EXPECT_FALSE(state.out_of_patience(0));
  EXPECT_FALSE(state.out_of_patience(3));
  EXPECT_TRUE(state.out_of_patience(2));
  compare(5, 2.5);
  EXPECT_EQ(state.best_step, 5);
  EXPECT_EQ(state.best_loss, 2.5);
  EXPECT_EQ(state.stale_validations, 0);
}

TEST(RunState, ReadsOlderVersions) {
  json old = json::parse(to_json(state_of_step_7()));
  old["version"] = 2;
  EXPECT_NE(refusal(old.dump()), "") << "best_step came with version 3";
  for (const char* name : {"valid_tokens", "best_loss", "best_step", "stale_validations"}) {
    old.erase(name);
  }
  EXPECT_EQ(run_state_from_json(old.dump(), "state.json", 7).best_step, 0);
  old["version"] = 1;
  EXPECT_NE(refusal(old.dump()), "") << "loss_sum came with version 2";
  old.erase("loss_sum");
  old.erase("loss_tokens");
  EXPECT_EQ(run_state_from_json(old.dump(), "state.json", 7).loss_mean(), 2.5);
  old.erase("version");
  EXPECT_NE(refusal(old.dump()), "") << "lr came with version 1";
  old.erase("lr");
  const RunState state = run_state_from_json(old.dump(), "state.json", 7);
  EXPECT_EQ(state.step, 7);
  EXPECT_TRUE(std::isnan(state.lr));
}

TEST(RunState, NewerVersionIsRefusedByName) {
  EXPECT_EQ(
      refusal(with("version", 7)),
      "state.json: has version 7; this program reads up to version 3: use a newer stablemask");
  EXPECT_NE(refusal(with("version", "1")), "");
  EXPECT_NE(refusal(with("version", -1)), "");
}

TEST(RunState, EveryFieldIsCheckedAndNamed) {
  const std::string prefix = "state.json: not the state of a training run: ";
  EXPECT_EQ(refusal("[]"), prefix + "not a JSON object");
  EXPECT_NE(refusal("{").find(prefix + "line 1: "), std::string::npos) << refusal("{");
  EXPECT_EQ(refusal("{}"), prefix + "step is missing");
  EXPECT_EQ(refusal(with("tokens", "many")), prefix + "tokens must be an integer");
  EXPECT_EQ(refusal(with("tokens", 1.5)), prefix + "tokens must be an integer");
  EXPECT_EQ(refusal(with("tokens", -1)), prefix + "tokens must be at least 0");
  EXPECT_EQ(refusal(with("tokens", UINT64_MAX)), prefix + "tokens must be less than 2^63");
  EXPECT_EQ(refusal(with("line_pending", 1)), prefix + "line_pending must be true or false");
  EXPECT_EQ(refusal(with("loss", "2")), prefix + "loss must be a number or null");
  EXPECT_EQ(refusal(with("train_sha256", 3)), prefix + "train_sha256 must be a string");
  EXPECT_EQ(refusal(with("momentum", 3)), prefix + "unknown field \"momentum\"");
  EXPECT_EQ(refusal(with("skipped", 8)), prefix + "more steps skipped than done");
  EXPECT_EQ(refusal(with("skipped_in_a_row", 3)),
            prefix + "more steps skipped in a row than in all");
  EXPECT_EQ(refusal(with("loss_tokens", 701)), prefix + "loss_tokens is more than tokens");
  EXPECT_EQ(refusal(with("loss_sum", nullptr)), prefix + "loss_sum must be a number");
  EXPECT_EQ(refusal(with("best_step", 8)), prefix + "best_step is after step");
  EXPECT_EQ(refusal(with("best_loss", nullptr)), prefix + "best_loss must be a number");
  EXPECT_EQ(refusal(with("lr", -1)), prefix + "lr must be at least 0");
  EXPECT_EQ(refusal(with("grad_norm", -1.5)), prefix + "grad_norm must be at least 0");
  EXPECT_EQ(refusal(with("valid_word_ppl", -2)), prefix + "valid_word_ppl must be at least 0");
  EXPECT_EQ(refusal(with("train_sha256", "abc")),
            prefix + "train_sha256 must be 64 hexadecimal digits");
  EXPECT_EQ(refusal(with("step", 7.0)), prefix + "step must be an integer");
  EXPECT_EQ(refusal(with("seconds", -1)), prefix + "seconds must be a number of at least 0");
  EXPECT_EQ(refusal(with("seconds", nullptr)), prefix + "seconds must be a number of at least 0");
  EXPECT_EQ(refusal(to_json(state_of_step_7()), 8), prefix + "step 7 in a checkpoint of step 8");
}

TEST(RunState, AllUpdatesSkippedHaveNoTokens) {
  RunState state = state_of_step_7();
  state.skipped = 7;
  EXPECT_NE(refusal(to_json(state)).find("tokens of no update"), std::string::npos);
  state.tokens = state.loss_tokens = 0;
  EXPECT_EQ(refusal(to_json(state)), "");
}

TEST(RunState, TextThatIsNoStrictJsonIsRefused) {
  const std::string good = to_json(state_of_step_7());
  const std::string twice = "{\"step\": 7," + good.substr(1);
  EXPECT_NE(refusal(twice).find("\"step\" twice"), std::string::npos) << refusal(twice);
  EXPECT_NE(refusal(good + "{}"), "");
  EXPECT_NE(refusal(with("loss", json::parse(std::string(40, '[') + std::string(40, ']')))), "");
  std::string huge = good;
  huge.replace(huge.find("2.5"), 3, "1e999");
  EXPECT_NE(refusal(huge), "") << "no double";
}

}  // namespace
}  // namespace stablemask
