// Whole runs with Muon.
#include <gtest/gtest.h>

#include "src/train/disk_need.h"
#include "stablemask/base/error.h"
#include "stablemask/nn/parameters.h"
#include "tests/train/tiny_run.h"

namespace stablemask::testing {
namespace {

class MuonRun : public TinyRunTest {
 protected:
  Config muon(const std::string& out) const {
    Config made = config(out);
    made.optimizer.kind = OptimizerKind::kMuon;
    return made;
  }
};

TEST_F(MuonRun, StoppedAndResumedEqualsOneThatWasNot) {
  const Config straight = muon("straight");
  Config stopped = muon("stopped");
  train(straight);
  const std::vector<double> losses = losses_of(straight.train.out);
  EXPECT_LT(losses.back(), losses.front() - 0.5);
  EXPECT_TRUE(train_with_stops(stopped, {1, 7}).finished);
  EXPECT_EQ(losses_of(stopped.train.out), losses);
  EXPECT_EQ(tensors_of(stopped.train.out), tensors_of(straight.train.out));
  // Another optimizer cannot go on from it, nor another momentum.
  stopped.train.steps = 14;
  Config other = stopped;
  other.optimizer.kind = OptimizerKind::kAdamW;
  EXPECT_THROW(train(other), ConfigError);
  stopped.optimizer.momentum = 0.9;
  EXPECT_THROW(train(stopped), ConfigError);
}

TEST_F(MuonRun, CheckpointHasTheSizeThatIsForeseen) {
  Config made = muon("size");
  made.train.steps = 2;
  train(made);
  const Tokenizer tokenizer = Tokenizer::load(corpus_->tokenizer);
  made.model.vocab_size = tokenizer.vocab_size();
  const double need = DiskNeed(made, tokenizer, 0).checkpoint_bytes();
  double found = 0;
  for (const auto& [name, bytes] : tensors_of(made.train.out)) {
    found += static_cast<double>(bytes.size());
  }
  EXPECT_EQ(need, found + static_cast<double>(tokenizer.bytes().size()));
  made.optimizer.kind = OptimizerKind::kAdamW;
  int64_t matrices = 0;
  for (const nn::Parameter& parameter : nn::parameters(made.model)) {
    if (parameter.role == nn::Role::kProjection) matrices += parameter.numel();
  }
  EXPECT_EQ(DiskNeed(made, tokenizer, 0).checkpoint_bytes() - need,
            4.0 * static_cast<double>(matrices));
}

TEST_F(MuonRun, DryRunCountsItsMemory) {
  Config adamw = config("dry"), with_muon = muon("dry");
  adamw.model.layers = with_muon.model.layers = 4;
  const auto bytes = [](const Config& of) {
    const std::string report = dry_run_report(of);
    const size_t at = report.find("  optimizer");
    return report.substr(at, report.find('\n', at) - at);
  };
  // fp32 momentum and the fp32 copy that is orthogonalised on a CPU: 8 bytes, as AdamW has.
  EXPECT_EQ(bytes(adamw), bytes(with_muon));
}

}  // namespace
}  // namespace stablemask::testing
