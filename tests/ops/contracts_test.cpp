// What the ops refuse at their public edge, each with a message that names the argument.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "stablemask/ops/attention.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/optimizer.h"
#include "stablemask/ops/reference.h"
#include "stablemask/ops/stream.h"
#include "tests/ops/checks.h"

namespace stablemask::ops {
namespace {

using testing::normal;
using testing::refused;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

at::Tensor floats(at::IntArrayRef sizes) { return normal(sizes, 7, at::kFloat); }

/// Arguments of attention that are in order, H = 4, Hkv = 2, T = S = 3, D = 8.
struct Arguments {
  at::Tensor q = floats({2, 3, 4, 8}), k = floats({2, 3, 2, 8}), v = floats({2, 3, 2, 8});
  AttentionOptions options;

  Arguments() {
    options.pseudo = {at::ones({4}), at::zeros({4}), {MaskLength::Kind::kFixed, 3}};
    options.alibi_slopes = alibi_slopes(4);
  }
  PseudoScores& pseudo() { return *options.pseudo; }
};

/// The public functions that take the arguments of attention.
void refused_by_all(const std::string& piece, const std::function<void(Arguments&)>& change) {
  Arguments x;
  change(x);
  refused(piece, [&] { attention(x.q, x.k, x.v, x.options); });
  refused(piece, [&] { attention_with_lse(x.q, x.k, x.v, x.options); });
  refused(piece, [&] { reference::attention(x.q, x.k, x.v, x.options); });
}

/// Also by packed_attention, which gets no q, k and v.
void options_refused(const std::string& piece, const std::function<void(Arguments&)>& change) {
  refused_by_all(piece, change);
  Arguments x;
  change(x);
  refused(piece, [&] { packed_attention(floats({2, 3, 8, 8}), 4, 2, x.options); });
}

TEST(Contracts, AttentionTakesTheArgumentsThatTheOthersChange) {
  Arguments x;
  EXPECT_EQ(attention(x.q, x.k, x.v, x.options).sizes(), x.q.sizes());
  EXPECT_EQ(packed_attention(floats({2, 3, 8, 8}), 4, 2, x.options).sizes(), x.q.sizes());
}

TEST(Contracts, AttentionRefusesShapes) {
  refused_by_all("q [2, 3, 0, 8] and k [2, 3, 2, 8] must not have a dimension of size 0",
                 [](Arguments& x) { x.q = x.q.slice(2, 0, 0); });
  refused_by_all("k [2, 3, 0, 8] must not have a dimension of size 0", [](Arguments& x) {
    x.k = x.k.slice(2, 0, 0);
    x.v = x.v.slice(2, 0, 0);
  });
  for (const int64_t empty : {0, 1, 3}) {
    refused_by_all("must not have a dimension of size 0", [empty](Arguments& x) {
      for (at::Tensor* y : {&x.q, &x.k, &x.v}) *y = y->slice(empty, 0, 0);
    });
  }
  refused_by_all("[2, 3, 4, 8], [2, 3, 2, 8], [2, 2, 2, 8]",
                 [](Arguments& x) { x.v = x.v.slice(1, 0, 2); });
  refused_by_all("H must be a multiple of Hkv", [](Arguments& x) { x.q = x.q.slice(2, 0, 3); });
  refused_by_all("must agree in B and D", [](Arguments& x) { x.q = x.q.slice(3, 0, 4); });
  refused_by_all("q, k, v must be [B,T,H,D]", [](Arguments& x) { x.q = x.q[0]; });
  refused_by_all("the last dimension must be contiguous",
                 [](Arguments& x) { x.q = x.q.transpose(2, 3).contiguous().transpose(2, 3); });
  refused_by_all("k is undefined", [](Arguments& x) { x.k = at::Tensor(); });
}

TEST(Contracts, AttentionRefusesDtypesAndDevices) {
  for (const auto type : {at::kHalf, at::kInt}) {
    refused_by_all("q must be fp32, fp64 or bf16", [type](Arguments& x) {
      for (at::Tensor* y : {&x.q, &x.k, &x.v}) *y = y->to(type);
    });
  }
  refused_by_all("v must be CPUFloatType as q [2, 3, 4, 8], got CPUBFloat16Type [2, 3, 2, 8]",
                 [](Arguments& x) { x.v = x.v.to(at::kBFloat16); });
  refused_by_all("k [2, 3, 2, 8] is on meta, but q [2, 3, 4, 8] on cpu", [](Arguments& x) {
    x.k = at::empty(x.k.sizes(), x.k.options().device(at::kMeta));
  });
}

TEST(Contracts, AttentionRefusesWindowsAndOffsets) {
  options_refused("window must be at least 0, got -1", [](Arguments& x) { x.options.window = -1; });
  options_refused("query_offset and key_offset must be at least 0, got -1 and 0",
                  [](Arguments& x) { x.options.query_offset = -1; });
  options_refused("S must be query_offset + T - key_offset, got S = 3, query_offset = 1, T = 3",
                  [](Arguments& x) { x.options.query_offset = 1; });
  options_refused("leaves out keys", [](Arguments& x) {
    x.options.query_offset = x.options.key_offset = 2;
    x.options.window = 2;
  });
  for (const double scale : {kNan, kInfinity}) {
    options_refused("scale must be finite", [=](Arguments& x) { x.options.scale = scale; });
  }
  options_refused("alibi_slopes must be [H] = [4], got [3]",
                  [](Arguments& x) { x.options.alibi_slopes = alibi_slopes(3); });
  options_refused("alibi_slopes must be fp32, fp64 or bf16",
                  [](Arguments& x) { x.options.alibi_slopes = at::ones({4}, at::kLong); });
  options_refused("document_start must be int64 [B, T] = [2, 3]", [](Arguments& x) {
    x.options.document_start = at::zeros({2, 3});
  });
}

TEST(Contracts, AttentionRefusesPseudoScores) {
  // Without them the result would be plain causal attention.
  options_refused("the pseudo scores have no gamma or no p_base",
                  [](Arguments& x) { x.options.pseudo = PseudoScores(); });
  options_refused("a fixed mask length must be at least 1, got 0",
                  [](Arguments& x) { x.pseudo().length = MaskLength(); });
  options_refused("gamma and p_base must be [H] = [4], got [3]", [](Arguments& x) {
    x.pseudo().gamma = at::ones({3});
    x.pseudo().p_base = at::zeros({3});
  });
  options_refused("must both be [H] with H at least 1, got [4] and [2]",
                  [](Arguments& x) { x.pseudo().p_base = at::zeros({2}); });
  options_refused("gamma and p_base must be fp32 or fp64",
                  [](Arguments& x) { x.pseudo().gamma = at::ones({4}, at::kBFloat16); });
  options_refused("gamma [4] must not be negative, got -0.5",
                  [](Arguments& x) { x.pseudo().gamma[2] = -0.5; });
  // The pseudo slots would take all of the weight.
  options_refused("gamma 0 gives an infinite mask length", [](Arguments& x) {
    x.pseudo().gamma[3] = 0;
    x.pseudo().length = {MaskLength::Kind::kInfinite};
  });
  options_refused("log_mass needs pseudo", [](Arguments& x) {
    x.options.log_mass = at::zeros({4, 3});
    x.options.pseudo.reset();
  });
  options_refused("log_mass must be [H, T] = [4, 3] or [B, H, T], got [3, 4]", [](Arguments& x) {
    x.options.log_mass = at::zeros({3, 4});
  });
}

TEST(Contracts, PackedAttentionRefusesHeads) {
  const at::Tensor packed = floats({1, 3, 8, 4});
  for (const auto& [heads, kv_heads] : {std::pair{0, 4}, {8, 0}, {3, 2}, {-4, 2}}) {
    refused(
        "heads must be a multiple of kv_heads, both at least 1",
        [&, heads = heads, kv_heads = kv_heads] { packed_attention(packed, heads, kv_heads, {}); });
  }
  refused("packed must be [B, T, 6, D]", [&] { packed_attention(packed, 4, 1, {}); });
  refused("packed must be fp32", [&] { packed_attention(packed.to(at::kHalf), 4, 2, {}); });
  refused("without a dimension of size 0, got [0, 3, 8, 4]",
          [&] { packed_attention(packed.slice(0, 0, 0), 4, 2, {}); });
}

TEST(Contracts, PseudoMassRefusesWhatHasNoMeaning) {
  const at::Tensor positions = at::arange(3);
  const auto all = [&](const std::string& piece, const PseudoScores& pseudo) {
    refused(piece, [&] { log_pseudo_mass(pseudo, 3); });
    refused(piece, [&] { log_pseudo_mass(pseudo, positions, 3); });
    refused(piece, [&] { pseudo_mask(pseudo, 3); });
    AttentionOptions options;
    options.pseudo = pseudo;
    refused(piece, [&] { row_log_mass(options, 3); });
  };
  const at::Tensor one = at::ones({1});
  const MaskLength three{MaskLength::Kind::kFixed, 3};
  all("have no gamma or no p_base", {});
  all("must both be [H]", {at::ones({1, 1}), at::ones({1, 1}), three});
  all("must both be [H] with H at least 1", {at::ones({0}), at::ones({0}), three});
  all("must be fp32 or fp64", {one.to(at::kHalf), one, three});
  all("gamma [1] must not be negative, got -1", {-one, one, three});
  all("a fixed mask length must be at least 0, got -1", {one, one, {MaskLength::Kind::kFixed, -1}});
  // A strided vector is read where its elements are.
  const at::Tensor strided = at::tensor({1.0, -1.0, 2.0, -1.0}).slice(0, 0, 4, 2);
  EXPECT_EQ(log_pseudo_mass({strided, at::zeros({2}), three}, 3).size(0), 2);

  const PseudoScores good{one, one, three};
  refused("length and offset must be at least 0, got -1", [&] { log_pseudo_mass(good, -1); });
  refused("length and offset must be at least 0", [&] { log_pseudo_mass(good, 1, -1); });
  refused("positions [3] must be int64", [&] { log_pseudo_mass(good, positions.to(at::kInt), 3); });
  refused("length and columns must be at least 0", [&] { pseudo_mask(good, 3, -2); });
  refused("no pseudo scores", [&] { row_log_mass({}, 3); });
  AttentionOptions options;
  options.pseudo = good;
  options.document_start = at::zeros({2, 4}, at::kLong);
  refused("document_start must be int64 [B, 3]", [&] { row_log_mass(options, 3); });
  refused("heads must be positive, got 0", [&] { alibi_slopes(0); });
  refused("mask_ratio: lse must be fp32", [&] { mask_ratio(at::ones({2}, at::kLong), one); });
}

TEST(Contracts, NormsRefuseVectorsThatDoNotFit) {
  const at::Tensor x = floats({4, 6}), weight = floats({6});
  const auto all = [&](const std::string& piece, const at::Tensor& x, const at::Tensor& weight,
                       double eps = 1e-5) {
    refused(piece, [&] { ops::rms_norm(x, weight, eps); });
    refused(piece, [&] { rms_norm_branch(x, weight, eps); });
    refused(piece, [&] { add_rms_norm(x, x, weight, eps); });
    refused(piece, [&] { ops::layer_norm(x, weight, weight, eps); });
    refused(piece, [&] { reference::rms_norm(x, weight, eps); });
    refused(piece, [&] { reference::layer_norm(x, weight, weight, eps); });
  };
  // A vector [1] would be broadcast in silence by the plain formula.
  for (const auto& other : {floats({1}), floats({5}), floats({1, 6})}) {
    all("does not fit x [4, 6]", x, other);
    refused("does not fit x [4, 6]", [&] { ops::rms_norm(x, other, 1e-5, Kernels::kReference); });
    refused("does not fit x [4, 6]", [&] { ops::layer_norm(x, weight, other, 1e-5); });
  }
  all("x must be [..., C] with C at least 1, got [4, 0]", floats({4, 0}), floats({0}));
  all("x must be fp32, fp64 or bf16", x.to(at::kHalf), weight);
  all("a weight must be fp32, fp64 or bf16", x, weight.to(at::kInt));
  all("eps must be at least 0, got -1", x, weight, -1);
  all("eps must be at least 0, got nan", x, weight, kNan);
  refused("differ", [&] { add_rms_norm(floats({3, 6}), x, weight, 1e-5); });
  refused("one shape", [&] { reference::add_rms_norm(floats({3, 6}), x, weight, 1e-5); });
}

TEST(Contracts, ElementwiseOpsRefuseDtypesAndOddSizes) {
  for (const auto kernels : {Kernels::kFused, Kernels::kReference}) {
    refused("must be even and at least 2, got [4, 5]", [&] {
      ops::swiglu(floats({4, 5}), kernels);
    });
    refused("must be even and at least 2, got [4, 0]", [&] {
      ops::swiglu(floats({4, 0}), kernels);
    });
    refused("gate_up must be fp32", [&] { ops::swiglu(at::ones({4, 6}, at::kHalf), kernels); });
  }
  refused("must be even", [&] { reference::swiglu(floats({4, 5})); });
  refused("gelu: x must be fp32", [&] { ops::gelu(at::ones({4}, at::kLong)); });
}

TEST(Contracts, RopeRefusesPairsAndPositionsThatDoNotFit) {
  const at::Tensor packed = floats({2, 3, 4, 6}), table = rope_table(5, 6, 1e4);
  const at::Tensor positions = at::arange(3);
  const auto all = [&](const std::string& piece, int64_t heads, int64_t dims,
                       const at::Tensor& positions, const at::Tensor& table) {
    refused(piece, [&] { ops::rope(packed, heads, dims, positions, table); });
    refused(piece, [&] { reference::rope(packed, heads, dims, positions, table); });
    refused(piece, [&] {
      rope_linear(floats({2, 3, 5}), floats({24, 5}), 4, heads, {dims, positions, table});
    });
  };
  all("cannot rotate 6 dims of 5 heads in [2, 3, 4, 6]", 5, 6, positions, table);
  all("cannot rotate 6 dims of -1 heads", -1, 6, positions, table);
  all("cannot rotate 5 dims", 4, 5, positions, table);
  all("cannot rotate 0 dims", 4, 0, positions, table);
  all("cannot rotate -2 dims", 4, -2, positions, table);
  all("cannot rotate 8 dims", 4, 8, positions, table);
  all("table must be [length, 4], got [5, 6]", 4, 4, positions, table);
  all("table is undefined", 4, 6, positions, {});
  all("positions is undefined", 4, 6, {}, table);
  all("positions [3] must be int64", 4, 6, positions.to(at::kInt), table);
  all("positions must be [T] or [B,T] of packed [2, 3, 4, 6], got [4]", 4, 6, at::arange(4), table);
  all("got [3, 3]", 4, 6, positions.expand({3, 3}), table);
  refused("packed must be [B,T,heads,D]", [&] { ops::rope(packed[0], 4, 6, positions, table); });
  refused("packed must be fp32", [&] { ops::rope(packed.to(at::kHalf), 4, 6, positions, table); });

  refused("length and first must be at least 0", [] { rope_table(-1, 6, 1e4); });
  refused("length and first must be at least 0", [] { rope_table(4, 6, 1e4, 1.0, -1); });
  refused("dims must be even and at least 2, got 0", [] { rope_table(4, 0, 1e4); });
  for (const double bad : {0.0, -1.0, kNan, kInfinity}) {
    refused("theta and scaling must be positive", [=] { rope_table(4, 6, bad); });
    refused("theta and scaling must be positive", [=] { rope_table(4, 6, 1e4, bad); });
  }
  const at::Tensor frequencies = at::ones({3}, at::kDouble);
  refused("length must be at least 0", [&] { rope_table(-1, frequencies, 1.0); });
  refused("frequencies must be fp64 [dims/2]", [&] { rope_table(4, at::ones({3}), 1.0); });
  refused("magnitude must be positive", [&] { rope_table(4, frequencies, 0.0); });
  refused("need bias [C] and a shape [..., C]", [] { bias_rows(at::ones({3}), {2, 4}); });
  refused("heads and kv_heads must be at least 1, got 4 and 0", [&] { split_heads(packed, 4, 0); });
  refused("packed must be [B, T, 5, D]", [&] { split_heads(packed, 3, 1); });
}

TEST(Contracts, ProjectionsRefuseWeightsThatDoNotFit) {
  const at::Tensor x = floats({4, 6}), square = floats({6, 6});
  const auto all = [](const std::string& piece, const at::Tensor& x, const at::Tensor& weight) {
    refused(piece, [&] { ops::linear(x, weight); });
    refused(piece, [&] { ops::linear(x, weight, Kernels::kReference); });
    refused(piece, [&] { linear_add(x, weight, x); });
    refused(piece, [&] { rope_linear(x, weight, 1, 1, {2, at::arange(4), rope_table(4, 2, 1)}); });
    refused(piece, [&] { swiglu_feed_forward(x, weight, weight, x); });
    if (x.size(-1) > 0 && x.scalar_type() == at::kFloat) {
      const at::Tensor norm = floats({x.size(-1)});
      refused(piece, [&] { norm_linear(x, norm, 1e-5, weight); });
      refused(piece, [&] { norm_swiglu_feed_forward(x, norm, 1e-5, weight, weight); });
    }
  };
  all("x [4, 6] does not fit weight [5, 7]", x, floats({5, 7}));
  all("x [4, 6] does not fit weight [6]", x, floats({6}));
  all("weight [0, 6] has no elements", x, floats({0, 6}));
  all("weight [6, 0] has no elements", floats({4, 0}), floats({6, 0}));
  all("weight is undefined", x, {});
  all("x must be fp32, fp64 or bf16", x.to(at::kHalf), square.to(at::kHalf));
  all("weight must be CPUFloatType as x [4, 6], got CPUDoubleType [6, 6]", x,
      square.to(at::kDouble));
  refused("residual must be CPUFloatType", [&] {
    linear_add(x, square, floats({4, 6}).to(at::kDouble));
  });
  refused("got [4, 6], [6, 6] and [4, 5]", [&] { linear_add(x, square, floats({4, 5})); });
  refused("need x [..., C], up [2F, C]", [&] {
    swiglu_feed_forward(x, floats({10, 6}), square, x);
  });
  refused("down's weight must be CPUFloatType", [&] {
    swiglu_feed_forward(x, floats({12, 6}), square.to(at::kDouble), x);
  });
  refused("norm_linear: weight [5] does not fit x [4, 6]",
          [&] { norm_linear(x, floats({5}), 1e-5, square); });
  refused("norm_linear: eps must be at least 0",
          [&] { norm_linear(x, floats({6}), -1.0, square); });
  refused("norm_swiglu_feed_forward: need x [..., C], up [2F, C]", [&] {
    norm_swiglu_feed_forward(x, floats({6}), 1e-5, floats({10, 6}), square);
  });
  refused("does not fit weight [6, 6] of 4 heads", [&] {
    rope_linear(x.view({1, 4, 6}), square, 4, 1, {6, at::arange(4), rope_table(4, 6, 1e4)});
  });
}

TEST(Contracts, EmbeddingAndHeadRefuseIdsAndTargets) {
  const at::Tensor x = floats({4, 6}), weight = floats({9, 6}), ids = at::zeros({4}, at::kLong);
  refused("ids must be int64", [&] { ops::embedding(ids.to(at::kInt), weight); });
  refused("weight [V, C], V and C at least 1", [&] { ops::embedding(ids, floats({0, 6})); });
  refused("weight must be fp32", [&] { ops::embedding(ids, weight.to(at::kHalf)); });
  refused("ids is undefined", [&] { ops::embedding({}, weight); });
  const auto all = [](const std::string& piece, const at::Tensor& x, const at::Tensor& weight,
                      const at::Tensor& targets) {
    refused(piece, [&] { linear_cross_entropy(x, weight, targets, 1.0); });
    refused(piece, [&] { linear_nll(x, weight, targets); });
    refused(piece, [&] { linear_nll(x, weight, targets, Kernels::kReference); });
  };
  all("got [4, 6], [9, 5] and [4]", x, floats({9, 5}), ids);
  all("got [4, 6], [9, 6] and [3]", x, weight, at::zeros({3}, at::kLong));
  all("weight [0, 6] has no elements", x, floats({0, 6}), ids);
  all("targets [4] must be int64", x, weight, ids.to(at::kInt));
  all("x must be fp32", x.to(at::kHalf), weight.to(at::kHalf), ids);
  all("weight must be CPUFloatType", x, weight.to(at::kBFloat16), ids);
  for (const double bad : {-1.0, kNan, kInfinity}) {
    refused("z_loss must be at least 0", [&] { linear_cross_entropy(x, weight, ids, 1.0, bad); });
  }
  refused("scale must be fp64", [&] { linear_cross_entropy(x, weight, ids, at::ones({})); });
  refused("scale is undefined", [&] { linear_cross_entropy(x, weight, ids, at::Tensor()); });
  refused("target 9", [&] { linear_nll(x, weight, at::full({4}, 9, at::kLong)); });
  refused("need logits [rows, V]", [&] { reference::cross_entropy(x, ids.slice(0, 1)); });
  refused("vocab and element_bytes must be at least 1, got 0",
          [] { logit_chunk_rows(false, 0, 4); });
}

TEST(Contracts, ChunksOfLogitsAreShorterWhereTheHeadIsFrozen) {
  EXPECT_EQ(logit_chunk_rows(true, 50304, 2), 8192) << "at most 1 GiB";
  EXPECT_EQ(logit_chunk_rows(true, 50304, 2, /*frozen_head=*/true), 2048) << "256 MiB";
  EXPECT_EQ(logit_chunk_rows(false, 50304, 4, true), logit_chunk_rows(false, 50304, 4));
}

struct Buffers {
  at::Tensor weights = at::ones({8}), remainder, m = at::zeros({8}), v = at::zeros({8});
  at::Tensor grad = at::ones({8}), control = update_control(0.1, 1);
  AdamWArgs args{0.9, 0.95, 1e-8, 0.1};
};

TEST(Contracts, OptimizerRefusesBuffersAndSettings) {
  const auto all = [](const std::string& piece, const std::function<void(Buffers&)>& change) {
    Buffers b;
    change(b);
    refused(piece, [&] { adamw_(b.weights, b.remainder, b.m, b.v, b.grad, b.args, b.control); });
    refused(piece, [&] {
      reference::adamw_(b.weights, b.remainder, b.m, b.v, b.grad, b.args, b.control);
    });
  };
  all("every buffer must be contiguous with the size and device of the weights [8], got [7]",
      [](Buffers& b) { b.m = at::zeros({7}); });
  all("every buffer must be contiguous",
      [](Buffers& b) { b.v = at::zeros({16}).slice(0, 0, 16, 2); });
  all("m, v and grad must be fp32", [](Buffers& b) { b.grad = b.grad.to(at::kDouble); });
  all("m, v and grad must be fp32, or m and v both bf16",
      [](Buffers& b) { b.v = b.v.to(at::kBFloat16); });
  all("m and v both bf16", [](Buffers& b) { b.m = b.m.to(at::kBFloat16); });
  all("index must be at least 0, got -1", [](Buffers& b) { b.args.first = -1; });
  all("weights must be fp32, or bf16 with an int16 remainder",
      [](Buffers& b) { b.weights = b.weights.to(at::kBFloat16); });
  all("must be defined", [](Buffers& b) { b.v = at::Tensor(); });
  all("control must be fp64 [3]", [](Buffers& b) { b.control = at::zeros({3}); });
  for (const double beta : {-0.1, 1.0, 0.99999999, kNan}) {
    all("beta1 and beta2 from 0 to below 1", [=](Buffers& b) { b.args.beta1 = beta; });
    all("beta1 and beta2 from 0 to below 1", [=](Buffers& b) { b.args.beta2 = beta; });
  }
  for (const double eps : {0.0, -1e-8, 1e-46}) {
    all("eps above 0", [=](Buffers& b) { b.args.eps = eps; });
  }
  all("weight_decay of at least 0", [](Buffers& b) { b.args.weight_decay = -1; });

  refused("got -1 and 1", [] { update_control(-1, 1); });
  refused("lr of at least 0", [] { update_control(kNan, 1); });
  refused("step of at least 1", [] { update_control(0.1, 0); });
  at::Tensor control = update_control(0.1, 1), single = at::zeros({3});
  const at::Tensor one = at::ones({});
  refused("control must be fp64 [3]", [&] { set_grad_scale_(single, one, one, 1); });
  refused("loss [2] and norm [] must be 0-dim",
          [&] { set_grad_scale_(control, at::ones({2}), one, 1); });
  refused("limit must be at least 0, got -1", [&] { set_grad_scale_(control, one, one, -1); });
  refused("weights must be fp32", [] { split_weights(at::ones({2}, at::kDouble)); });
  const at::Tensor rounded = at::ones({2}, at::kBFloat16), rest = at::zeros({2}, at::kShort);
  refused("need bf16 and int16", [&] { join_weights({rest, rest}); });
  refused("rounded [2] and remainder [1] differ", [&] {
    join_weights({rounded, rest.slice(0, 1)});
  });
  for (const auto kernels : {Kernels::kFused, Kernels::kReference}) {
    refused("flat must be fp32", [&] { sum_of_squares(rounded, kernels); });
    refused("flat must be fp32 and contiguous",
            [&] { sum_of_squares(at::ones({8}).slice(0, 0, 8, 2), kernels); });
  }
  refused("at least 0, got -1 and 1", [] { leave_multiprocessors(-1, 1); });
}

/// The truth that kernels are compared with.
TEST(Contracts, TheReferenceOfTheOptimizerTakesFp64) {
  Buffers wide;
  for (at::Tensor* x : {&wide.weights, &wide.m, &wide.v, &wide.grad}) *x = x->to(at::kDouble);
  const auto update = [&](const auto& adamw) {
    adamw(wide.weights, wide.remainder, wide.m, wide.v, wide.grad, wide.args, wide.control);
  };
  update([](auto&... all) { reference::adamw_(all...); });
  EXPECT_NEAR(wide.weights[0].item<double>(), 1 * (1 - 0.1 * 0.1) - 0.1 / (1 + 1e-8), 1e-12);
  refused("weights must be fp32", [&] { update([](auto&... all) { adamw_(all...); }); });
  wide.m = wide.m.to(at::kFloat);
  refused("m, v and grad must be fp64",
          [&] { update([](auto&... all) { reference::adamw_(all...); }); });
}

}  // namespace
}  // namespace stablemask::ops
