// Steps of several processes, which are threads here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <ostream>

#include "stablemask/base/error.h"
#include "tests/data/tiny_corpus.h"
#include "tests/dist/lone_group.h"
#include "tests/dist/threads.h"
#include "tests/train/processes.h"
#include "tests/train/steps.h"

namespace stablemask {
namespace {

using namespace testing_processes;
using namespace testing_steps;
using testing::run_processes;

/// A group that tells of its collectives on tensors, and fills with NaN what they leave
/// unspecified.
struct Watched final : dist::Group {
  explicit Watched(GroupPtr group) : inner(std::move(group)) {}
  int64_t rank() const override { return inner->rank(); }
  int64_t size() const override { return inner->size(); }
  void all_reduce(const at::Tensor& tensor, dist::Reduce op) override {
    tell("all_reduce", tensor);
    inner->all_reduce(tensor, op);
  }
  void reduce_scatter(const at::Tensor& flat, dist::Reduce op) override {
    tell("reduce_scatter", flat);
    inner->reduce_scatter(flat, op);
    const int64_t part = flat.numel() / size();
    const at::Tensor own = flat.narrow(0, rank() * part, part).clone();
    // Not NaN where this process has 0: padding is 0 in the sum, too.
    flat.copy_(at::where(flat == 0, 0.0, NAN));
    flat.narrow(0, rank() * part, part).copy_(own);
  }
  void all_gather(const at::Tensor& flat) override {
    tell("all_gather", flat);
    inner->all_gather(flat);
  }
  void broadcast(const at::Tensor& tensor, int64_t root) override {
    tell("broadcast", tensor);
    inner->broadcast(tensor, root);
  }
  at::Tensor read(const at::Tensor& tensor) override { return inner->read(tensor); }
  int64_t agree(int64_t decision) override { return inner->agree(decision); }
  std::vector<std::string> share(const std::string& text) override { return inner->share(text); }
  std::string once(const std::string& key, const std::function<std::string()>& make) override {
    return inner->once(key, make);
  }
  void fail(const std::string& reason) noexcept override { inner->fail(reason); }

