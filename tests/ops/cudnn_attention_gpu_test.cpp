#include "src/ops/cuda/cudnn_attention.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "stablemask/ops/attention.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "tests/ops/checks.h"
#include "tests/ops/gpu_errors.h"

namespace stablemask::ops {
namespace {

using at::Tensor;
using testing::evaluate;
using testing::Evaluation;
using testing::expect_as_accurate;
using testing::Tensors;
using testing_gpu::gpu;
using testing_gpu::random;

/// Relative tolerance in the 2-norm: a tenth of the error of rounding a tensor to bf16.
constexpr double kEps = 2e-4;

struct Shape {
  int64_t batch, length, heads, kv_heads, dim;
  int64_t packed_heads() const { return heads + 2 * kv_heads; }
  Tensor packed() const { return random({batch, length, packed_heads(), dim}, at::kBFloat16); }
  Tensor direction() const { return random({batch, length, heads, dim}, at::kBFloat16); }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(dim)); }
};

std::string describe(const Shape& s, const char* what) {
  return c10::str(what, ", B ", s.batch, " T ", s.length, " H ", s.heads, "/", s.kv_heads, " D ",
                  s.dim);
}

/// Scores [B,H,T,T] in packed's dtype.
Tensor scores(const Tensor& packed, const Shape& s, const Tensor& slopes) {
  const auto heads = [&](int64_t first, int64_t count) {
    return packed.narrow(2, first, count).transpose(1, 2).repeat_interleave(s.heads / count, 1);
  };
  const Tensor j = at::arange(s.length, gpu(at::kFloat)), i = j.unsqueeze(1);
  Tensor a = at::matmul(heads(0, s.heads), heads(s.heads, s.kv_heads).transpose(2, 3)) * s.scale();
  if (slopes.defined()) a = a + (slopes.view({-1, 1, 1}) * (j - i)).to(a.scalar_type());
  return a.masked_fill(j > i, -testing_gpu::kInfinity);
}

/// The scores with the logarithm of each row's pseudo mass [H,T] as an additional column.
Tensor all_scores(const Tensor& packed, const Shape& s, const Tensor& slopes, const Tensor& mass) {
  const Tensor a = scores(packed, s, slopes);
  if (!mass.defined()) return a;
  const Tensor column = mass.to(a.scalar_type()).unsqueeze(2);
  return at::cat({a, column.expand({s.batch, s.heads, s.length, 1})}, 3);
}

Tensor literal(const Tensor& packed, const Shape& s, const Tensor& slopes, const Tensor& mass) {
  const Tensor weights = at::softmax(all_scores(packed, s, slopes, mass), 3).narrow(3, 0, s.length);
  const Tensor v = packed.narrow(2, s.heads + s.kv_heads, s.kv_heads).transpose(1, 2);
  return at::matmul(weights, v.repeat_interleave(s.heads / s.kv_heads, 1)).transpose(1, 2);
}

/// Compares values and gradients; those of q, k and v separately.
void expect_as_accurate_as_eager(const testing::Function& fused, const testing::Function& plain,
                                 const Shape& s, const std::string& what) {
  const Tensor packed = s.packed(), dout = s.direction();
  const Evaluation mine = evaluate(fused, {packed}, dout, at::kBFloat16, at::kCUDA);
  const Evaluation eager = evaluate(plain, {packed}, dout, at::kBFloat16, at::kCUDA);
  const Evaluation truth = evaluate(plain, {packed}, dout, at::kDouble, at::kCUDA);
  expect_as_accurate(mine.value, eager.value, truth.value, kEps, what + ": out");
  const int64_t first[] = {0, s.heads, s.heads + s.kv_heads, s.packed_heads()};
  const char* names[] = {": dq", ": dk", ": dv"};
  for (int part = 0; part < 3; ++part) {
    const auto of = [&](const Evaluation& e) {
      return e.grads[0].narrow(2, first[part], first[part + 1] - first[part]);
    };
    expect_as_accurate(of(mine), of(eager), of(truth), kEps, what + names[part]);
  }
}

