#include "tests/ops/attention_cases.h"

#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops::testing {
namespace {

constexpr int64_t kBatch = 2;

/// A document starts at column 0 of every row and after every 7th and 9th token.
at::Tensor starts(int64_t length) {
  const at::Tensor start = at::zeros({kBatch, length}, at::kLong);
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t t = 0, begin = 0; t < length; ++t) {
      if (t % (7 + 2 * b) == 0) begin = t;
      start[b][t] = begin;
    }
  }
  return start;
}

at::Tensor exact_in_bf16(const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kDouble); }

/// packed_attention after ops::rope, as a model calls it.
at::Tensor rotated_then_attended(const at::Tensor& packed, const AttentionCase& c,
                                 const at::Tensor& positions, const at::Tensor& table,
                                 const AttentionOptions& options) {
  const at::Tensor rotated = rope(packed, c.heads + c.kv_heads, c.dims, positions, table);
  return packed_attention(rotated, c.heads, c.kv_heads, options);
}

}  // namespace

std::string AttentionCase::name() const {
  const char* masks[] = {"causal", "fixed", "infinite", "sequence", "beyond"};
  std::string text = std::string(masks[static_cast<int>(mask)]) + (alibi ? " ALiBi" : "");
  text += " T" + std::to_string(length) + " H" + std::to_string(heads) + "/" +
          std::to_string(kv_heads) + " D" + std::to_string(dims);
  if (mask == Mask::kFixed || mask == Mask::kBeyond) text += " N" + std::to_string(mask_length);
  if (offset > 0) text += " offset " + std::to_string(offset);
  if (key_offset > 0) text += " keys from " + std::to_string(key_offset);
  if (window > 0) text += " window " + std::to_string(window);
  return text + (documents ? " documents" : "");
}

Tensors AttentionCase::inputs() const {
  const int64_t keys = offset - key_offset + length;
  const at::Tensor gamma =
      at::tensor({0.0, 0.0078125, 0.5, 2.0}, at::kDouble).repeat({heads / 4 + 1});
  const at::Tensor p_base = at::tensor({0.0, -1.5, 0.75}, at::kDouble).repeat({heads / 3 + 1});
  // γ = 0 would have infinite mass.
  const bool infinite = mask == Mask::kInfinite || mask == Mask::kBeyond;
  return {exact_in_bf16(normal({kBatch, length, heads, dims}, 1)),
          exact_in_bf16(normal({kBatch, keys, kv_heads, dims}, 2)),
          exact_in_bf16(normal({kBatch, keys, kv_heads, dims}, 3)),
          gamma.slice(0, 0, heads) + (infinite ? 0.125 : 0.0), p_base.slice(0, 0, heads)};
}

AttentionOptions AttentionCase::options(const Tensors& x) const {
  AttentionOptions o;
  if (scale != 0.0) o.scale = scale;
  o.window = window;
  o.query_offset = offset;
  o.key_offset = key_offset;
  if (alibi) o.alibi_slopes = alibi_slopes(heads).to(x[0].device());
  if (documents) o.document_start = starts(length).to(x[0].device());
  if (mask == Mask::kCausal) return o;
  const auto wide = x[3].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const MaskLength lengths[] = {{},
                                {MaskLength::Kind::kFixed, mask_length},
                                {MaskLength::Kind::kInfinite, 0},
                                {MaskLength::Kind::kSequence, 0},
                                {MaskLength::Kind::kFixed, mask_length, true}};
  o.pseudo = PseudoScores{x[3].to(wide), x[4].to(wide), lengths[static_cast<int>(mask)]};
  return o;
}

Function AttentionCase::op(AttentionBackend backend) const {
  return [c = *this, backend](const Tensors& x) {
    AttentionOptions o = c.options(x);
    o.backend = backend;
    return attention(x[0], x[1], x[2], o);
  };
}

Function AttentionCase::plain() const {
  return [c = *this](const Tensors& x) {
    return reference::attention(x[0], x[1], x[2], c.options(x), x[0].scalar_type());
  };
}

std::vector<AttentionCase> square_cases(int64_t dims) {
  std::vector<AttentionCase> cases;
  for (const int64_t length : {1, 2, 17, 64, 127, 512}) {
    for (const bool alibi : {false, true}) {
      for (const Mask mask : {Mask::kCausal, Mask::kFixed, Mask::kInfinite, Mask::kBeyond}) {
        cases.push_back({.length = length,
                         .alibi = alibi,
                         .mask = mask,
                         .mask_length = length * 3 / 4 + 1,
                         .dims = dims});
      }
    }
  }
  return cases;
}