  void tell(const char* call, const at::Tensor& tensor) const {
    EXPECT_TRUE(tensor.is_contiguous()) << call;
    if (on_call) on_call(call, tensor);
  }
  GroupPtr inner;
  std::function<void(const std::string& call, const at::Tensor& tensor)> on_call;
};

struct Trace {
  std::vector<double> losses, norms;
  Weights master, moments, averages, start;
};

/// Trains in each process and returns what process 0 has in the end; the results of the steps and
/// the weights of all processes must be equal.
Trace train(const Config& config, int64_t processes, int64_t steps = 20,
            at::ScalarType compute = at::kFloat) {
  std::vector<Trace> traces(processes);
  std::vector<Weights> weights(processes);
  run_processes(processes, [&](const GroupPtr& group) {
    TinyTraining run(config, at::kCPU, compute, std::make_shared<Watched>(group));
    Trace& trace = traces[group->rank()];
    trace.start = run.master();
    for (int64_t step = 1; step <= steps; ++step) {
      const StepProgram::Result result = run.step(batches_of(*group, step), 2e-3);
      EXPECT_TRUE(result.updated);
      EXPECT_EQ(result.valid_targets, kBatch * kContext - kBatch * (kBatch - 1));
      trace.losses.push_back(result.loss);
      trace.norms.push_back(result.grad_norm);
    }
    run.program.gather_weights();
    weights[group->rank()] = copy(run.flat->named_weights());
    trace.master = run.master();
    trace.moments = run.moments();
    trace.averages = run.averages();
  });
  for (int64_t rank = 1; rank < processes; ++rank) {
    EXPECT_EQ(traces[rank].losses, traces[0].losses);
    EXPECT_EQ(traces[rank].norms, traces[0].norms);
    EXPECT_TRUE(same_bits(weights[rank], weights[0])) << "process " << rank;
    EXPECT_TRUE(traces[rank].master.empty()) << "only process 0 collects";
  }
  return traces[0];
}

void expect_close(const Trace& found, const Trace& wanted, double tolerance) {
  ASSERT_EQ(found.losses.size(), wanted.losses.size());
  for (size_t i = 0; i < found.losses.size(); ++i) {
    EXPECT_NEAR(found.losses[i], wanted.losses[i], tolerance * wanted.losses[i]) << "step " << i;
    EXPECT_NEAR(found.norms[i], wanted.norms[i], 10 * tolerance * wanted.norms[i]) << "step " << i;
  }
  ASSERT_EQ(found.master.size(), wanted.master.size());
  EXPECT_LT(relative_distance(found.master, wanted.master, wanted.start), 100 * tolerance);
  ASSERT_EQ(found.averages.size(), wanted.averages.size());
  if (wanted.averages.empty()) return;
  EXPECT_LT(relative_distance(found.averages, wanted.averages, wanted.start), 100 * tolerance);
}

struct Case {
  const char* name;
  std::function<void(Config&)> change;
};

void PrintTo(const Case& tested, std::ostream* out) { *out << tested.name; }

class Processes : public ::testing::TestWithParam<Case> {};

TEST_P(Processes, TrainAsOneDoes) {
  Config config = base_config();
  GetParam().change(config);
  const Trace one = train(config, 1);
  EXPECT_LT(one.losses.back(), one.losses.front());
  for (const int64_t count : {2, 3}) expect_close(train(config, count), one, 1e-5);
  config.train.shard = ShardKind::kNone;
  expect_close(train(config, 2), one, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    All, Processes,
    ::testing::Values(
        Case{"LearnableMask", [](Config& config) { config.model.stable_mask.learnable = true; }},
        Case{"Alibi", [](Config& config) { config.model.position = Position::kAlibi; }},
        Case{"TiedHead", [](Config& config) { config.model.tied_head = true; }},
        Case{"GroupedQueries",
             [](Config& config) {
               config.model.kv_heads = 2;
               config.model.qk_norm = true;
             }},
        Case{"GeluAndLayerNorm",
             [](Config& config) {
               config.model.ffn = FfnKind::kGelu;
               config.model.norm = NormKind::kLayer;
             }},
        Case{"BiasesAndLearnedPositions",
             [](Config& config) {
               config.model.bias = BiasKind::kAll;
               config.model.position = Position::kLearned;
               config.model.learned_positions = kContext;
               config.model.parallel_residual = true;
             }},
        Case{"FrozenBlocks", [](Config& config) { config.train.freeze_layers = 2; }},
        Case{"Averaged", [](Config& config) { config.train.ema_decay = 0.9; }},
        Case{"FrozenTiedHead",
             [](Config& config) {
               config.train.freeze_layers = 1;
               config.model.tied_head = true;
             }},
        Case{"Checkpointing",
             [](Config& config) {
               config.train.activation_checkpointing = true;
               config.model.stable_mask.learnable = true;
             }},
        Case{"FrozenBlocksAndCheckpointing",
             [](Config& config) {
               config.train.activation_checkpointing = true;
               config.train.freeze_layers = 1;
             }},
        Case{"Muon", [](Config& config) { config.optimizer.kind = OptimizerKind::kMuon; }},
        Case{"MuonOfFrozenBlocksAndGroupedQueries",
             [](Config& config) {
               config.optimizer.kind = OptimizerKind::kMuon;
               config.train.freeze_layers = 1;
               config.model.kv_heads = 2;
             }},
        Case{"ReferenceOps", [](Config& config) { config.train.reference_ops = true; }}),
    [](const auto& info) { return info.param.name; });

/// Without clipping the order in which the norm is added up plays no role.
TEST(SeveralProcesses, ShardingChangesNoBit) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    Config config = base_config();
    config.optimizer.clip_norm = 0;
    config.train.ema_decay = 0.9;
    const Trace sharded = train(config, 3, 5, compute);
    config.train.shard = ShardKind::kNone;
    const Trace whole = train(config, 3, 5, compute);
    EXPECT_EQ(sharded.losses, whole.losses);
    EXPECT_TRUE(same_bits(sharded.master, whole.master));
    EXPECT_TRUE(same_bits(sharded.moments, whole.moments));
    EXPECT_TRUE(same_bits(sharded.averages, whole.averages));
    EXPECT_FALSE(same_bits(sharded.averages, sharded.master));
  }
}

TEST(SeveralProcesses, RoundedGradientsTrainAlike) {
  for (const ShardKind shard : {ShardKind::kNone, ShardKind::kOptimizer}) {
    Config config = base_config();
    config.train.shard = shard;
    const Trace exact = train(config, 2);
    config.train.reduce_dtype = ReduceDtype::kBf16;
    const Trace rounded = train(config, 2);
    for (size_t i = 0; i < exact.losses.size(); ++i) {
      EXPECT_NEAR(rounded.losses[i], exact.losses[i], 0.01 * exact.losses[i]) << "step " << i;
    }
    // 2^-9 each in the sum and in the summands.
    EXPECT_NEAR(rounded.norms[0], exact.norms[0], exact.norms[0] / 256);
    EXPECT_FALSE(same_bits(rounded.master, exact.master)) << "nothing was rounded";
  }
}

TEST(SeveralProcesses, Bf16StateTrainsAsOneProcessDoes) {
  Config config = base_config();
  const Trace fp32 = train(config, 1);
  config.optimizer.state = StateDtype::kBf16;
  const Trace one = train(config, 1);
  const double rounding = relative_distance(one.master, fp32.master, one.start);
  for (const ShardKind shard : {ShardKind::kNone, ShardKind::kOptimizer}) {
    config.train.shard = shard;
    const Trace two = train(config, 2);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(two.losses[i], one.losses[i], 1e-3 * one.losses[i]) << "step " << i;
    }
    // Equal random bits: only moments whose sums differ in the last bits are rounded otherwise.
    EXPECT_LT(relative_distance(two.master, one.master, one.start), 0.5 * rounding);
  }
}