/// Random masses per row; about a tenth of the rows have none.
Tensor random_mass(const Shape& s) {
  const Tensor mass = at::randn({s.heads, s.length}, gpu(at::kFloat)) * 2 + 2;
  return mass.masked_fill(at::rand_like(mass) < 0.1, -testing_gpu::kInfinity);
}

AttentionOptions with_mass(const Shape& s, const Tensor& mass, MaskLength::Kind kind) {
  AttentionOptions options;
  const Tensor zeros = at::zeros({s.heads}, gpu(at::kFloat));
  options.pseudo = PseudoScores{zeros, zeros, {kind, s.length}};
  options.log_mass = mass;
  return options;
}

cuda::CudnnAttention call_of(const Shape& s, const AttentionOptions& options) {
  return {s.heads,   s.kv_heads,
          s.scale(), options.alibi_slopes,
          Tensor(),  at::globalContext().deterministicAlgorithms()};
}

/// The op under test.
Tensor attend(const Tensor& packed, const Shape& s, const AttentionOptions& options) {
  return packed_attention(packed, s.heads, s.kv_heads, options);
}

/// Wider heads use cuDNN only if it has a backward for them, else FlashAttention.
constexpr int64_t kServedByCudnn = 128;

void check_masks(const Shape& s, const Tensor& slopes) {
  const char* position = slopes.defined() ? "ALiBi" : "no bias";
  const auto check = [&](AttentionOptions options, const char* mask) {
    options.alibi_slopes = slopes;
    const std::string what = describe(s, position) + ", " + mask;
    const std::string obstacle =
        cuda::cudnn_attention_obstacle(call_of(s, options), s.packed(), true);
    if (s.dim <= kServedByCudnn) {
      ASSERT_EQ(obstacle, "") << what;
    }
    const auto fused = [&](const Tensors& in) { return attend(in[0], s, options); };
    const auto plain = [&](const Tensors& in) {
      return literal(in[0], s, slopes, options.log_mass);
    };
    expect_as_accurate_as_eager(fused, plain, s, what);
  };
  check({}, "causal");
  check(with_mass(s, random_mass(s), MaskLength::Kind::kFixed), "mass per row");
  const Tensor constant = at::randn({s.heads, 1}, gpu(at::kFloat)) * 2 + 2;
  check(with_mass(s, constant.expand({s.heads, s.length}), MaskLength::Kind::kInfinite),
        "mass per head");
}

class GpuCudnnAttention : public testing_gpu::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    const Shape s{1, 64, 2, 2, 64};
    const std::string obstacle = cuda::cudnn_attention_obstacle(call_of(s, {}), s.packed(), true);
    if (!obstacle.empty()) GTEST_SKIP() << obstacle;
  }
  void TearDown() override { at::globalContext().setDeterministicAlgorithms(false, false); }

  static void deterministic() { at::globalContext().setDeterministicAlgorithms(true, false); }
};

TEST_F(GpuCudnnAttention, MatchesTheFormula) {
  for (const int64_t length : {64, 127, 128, 512, 1024}) {
    const Shape s{2, length, 3, 3, 64};
    check_masks(s, Tensor());
    check_masks(s, alibi_slopes(s.heads).to(at::kCUDA));
  }
}

TEST_F(GpuCudnnAttention, MatchesTheFormulaForGroupedAndWideHeads) {
  for (const Shape s :
       {Shape{2, 127, 4, 2, 128}, Shape{1, 512, 6, 1, 128}, Shape{2, 96, 4, 2, 80},
        Shape{2, 127, 4, 2, 96}, Shape{1, 200, 4, 2, 192}, Shape{1, 256, 2, 1, 256}}) {
    check_masks(s, Tensor());
    check_masks(s, alibi_slopes(s.heads).to(at::kCUDA));
  }
}

TEST_F(GpuCudnnAttention, MatchesTheFormulaForArbitrarySlopes) {
  const Shape s{2, 200, 4, 4, 64};
  check_masks(s, at::rand({s.heads}, gpu(at::kFloat)) * 0.3);
}