std::vector<AttentionCase> special_cases(int64_t dims) {
  std::vector<AttentionCase> cases;
  for (const Mask mask : {Mask::kCausal, Mask::kFixed, Mask::kInfinite, Mask::kBeyond}) {
    for (const bool alibi : {false, true}) {
      const AttentionCase base{.length = 37, .alibi = alibi, .mask = mask, .dims = dims};
      AttentionCase c = base;
      for (const int64_t window : {1, 5, 36, 100}) cases.push_back(((c = base).window = window, c));
      cases.push_back(((c = base).documents = true, c));
      cases.push_back(((c = base).documents = true, c.window = 3, c));
      for (const int64_t length : {1, 5}) {
        cases.push_back(((c = base).offset = 9, c.length = length, c));
        cases.push_back(((c = base).offset = 9, c.length = length, c.window = 4, c));
        cases.push_back(
            ((c = base).offset = 29, c.key_offset = 26, c.length = length, c.window = 4, c));
        cases.push_back(
            ((c = base).offset = 9, c.key_offset = 3, c.length = length, c.window = 4, c));
      }
      cases.push_back(((c = base).kv_heads = 1, c));
      cases.push_back(((c = base).heads = 12, c.kv_heads = 12, c.scale = 0.5, c));
    }
  }
  for (const int64_t n : {1, 2, 36, 37, 38, 100}) {
    cases.push_back({.length = 37, .mask = Mask::kFixed, .mask_length = n, .dims = dims});
    cases.push_back({.length = 37, .mask = Mask::kBeyond, .mask_length = n, .dims = dims});
  }
  cases.push_back({.length = 37, .mask = Mask::kSequence, .dims = dims});
  return cases;
}

void compare_attention(const AttentionCase& c, const std::vector<AttentionBackend>& backends,
                       at::ScalarType type, double eps, at::Device device) {
  const Tensors inputs = c.inputs();
  const at::Tensor direction = exact_in_bf16(normal(inputs[0].sizes(), 7));
  const auto run = [&](const Function& f, at::ScalarType t, at::Device d) {
    // Without a mask gamma and p_base have no gradient.
    const Function whole = [&](const Tensors& x) { return f(x) + 0.0 * (x[3].sum() + x[4].sum()); };
    return evaluate(whole, inputs, direction, t, d);
  };
  const Evaluation truth = run(c.plain(), at::kDouble, at::kCPU);
  const Evaluation plain = run(c.plain(), type, device);
  const char* names[] = {"dq", "dk", "dv", "dgamma", "dp_base"};
  for (const AttentionBackend backend : backends) {
    const Evaluation kernel = run(c.op(backend), type, device);
    const std::string what = c.name() + ", backend " + std::to_string(static_cast<int>(backend));
    EXPECT_EQ(kernel.value.scalar_type(), type);
    expect_as_accurate(kernel.value, plain.value, truth.value, eps, what + ": output");
    for (size_t i = 0; i < inputs.size(); ++i) {
      expect_as_accurate(kernel.grads[i], plain.grads[i], truth.grads[i], eps,
                         what + ": " + names[i]);
    }
  }
}

std::vector<AttentionCase> rope_cases(int64_t dims) {
  std::vector<AttentionCase> cases;
  for (const AttentionCase& c : square_cases(dims)) {
    if (!c.alibi) cases.push_back(c);
  }
  return cases;
}

void compare_rotated_attention(const AttentionCase& c, at::ScalarType type, double eps,
                               at::Device device) {
  const Tensors x = c.inputs();
  const at::Tensor packed = at::cat({x[0], x[1], x[2]}, 2);
  const at::Tensor direction = exact_in_bf16(normal(x[0].sizes(), 7));
  const at::Tensor positions = at::arange(c.length, at::kLong).to(device);
  const at::Tensor table = rope_table(c.length, c.dims, 1e4).to(device);
  // Constants: only the gradient of the packed projection is compared.
  const auto options = [&](const at::Tensor& in) {
    const auto wide = in.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return c.options({in, in, in, x[3].to(device, wide), x[4].to(device, wide)});
  };
  const Function op = [&](const Tensors& in) {
    return rotated_then_attended(in[0], c, positions, table, options(in[0]));
  };
  const Function plain = [&](const Tensors& in) {
    const at::Tensor rotated =
        reference::rope(in[0], c.heads + c.kv_heads, c.dims, positions, table);
    const auto [q, k, v] = split_heads(rotated, c.heads, c.kv_heads);
    return reference::attention(q, k, v, options(in[0]), in[0].scalar_type());
  };
  const Evaluation truth = evaluate(plain, {packed}, direction, at::kDouble, device);
  const Evaluation eager = evaluate(plain, {packed}, direction, type, device);
  const Evaluation mine = evaluate(op, {packed}, direction, type, device);
  const std::string what = "RoPE " + c.name();
  expect_as_accurate(mine.value, eager.value, truth.value, eps, what + ": output");
  const int64_t first[] = {0, c.heads, c.heads + c.kv_heads, packed.size(2)};
  const char* names[] = {": dq", ": dk", ": dv"};
  for (int i = 0; i < 3; ++i) {
    const auto part = [&](const Evaluation& e) {
      return e.grads[0].narrow(2, first[i], first[i + 1] - first[i]);
    };
    expect_as_accurate(part(mine), part(eager), part(truth), eps, what + names[i]);
  }
}

}  // namespace stablemask::ops::testing