TEST(SeveralProcesses, NonFiniteLossOfOneLeavesEveryBitOfAllAlone) {
  for (const ShardKind shard : {ShardKind::kNone, ShardKind::kOptimizer}) {
    Config config = base_config();
    config.train.shard = shard;
    run_processes(2, [&](const GroupPtr& group) {
      TinyTraining run(config, at::kCPU, at::kFloat, group);
      run.step(batches_of(*group, 1));
      run.program.gather_weights();
      run.poison();
      const Weights master = run.master(), moments = run.moments();
      std::vector<Batch> batches = batches_of(*group, 2);
      if (group->rank() == 1) batches[1] = poisoned(batches[1]);
      const StepProgram::Result bad = run.step(batches);
      EXPECT_FALSE(bad.updated);
      EXPECT_FALSE(std::isfinite(bad.loss));
      EXPECT_TRUE(run.program.unchanged_after_failure());
      EXPECT_TRUE(same_bits(run.master(), master));
      EXPECT_TRUE(same_bits(run.moments(), moments));
      EXPECT_TRUE(run.step(batches_of(*group, 3)).updated);
    });
  }
}

/// Every process computes with all averages, each of which one process has.
TEST(SeveralProcesses, UseTheAveragesOfAll) {
  for (const ShardKind shard : {ShardKind::kNone, ShardKind::kOptimizer}) {
    Config config = base_config();
    config.train.shard = shard;
    config.train.ema_decay = 0.9;
    std::vector<Weights> used(2), trained(2), averages(2);
    run_processes(2, [&](const GroupPtr& group) {
      TinyTraining run(config, at::kCPU, at::kFloat, std::make_shared<Watched>(group));
      for (int64_t step = 1; step <= 3; ++step) run.step(batches_of(*group, step));
      {
        const auto in_use = run.program.use_averages();
        used[group->rank()] = copy(run.flat->named_weights());
      }
      run.program.gather_weights();
      trained[group->rank()] = copy(run.flat->named_weights());
      averages[group->rank()] = run.averages();
      EXPECT_TRUE(run.step(batches_of(*group, 4)).updated);
    });
    EXPECT_TRUE(same_bits(used[0], averages[0]));
    EXPECT_TRUE(same_bits(used[1], averages[0]));
    EXPECT_TRUE(same_bits(trained[0], trained[1]));
    EXPECT_FALSE(same_bits(trained[0], used[0]));
  }
}

TEST(SeveralProcesses, OptimizerStateAndLowOrderBitsAreDivided) {
  run_processes(3, [&](const GroupPtr& group) {
    Config config = base_config();
    config.train.ema_decay = 0.9;
    TinyTraining run(config, at::kCPU, at::kBFloat16, group);
    EXPECT_EQ(3 * run.average->buffer().numel(), run.flat->size());
    EXPECT_EQ(3 * run.flat->remainder().numel(), run.flat->size());
    for (const auto& [name, buffer] : run.optimizer->buffers()) {
      EXPECT_EQ(3 * buffer.values.numel(), run.flat->size()) << name;
    }
  });
}