TEST_F(GpuCudnnAttention, LseMatchesFp64) {
  for (const bool alibi : {false, true}) {
    for (const bool sink : {false, true}) {
      const Shape s{2, 321, 4, 2, 64};
      cuda::CudnnAttention call{s.heads, s.kv_heads, s.scale(), Tensor(), Tensor()};
      if (alibi) call.alibi_slopes = alibi_slopes(s.heads).to(at::kCUDA);
      if (sink) call.sink = at::randn({s.heads}, gpu(at::kFloat)) * 3;
      const Tensor packed = s.packed();
      Tensor out = testing_gpu::poisoned({s.batch, s.length, s.heads, s.dim}, at::kBFloat16);
      Tensor lse = testing_gpu::poisoned({s.batch, s.heads, s.length}, at::kFloat);
      cuda::cudnn_attention_forward(call, packed, out, lse);
      const Tensor mass = sink ? call.sink.unsqueeze(1).expand({s.heads, s.length}) : Tensor();
      const Tensor truth =
          at::logsumexp(all_scores(packed.to(at::kDouble), s, call.alibi_slopes, mass), 3);
      const double difference = (lse - truth).abs().max().item<double>();
      EXPECT_LE(difference, 1e-4) << "ALiBi " << alibi << ", sink " << sink;
    }
  }
}

/// With RoPE and actual pseudo masses, for head dims with and without cuDNN support.
TEST_F(GpuCudnnAttention, MatchesTheReferenceAfterRope) {
  using Kind = MaskLength::Kind;
  for (const Shape s :
       {Shape{2, 384, 4, 2, 64}, Shape{2, 130, 4, 4, 128}, Shape{1, 256, 2, 1, 256}}) {
    for (const Kind kind : {Kind::kFixed, Kind::kSequence, Kind::kInfinite}) {
      const int64_t dims = s.dim / 2, rotated = s.heads + s.kv_heads;
      const Tensor positions = at::arange(s.length, gpu(at::kLong));
      const Tensor table = rope_table(s.length, dims, 1e4).to(at::kCUDA);
      AttentionOptions options;
      options.pseudo = PseudoScores{alibi_slopes(s.heads).to(at::kCUDA),
                                    at::full({s.heads}, 0.5, gpu(at::kFloat)),
                                    {kind, s.length - 60}};
      const auto fused = [&](const Tensors& in) {
        return attend(rope(in[0], rotated, dims, positions, table), s, options);
      };
      const auto plain = [&](const Tensors& in) {
        const Tensor turned = reference::rope(in[0], rotated, dims, positions, table);
        const auto [q, k, v] = split_heads(turned, s.heads, s.kv_heads);
        return reference::attention(q, k, v, options, in[0].scalar_type());
      };
      expect_as_accurate_as_eager(fused, plain, s, describe(s, "rope"));
    }
  }
}

TEST_F(GpuCudnnAttention, MatchesTheReferenceAfterRopeLinear) {
  const Shape s{2, 160, 4, 2, 64};
  const int64_t channels = 256, rotated = s.heads + s.kv_heads;
  const RopeInputs inputs{s.dim, at::arange(s.length, gpu(at::kLong)),
                          rope_table(s.length, s.dim, 1e4).to(at::kCUDA)};
  const Tensors leaves = {random({s.batch, s.length, channels}, at::kBFloat16),
                          random({s.packed_heads() * s.dim, channels}, at::kBFloat16, 1.0 / 16)};
  const auto fused = [&](const Tensors& in) {
    return attend(rope_linear(in[0], in[1], s.packed_heads(), rotated, inputs), s, {});
  };
  const auto plain = [&](const Tensors& in) {
    const Tensor packed =
        at::matmul(in[0], in[1].t()).view({s.batch, s.length, s.packed_heads(), s.dim});
    const Tensor turned =
        reference::rope(packed, rotated, inputs.dims, inputs.positions, inputs.table);
    const auto [q, k, v] = split_heads(turned, s.heads, s.kv_heads);
    return reference::attention(q, k, v, {}, in[0].scalar_type());
  };
  const Tensor dout = s.direction();
  const Evaluation mine = evaluate(fused, leaves, dout, at::kBFloat16, at::kCUDA);
  const Evaluation eager = evaluate(plain, leaves, dout, at::kBFloat16, at::kCUDA);
  const Evaluation truth = evaluate(plain, leaves, dout, at::kDouble, at::kCUDA);
  expect_as_accurate(mine.value, eager.value, truth.value, kEps, "out");
  for (size_t i = 0; i < leaves.size(); ++i) {
    expect_as_accurate(mine.grads[i], eager.grads[i], truth.grads[i], kEps, "gradient");
  }
}

