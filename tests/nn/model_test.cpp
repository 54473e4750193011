#include "stablemask/nn/model.h"
#include "stablemask/nn/decoder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "stablemask/base/error.h"
#include "stablemask/ops/reference.h"
#include "tests/nn/models.h"

namespace stablemask {
namespace {

using testing_models::max_difference;
using testing_models::tiny_config;
using testing_models::tiny_model;
using testing_models::tokens;

at::Tensor activated(FfnKind ffn, const at::Tensor& hidden) {
  if (ffn == FfnKind::kGelu) {
    return 0.5 * hidden * (1 + at::erf(hidden / std::sqrt(2.0)));
  }
  if (ffn == FfnKind::kGeluTanh) {
    const double factor = std::sqrt(2 / std::acos(-1.0));
    return 0.5 * hidden * (1 + at::tanh(factor * (hidden + 0.044715 * hidden.pow(3))));
  }
  const auto halves = hidden.chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}

/// An independent implementation of the Transformer in plain ATen, on the model's weights.
at::Tensor plain_logits(nn::Transformer& model, const at::Tensor& ids) {
  const ModelConfig& config = model->config();
  const auto p = model->named_parameters();
  const int64_t batch = ids.size(0), length = ids.size(1), heads = config.heads;
  const int64_t kv_heads = config.resolved_kv_heads(), dim = config.resolved_head_dim();
  const auto rms = [&](const at::Tensor& x, const at::Tensor& weight) {
    return x * (x.square().mean(-1, true) + config.norm_eps).rsqrt() * weight;
  };
  const auto norm = [&](const at::Tensor& x, const std::string& name) {
    if (config.norm == NormKind::kRms) return rms(x, p[name + ".weight"]);
    const at::Tensor centred = x - x.mean(-1, true);
    const at::Tensor variance = centred.square().mean(-1, true);
    return centred / (variance + config.norm_eps).sqrt() * p[name + ".weight"] + p[name + ".bias"];
  };
  const auto rotate = [&](const at::Tensor& x) {
    if (config.position != Position::kRope) return x;
    const int64_t half = config.resolved_rope_dims() / 2;
    const auto [rate, magnitude] = nn::rope_frequencies(config);
    const at::Tensor angle = at::outer(at::arange(length, at::kDouble), rate).to(at::kFloat);
    const at::Tensor cos = magnitude * angle.cos().unsqueeze(1);
    const at::Tensor sin = magnitude * angle.sin().unsqueeze(1);
    const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
    return at::cat({a * cos - b * sin, a * sin + b * cos, x.slice(-1, 2 * half)}, -1);
  };
  const auto linear = [&](const at::Tensor& x, const std::string& name) {
    const at::Tensor product = at::matmul(x, p[name].t());
    return p.contains(name + "_bias") ? product + p[name + "_bias"] : product;
  };
  at::Tensor x = p["embedding"].index_select(0, ids.flatten()).view({batch, length, -1});
  if (config.position == Position::kLearned) x = x + p["position_embedding"].narrow(0, 0, length);
  for (int64_t l = 0; l < config.layers; ++l) {
    const std::string prefix = "blocks." + std::to_string(l) + ".";
    const at::Tensor packed = linear(norm(x, prefix + "attention_norm"), prefix + "attention.qkv")
                                  .view({batch, length, heads + 2 * kv_heads, dim});
    at::Tensor q = packed.narrow(2, 0, heads), k = packed.narrow(2, heads, kv_heads);
    if (config.qk_norm) {
      q = rms(q, p[prefix + "attention.q_norm"]);
      k = rms(k, p[prefix + "attention.k_norm"]);
    }
    ops::AttentionOptions options;
    if (config.stable_mask.enabled) {
      const auto mask = model->named_modules()[prefix + "attention.stable_mask"];
      options.pseudo = mask->as<nn::StableMaskImpl>()->scores();
    }
    if (config.position == Position::kAlibi) options.alibi_slopes = ops::alibi_slopes(heads);
    options.window = config.window;
    const at::Tensor out = ops::reference::attention(
        rotate(q), rotate(k), packed.narrow(2, heads + kv_heads, kv_heads), options);
    const at::Tensor sum = x + linear(out.reshape({batch, length, -1}), prefix + "attention.proj");
    const at::Tensor& ffn_input = config.parallel_residual ? x : sum;
    const at::Tensor up = linear(norm(ffn_input, prefix + "ffn_norm"), prefix + "ffn.up");
    x = sum + linear(activated(config.ffn, up), prefix + "ffn.down");
  }
  return at::matmul(norm(x, "norm"), model->head_weight().t());
}

using Case = testing_models::Family;

class EveryModel : public testing::TestWithParam<std::tuple<Position, bool, Case>> {
 protected:
  ModelConfig config() const {
    const auto& [position, stable_mask, change] = GetParam();
    ModelConfig config = tiny_config(position, stable_mask);
    change.change(config);
    return config;
  }
};

TEST_P(EveryModel, LogitsMatchAnIndependentImplementation) {
  nn::Transformer model = tiny_model(config());
  const at::Tensor ids = tokens(2, 23);
  at::NoGradGuard no_grad;
  const at::Tensor expected = plain_logits(model, ids);
  EXPECT_LT(max_difference(model->logits(ids), expected),
            2e-5 * expected.abs().max().item<double>());
}

TEST_P(EveryModel, LossAndGradientsMatchAnIndependentImplementation) {
  nn::Transformer model = tiny_model(config());
  const at::Tensor ids = tokens(2, 23), targets = tokens(2, 23).roll(5);
  targets.select(0, 1).narrow(0, 3, 4).fill_(-100);
  const double scale = 1.0 / 42;

  model->loss(ids, targets, scale).backward();
  std::map<std::string, at::Tensor> fused;
  for (auto& item : model->named_parameters()) {
    fused[item.key()] = item.value().grad().clone();
    item.value().mutable_grad() = at::Tensor();
  }
  const at::Tensor logits = plain_logits(model, ids).view({-1, 50});
  const at::Tensor nll = at::cross_entropy_loss(logits, targets.flatten(), {}, at::Reduction::Sum);
  (nll * scale).backward();
  for (auto& item : model->named_parameters()) {
    const at::Tensor expected = item.value().grad();
    EXPECT_LT(max_difference(fused.at(item.key()), expected),
              1e-4 * (expected.abs().max().item<double>() + 1e-3))
        << item.key();
  }
}

at::Tensor numbers(const std::vector<int64_t>& values) { return at::tensor(values, at::kLong); }

void expect_logits(const at::Tensor& found, const at::Tensor& full) {
  EXPECT_LT(max_difference(found, full), 2e-5 * full.abs().max().item<double>());
}

/// Two sequences at different positions, one of them with a prompt in two chunks.
TEST_P(EveryModel, DecodingEqualsTheFullForwardBeyondTheMaskLength) {
  nn::Transformer model = tiny_model(config());
  const at::Tensor ids = tokens(2, 21);
  at::NoGradGuard no_grad;
  const at::Tensor full = model->logits(ids);
  nn::Decoder decoder(model, 3, 21);
  decoder.prefill(2, 0, ids[0].narrow(0, 0, 5));
  decoder.prefill(2, 5, ids[0].narrow(0, 5, 3));
  for (int64_t i = 0; i < 21; ++i) {
    const int64_t first = 8 + i < 21 ? 8 + i : -1;
    const at::Tensor next = at::stack({ids[0][std::max<int64_t>(first, 0)], ids[1][i]});
    const at::Tensor logits = decoder.decode(next, numbers({first, i}), numbers({2, 0}));
    if (first >= 0) expect_logits(logits[0], full[0][first]);
    expect_logits(logits[1], full[1][i]);
  }
}

/// Three sequences of unequal lengths that begin in one pass, with other ids after the shorter
/// ones.
TEST_P(EveryModel, SequencesThatBeginTogetherEqualTheirFullForwards) {
  for (const int64_t window : {0, 9}) {
    ModelConfig windowed = config();
    windowed.window = window;
    nn::Transformer model = tiny_model(windowed);
    const at::Tensor ids = tokens(3, 21);
    const std::vector<int64_t> lengths = {8, 3, 6};
    at::NoGradGuard no_grad;
    const at::Tensor full = model->logits(ids);
    nn::Decoder decoder(model, 5, 21);
    const at::Tensor rows = numbers({4, 0, 2});
    at::Tensor prompts = ids.narrow(1, 0, 8).clone();
    prompts[1].narrow(0, 3, 5).fill_(1);
    prompts[2].narrow(0, 6, 2).fill_(2);
    decoder.begin(rows, prompts);
    for (int64_t i = 0; i < 13; ++i) {
      const at::Tensor positions = numbers(lengths) + i;
      const at::Tensor next = ids.gather(1, positions.unsqueeze(1)).squeeze(1);
      const at::Tensor logits = decoder.decode(next, positions, rows);
      for (int64_t b = 0; b < 3; ++b) expect_logits(logits[b], full[b][lengths[b] + i]);
    }
    EXPECT_THROW(nn::Decoder(model, 5, 7).begin(rows, prompts), c10::Error);
  }
}

/// With a window the cache keeps a bounded number of keys, and each token's logits are those of the
/// full forward with that window, far beyond window and mask length. Chunks are shorter and longer
/// than the ring and padded.
TEST_P(EveryModel, WindowedCacheIsBoundedAndEqualsTheFullForward) {
  ModelConfig windowed = config();
  windowed.window = 7;
  nn::Transformer model = tiny_model(windowed);
  constexpr int64_t kLength = 120;
  const at::Tensor ids = tokens(1, kLength);
  at::NoGradGuard no_grad;
  const at::Tensor full = model->logits(ids)[0];
  if (windowed.position != Position::kLearned) {
    nn::KvCache far(windowed, 1, 1'000'000'000, at::kFloat);  // too large to be allocated in full
    EXPECT_EQ(far.slots(), 8);
  }
  nn::Decoder decoder(model, 2, kLength);
  nn::KvCache cache(windowed, 2, kLength, at::kFloat);
  int64_t done = 0;
  for (const int64_t count : {3, 20, 5, 1, 7, 8}) {
    nn::ForwardArgs args;
    args.cached = {&cache, 1, done, count};
    const at::Tensor chunk = at::constant_pad_nd(ids.narrow(1, done, count), {0, count % 3});
    expect_logits(model->logits(chunk, args)[0].narrow(0, 0, count), full.narrow(0, done, count));
    decoder.prefill(1, done, ids[0].narrow(0, done, count));
    done += count;
  }
  for (; done < kLength; ++done) {
    const at::Tensor logits =
        decoder.decode(ids[0].narrow(0, done, 1), numbers({done}), numbers({1}));
    expect_logits(logits[0], full[done]);
  }
}

TEST_P(EveryModel, PackedDocumentsEqualSeparateForwards) {
  nn::Transformer model = tiny_model(config());
  at::NoGradGuard no_grad;
  const at::Tensor ids = tokens(1, 20);
  nn::ForwardArgs args;
  args.document_start = at::zeros({1, 20}, at::kLong);
  args.document_start.narrow(1, 7, 13).fill_(7);
  const at::Tensor packed = model->logits(ids, args);
  const at::Tensor apart =
      at::cat({model->logits(ids.narrow(1, 0, 7)), model->logits(ids.narrow(1, 7, 13))}, 1);
  EXPECT_LT(max_difference(packed, apart), 2e-5 * apart.abs().max().item<double>());
}

TEST_P(EveryModel, DeclaredParametersEqualRegisteredOnes) {
  for (const bool learnable : {false, true}) {
    ModelConfig declared_config = config();
    declared_config.stable_mask.learnable = learnable;
    const auto registered = tiny_model(declared_config)->named_parameters();
    const std::vector<nn::Parameter> declared = nn::parameters(declared_config);
    ASSERT_EQ(declared.size(), registered.size());
    int64_t count = 0;
    for (size_t i = 0; i < declared.size(); ++i) {
      EXPECT_EQ(declared[i].name, registered[i].key());
      EXPECT_EQ(at::IntArrayRef(declared[i].shape), registered[i].value().sizes());
      count += registered[i].value().numel();
      int64_t rows = 0;
      for (const nn::ExternalTensor& tensor : declared[i].external) rows += tensor.rows;
      if (!declared[i].external.empty()) {
        EXPECT_EQ(rows, declared[i].shape[0]) << declared[i].name;
      }
    }
    EXPECT_EQ(nn::parameter_count(declared_config), count);
  }
}

/// Starting from buffers of NaN must give the same gradients as starting from zeros.
TEST_P(EveryModel, StepOverwritesStaleGradients) {
  nn::Transformer plain = tiny_model(config()), step = tiny_model(config());
  for (const nn::Parameter& declared : nn::parameters(config())) {
    plain->named_parameters()[declared.name].mutable_grad() = at::zeros(declared.shape);
    step->named_parameters()[declared.name].mutable_grad() =
        at::full(declared.shape, declared.multiplies ? NAN : 0.0F, at::kFloat);
  }
  nn::LossOptions step_options;
  step_options.backward_follows = true;
  step->begin_gradients();
  for (const int64_t shift : {1, 2}) {
    const at::Tensor ids = tokens(2, 9), targets = tokens(2, 9).roll(shift);
    plain->loss(ids, targets, 0.5).backward();
    step->loss(ids, targets, at::full({}, 0.5, at::kDouble), step_options).backward();
  }
  step->finish_gradients();
  for (const auto& item : plain->named_parameters()) {
    const at::Tensor want = item.value().grad(), got = step->named_parameters()[item.key()].grad();
    EXPECT_LT(max_difference(got, want), 1e-5 * want.abs().max().item<double>()) << item.key();
  }
}

constexpr Case kCases[] = {
    {"Plain", [](ModelConfig&) {}},
    {"GroupedHeads", [](ModelConfig& c) { c.kv_heads = 2; }},
    {"QkNormPartialRope", [](ModelConfig& c) { c.qk_norm = true, c.rope_dims = 4; }},
    {"TiedWideHeads", [](ModelConfig& c) { c.tied_head = true, c.head_dim = 12; }},
    {"Window", [](ModelConfig& c) { c.window = 6; }},
    {"GeluLayerNorm", [](ModelConfig& c) { c.ffn = FfnKind::kGelu, c.norm = NormKind::kLayer; }},
};

std::string case_name(const testing::TestParamInfo<EveryModel::ParamType>& info) {
  const char* positions[] = {"Rope", "Alibi", "None"};
  return std::string(positions[static_cast<int>(std::get<0>(info.param))]) +
         (std::get<1>(info.param) ? "StableMask" : "Causal") + std::get<2>(info.param).name;
}

INSTANTIATE_TEST_SUITE_P(Model, EveryModel,
                         testing::Combine(testing::Values(Position::kRope, Position::kAlibi,
                                                          Position::kNone),
                                          testing::Bool(), testing::ValuesIn(kCases)),
                         case_name);

INSTANTIATE_TEST_SUITE_P(Families, EveryModel,
                         testing::Combine(testing::Values(Position::kRope), testing::Bool(),
                                          testing::ValuesIn(testing_models::kFamilies)),
                         [](const auto& info) {
                           return std::string(std::get<2>(info.param).name) +
                                  (std::get<1>(info.param) ? "StableMask" : "Causal");
                         });

TEST(Model, LearnableMaskGradientsEqualCentralDifferences) {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.stable_mask.learnable = true;
  nn::Transformer model = tiny_model(config);
  const at::Tensor ids = tokens(1, 12), targets = tokens(1, 12).roll(3);
  model->loss(ids, targets, 1.0).backward();
  for (const char* name : {"gamma_raw", "p_base"}) {
    at::Tensor parameter =
        model->named_parameters()["blocks.1.attention.stable_mask." + std::string(name)];
    at::NoGradGuard no_grad;
    for (int64_t head = 0; head < 4; ++head) {
      at::Tensor entry = parameter.select(0, head);
      const double original = entry.item<double>(), step = 1e-2;
      entry.fill_(original + step);
      const double above = model->loss(ids, targets, 1.0).item<double>();
      entry.fill_(original - step);
      const double below = model->loss(ids, targets, 1.0).item<double>();
      entry.fill_(original);
      EXPECT_NEAR(parameter.grad()[head].item<double>(), (above - below) / (2 * step), 2e-3)
          << name << "[" << head << "]";
    }
  }
}

TEST(Model, InitialisationDependsOnSeedAndNameOnly) {
  const ModelConfig small = tiny_config(Position::kRope, true);
  ModelConfig deep = small;
  deep.layers = 5;
  const auto a = tiny_model(small, 3)->named_parameters();
  const auto b = tiny_model(deep, 3)->named_parameters();
  EXPECT_TRUE(a["blocks.1.attention.qkv"].equal(b["blocks.1.attention.qkv"]));
  EXPECT_TRUE(a["head"].equal(b["head"]));
  EXPECT_FALSE(a["head"].equal(tiny_model(small, 4)->named_parameters()["head"]));
  EXPECT_FALSE(a["blocks.0.attention.qkv"].equal(a["blocks.1.attention.qkv"]));
}

TEST(Model, ResidualProjectionsAreInitialisedSmallerByDepth) {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.layers = 8;
  config.channels = 128;
  config.init_std = 0.02;
  const auto parameters = tiny_model(config)->named_parameters();
  EXPECT_NEAR(parameters["blocks.0.attention.qkv"].std().item<double>(), 0.02, 3e-4);
  EXPECT_NEAR(parameters["blocks.7.attention.proj"].std().item<double>(), 0.02 / 4, 1e-4);
  EXPECT_NEAR(parameters["blocks.7.ffn.down"].std().item<double>(), 0.02 / 4, 1e-4);
}

TEST(Model, ParameterCountsMatchThePaper) {
  const auto count = [](int64_t layers, int64_t channels, int64_t heads, int64_t ffn) {
    ModelConfig config;
    config.vocab_size = 50257;
    config.layers = layers;
    config.channels = channels;
    config.heads = heads;
    config.ffn_hidden = ffn;
    return nn::parameter_count(config);
  };
  EXPECT_EQ(count(6, 512, 8, 1536), 71'917'056);
  EXPECT_EQ(count(12, 768, 12, 2048), 162'148'608);
  EXPECT_EQ(count(24, 1024, 16, 2816), 411'257'856);
  EXPECT_EQ(count(24, 2048, 16, 5632), 1'439'078'400);
}

TEST(Model, CacheWithASequenceMaskThrows) {
  ModelConfig config = tiny_config(Position::kRope, true);
  config.stable_mask.mask_length = {MaskLengthSpec::Kind::kSequence, 0};
  nn::Transformer model = tiny_model(config);
  EXPECT_NO_THROW(model->logits(tokens(1, 8)));
  EXPECT_THROW(nn::KvCache(config, 1, 8, at::kFloat), ConfigError);
}

/// Scaling the scores by log_1024(T) equals scaling the queries.
TEST(Model, LogLengthScaleScalesTheScores) {
  ModelConfig config = tiny_config(Position::kNone, true);
  config.layers = 1;
  nn::Transformer plain = tiny_model(config);
  config.log_length_scale = true;
  nn::Transformer scaled = tiny_model(config);
  at::NoGradGuard no_grad;
  for (const int64_t length : {1, 2, 17}) {
    const double factor = std::log(static_cast<double>(length)) / std::log(1024.0);
    at::Tensor queries = plain->named_parameters()["blocks.0.attention.qkv"].narrow(0, 0, 32);
    const at::Tensor before = queries.clone();
    queries.mul_(factor);
    EXPECT_LT(max_difference(scaled->logits(tokens(1, length)), plain->logits(tokens(1, length))),
              1e-5)
        << length;
    queries.copy_(before);
  }
  EXPECT_THROW(nn::KvCache(config, 1, 8, at::kFloat), ConfigError);
}

/// Dividing the positions by k: every k-th position has the rotation of the unscaled model.
TEST(RopeTables, ScalingInterpolatesPositions) {
  ModelConfig config = tiny_config(Position::kRope, true);
  const at::Tensor plain = nn::RopeTables(config).from_start(16, at::kCPU);
  config.rope_scaling.factor = 4;
  const at::Tensor scaled = nn::RopeTables(config).from_start(64, at::kCPU);
  EXPECT_TRUE(at::equal(scaled.slice(0, 0, 64, 4), plain.slice(0, 0, 16)));
}

TEST(Model, CacheBeyondItsCapacityThrows) {
  nn::Decoder decoder(tiny_model(tiny_config(Position::kRope, true)), 2, 4);
  EXPECT_THROW(decoder.prefill(0, 0, tokens(1, 5)[0]), c10::Error);
  EXPECT_THROW(decoder.prefill(0, 2, tokens(1, 3)[0]), c10::Error);
  EXPECT_THROW(decoder.prefill(2, 0, tokens(1, 3)[0]), c10::Error);
  EXPECT_NO_THROW(decoder.prefill(1, 1, tokens(1, 3)[0]));
}

TEST(Model, ForwardWithoutWeightsThrows) {
  nn::Transformer model(tiny_config(Position::kRope, true));
  EXPECT_THROW(model->logits(tokens(1, 4)), c10::Error);
  model->init_weights(1);
  EXPECT_NO_THROW(model->logits(tokens(1, 4)));
}

TEST(Model, StandaloneModulesInitialiseTheirParameters) {
  const ModelConfig config = tiny_config(Position::kNone, true);
  const at::Tensor x = at::ones({1, 5, 32});
  nn::Attention attention(config, 0);
  nn::FeedForward ffn(config, /*layer=*/0);
  nn::Block block(config, 0);
  for (const at::Tensor& out : {attention->forward(x, x, {}), ffn->forward(x, x),
                                nn::Norm(config)->forward(x), block->forward(x, {})}) {
    EXPECT_TRUE(out.isfinite().all().item<bool>());
    EXPECT_LT(out.abs().max().item<double>(), 100);
  }
  EXPECT_NEAR(attention->named_parameters()["qkv"].std().item<double>(), config.init_std, 0.02);
  EXPECT_TRUE(attention->forward(x, x, {}).equal(nn::Attention(config, 0)->forward(x, x, {})));
}

TEST(Model, InconsistentWidthsThrow) {
  const auto refused = [](void (*change)(ModelConfig&)) {
    ModelConfig config = tiny_config(Position::kRope, true);
    change(config);
    EXPECT_THROW(nn::Attention(config, 0), ConfigError);
    EXPECT_THROW(nn::Transformer{config}, ConfigError);
  };
  refused([](ModelConfig& c) { c.heads = 7; });
  refused([](ModelConfig& c) { c.kv_heads = 3; });
  refused([](ModelConfig& c) { c.rope_dims = 3; });
  refused([](ModelConfig& c) { c.rope_dims = 10; });
  refused([](ModelConfig& c) { c.heads = 0; });
}

TEST(Model, RightPaddingLeavesEarlierRowsUnchanged) {
  nn::Transformer model = tiny_model(tiny_config(Position::kRope, true));
  at::NoGradGuard no_grad;
  const at::Tensor ids = tokens(1, 16);
  const at::Tensor full = model->logits(ids);
  EXPECT_LT(max_difference(model->logits(ids.narrow(1, 0, 6)), full.narrow(1, 0, 6)),
            1e-5 * full.abs().max().item<double>());
}

}  // namespace
}  // namespace stablemask