/// The name of the bucket that is the collective's tensor.
std::string bucket_name(const FlatParameters& flat, const at::Tensor& tensor) {
  for (const at::Tensor& all : {flat.weights(), flat.gradients()}) {
    if (tensor.storage().data() != all.storage().data()) continue;
    for (const Bucket& bucket : flat.layout().buckets()) {
      if (bucket.range.begin != tensor.storage_offset()) continue;
      EXPECT_EQ(bucket.range.size(), tensor.numel());
      if (bucket.kind == Bucket::Kind::kHead) return " head";
      if (bucket.kind == Bucket::Kind::kEmbedding) return " embedding";
      if (bucket.kind == Bucket::Kind::kVectors) return " vectors";
      return " " + std::to_string(bucket.block);
    }
  }
  return "";
}

TEST(SeveralProcesses, GradientsAreSummedWhileTheBackwardGoesOn) {
  run_processes(2, [&](const GroupPtr& inner) {
    const auto group = std::make_shared<Watched>(inner);
    TinyTraining run(base_config(), at::kCPU, at::kFloat, group);
    const FlatLayout& layout = run.flat->layout();
    std::vector<std::string> calls;
    group->on_call = [&](const std::string& call, const at::Tensor& tensor) {
      calls.push_back(call + bucket_name(*run.flat, tensor));
    };
    run.step({batches_of(*group, 1)[0]});
    EXPECT_EQ(calls.at(6), "reduce_scatter 0") << "the first step sums after the backward";
    calls.clear();

    // The first product of a step overwrites the gradients of the blocks.
    const auto block_is_done = [&](int64_t block) {
      const FlatRange range = layout.buckets()[1 + block].range;
      return !run.flat->gradients().narrow(0, range.begin, range.size()).isnan().any().item<bool>();
    };
    const at::Tensor overwritten = run.flat->gradients().narrow(0, 0, layout.overwritten_end());
    overwritten.copy_(at::full_like(overwritten, NAN));
    group->on_call = [&](const std::string& call, const at::Tensor& tensor) {
      const std::string bucket = bucket_name(*run.flat, tensor);
      if (call == "reduce_scatter" && bucket == " 2") {
        EXPECT_TRUE(block_is_done(2));
        EXPECT_FALSE(block_is_done(1)) << "the backward has finished before the first sum";
      }
      calls.push_back(call + bucket);
    };
    run.step({batches_of(*group, 2)[0]});
    EXPECT_EQ(calls,
              (std::vector<std::string>{
                  "all_reduce", "all_gather 0", "all_gather 1", "all_gather 2", "all_gather head",
                  "reduce_scatter head", "reduce_scatter 2", "reduce_scatter 1", "reduce_scatter 0",
                  "reduce_scatter embedding", "reduce_scatter vectors", "all_reduce",
                  "all_gather embedding", "all_gather vectors"}));
    calls.clear();
    run.program.gather_weights();
    EXPECT_EQ(calls.size(), layout.buckets().size());
    run.program.gather_weights();
    EXPECT_EQ(calls.size(), layout.buckets().size()) << "nothing was missing";
  });
}

/// A group that loses the other process while the result is read.
struct LosingGroup final : LoneGroup {
  at::Tensor read(const at::Tensor& tensor) override {
    if (loses) throw PeerLostError("process 1 ended");
    return tensor.clone();
  }
  bool loses = false;
};

TEST(SeveralProcesses, LostProcessLeavesItUnknownWhetherTheUpdateWasDone) {
  const auto group = std::make_shared<LosingGroup>();
  TinyTraining run(base_config(), at::kCPU, at::kFloat, group);
  run.step({batch(2, kContext, 1)});
  EXPECT_TRUE(run.program.unchanged_after_failure());
  group->loses = true;
  EXPECT_THROW(run.step({batch(2, kContext, 2)}), PeerLostError);
  EXPECT_FALSE(run.program.unchanged_after_failure());
}

}  // namespace
}  // namespace stablemask