TEST_F(GpuCudnnAttention, ReplayOfACapturedGraphReadsCurrentInputs) {
  const Shape s{2, 256, 4, 2, 64};
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  cuda::CudnnAttention call{s.heads, s.kv_heads, s.scale(), alibi_slopes(s.heads).to(at::kCUDA),
                            Tensor()};
  const Tensor packed = s.packed(), dout = s.direction();
  Tensor out = at::empty_like(dout), dpacked = at::empty_like(packed);
  Tensor lse = at::empty({s.batch, s.heads, s.length}, gpu(at::kFloat));
  const auto run = [&] {
    cuda::cudnn_attention_forward(call, packed, out, lse);
    cuda::cudnn_attention_backward(call, dout, packed, out, lse, dpacked);
  };
  run();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  run();
  graph.capture_end();

  packed.copy_(s.packed());
  call.alibi_slopes.mul_(0.5);
  run();
  const Tensor direct_out = out.clone(), direct_dpacked = dpacked.clone();
  out.fill_(testing_gpu::kNan);
  dpacked.fill_(testing_gpu::kNan);
  graph.replay();
  EXPECT_TRUE(at::equal(out, direct_out));
  EXPECT_LE(testing::relative_error(dpacked, direct_dpacked), 1e-3);
}

TEST_F(GpuCudnnAttention, MatchesTheFormulaInDeterministicMode) {
  deterministic();
  const Shape grouped{2, 127, 4, 2, 64};
  check_masks(grouped, Tensor());
  const Shape biased{2, 1024, 3, 3, 64};
  check_masks(biased, alibi_slopes(biased.heads).to(at::kCUDA));
}

/// With many tiles of keys for each tile of queries, whose sums could be taken in any order.
TEST_F(GpuCudnnAttention, IsReproducibleInDeterministicMode) {
  deterministic();
  for (const Shape s : {Shape{4, 2048, 12, 12, 64}, Shape{2, 2048, 8, 2, 128}}) {
    for (const bool alibi : {false, true}) {
      AttentionOptions options = with_mass(s, random_mass(s), MaskLength::Kind::kFixed);
      if (alibi) options.alibi_slopes = alibi_slopes(s.heads).to(at::kCUDA);
      EXPECT_EQ(cuda::cudnn_attention_obstacle(call_of(s, options), s.packed(), true), "");
      const Tensor packed = s.packed(), dout = s.direction();
      const auto run = [&] {
        const auto fused = [&](const Tensors& in) { return attend(in[0], s, options); };
        return evaluate(fused, {packed}, dout, at::kBFloat16, at::kCUDA);
      };
      const Evaluation first = run();
      for (int again = 0; again < 5; ++again) {
        const Evaluation other = run();
        EXPECT_TRUE(at::equal(first.value, other.value)) << describe(s, "value");
        EXPECT_TRUE(at::equal(first.grads[0], other.grads[0])) << describe(s, "gradient");
      }
    }
  }
}

TEST_F(GpuCudnnAttention, DeterministicModeLeavesLongContextsToAnotherKernel) {
  const Shape s{1, 32768, 2, 2, 64};
  EXPECT_EQ(cuda::cudnn_attention_obstacle(call_of(s, {}), s.packed(), true), "");
  deterministic();
  const std::string obstacle = cuda::cudnn_attention_obstacle(call_of(s, {}), s.packed(), true);
  EXPECT_NE(obstacle.find("takes a workspace of "), std::string::npos) << obstacle;
  const auto fused = [&](const Tensors& in) { return attend(in[0], s, {}); };
  const Evaluation found = evaluate(fused, {s.packed()}, s.direction(), at::kBFloat16, at::kCUDA);
  EXPECT_TRUE(found.grads[0].isfinite().all().item<bool>());
}

}  // namespace
}  // namespace stablemask::ops
