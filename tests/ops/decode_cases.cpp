#include "tests/ops/decode_cases.h"

#include <utility>

#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops::testing {
namespace {

constexpr int64_t kSequences = 2, kRows = 3;
constexpr int64_t kRowOf[kSequences] = {2, 0};  // row 1 belongs to no sequence

/// Output [B,T,H,D] of whole sequences `packed` [B,T,H+2·Hkv,D] and the rotated projection, in
/// packed's dtype.
std::pair<at::Tensor, at::Tensor> whole(const at::Tensor& packed, const DecodeCase& c) {
  const DecodeOptions decode = c.options(packed.device());
  at::Tensor rotated = packed;
  if (c.rope_dims > 0) {
    const at::Tensor positions = at::arange(c.length, packed.options().dtype(at::kLong));
    rotated =
        reference::rope(packed, c.heads + c.kv_heads, c.rope_dims, positions, decode.rope_table);
  }
  AttentionOptions options;
  options.scale = decode.scale;
  options.pseudo = decode.pseudo;
  options.alibi_slopes = decode.alibi_slopes;
  options.window = decode.window;
  const auto [q, k, v] = split_heads(rotated, c.heads, c.kv_heads);
  return {reference::attention(q, k, v, options, packed.scalar_type()), rotated};
}

/// A cache that holds the positions before `start` of each sequence, and NaN elsewhere.
DecodeCache filled_cache(const DecodeCase& c, const at::Tensor& rotated) {
  const at::Tensor both = at::full({kRows, c.slots, 2 * c.kv_heads, c.dims},
                                   std::numeric_limits<double>::quiet_NaN(), rotated.options());
  for (int64_t b = 0; b < kSequences; ++b) {
    const int64_t end = std::max<int64_t>(0, c.start - b * DecodeCase::kLag);
    const int64_t begin = std::max<int64_t>(0, end - c.slots);
    const at::Tensor positions = at::arange(begin, end, rotated.options().dtype(at::kLong));
    both[kRowOf[b]].index_copy_(0, positions.remainder(c.slots),
                                rotated[b].slice(0, begin, end).narrow(1, c.heads, 2 * c.kv_heads));
  }
  return {both.narrow(2, 0, c.kv_heads), both.narrow(2, c.kv_heads, c.kv_heads)};
}

}  // namespace

std::string DecodeCase::name() const {
  const char* masks[] = {"causal", "fixed", "infinite", "sequence", "beyond"};
  std::string text = std::string(masks[static_cast<int>(mask)]) + (alibi ? " ALiBi" : "");
  if (rope_dims > 0) text += " RoPE " + std::to_string(rope_dims);
  text += " T" + std::to_string(start) + "-" + std::to_string(length) + " H" +
          std::to_string(heads) + "/" + std::to_string(kv_heads) + " D" + std::to_string(dims);
  if (mask == Mask::kFixed || mask == Mask::kBeyond) text += " N" + std::to_string(mask_length);
  return text + " window " + std::to_string(window) + " slots " + std::to_string(slots);
}

DecodeOptions DecodeCase::options(at::Device device) const {
  DecodeOptions o;
  if (scale != 0.0) o.scale = scale;
  o.window = window;
  o.rope_dims = rope_dims;
  if (rope_dims > 0) o.rope_table = rope_table(length, rope_dims, 1e4).to(device);
  if (alibi) o.alibi_slopes = alibi_slopes(heads).to(device);
  if (mask == Mask::kCausal) return o;
  const bool infinite = mask == Mask::kInfinite;
  // γ = 0 would have infinite mass.
  const double least = infinite || mask == Mask::kBeyond ? 0.125 : 0.0;
  const at::Tensor gamma = at::tensor({0.0, 0.0078125, 0.5, 2.0}).repeat({heads / 4 + 1}) + least;
  const at::Tensor p_base = at::tensor({0.0, -1.5, 0.75}).repeat({heads / 3 + 1});
  const auto kind = infinite ? MaskLength::Kind::kInfinite : MaskLength::Kind::kFixed;
  o.pseudo = PseudoScores{gamma.slice(0, 0, heads).to(device, at::kFloat),
                          p_base.slice(0, 0, heads).to(device, at::kFloat),
                          {kind, infinite ? 0 : mask_length, mask == Mask::kBeyond}};
  return o;
}

std::vector<DecodeCase> decode_cases(int64_t dims) {
  std::vector<DecodeCase> cases;
  for (const Mask mask : {Mask::kCausal, Mask::kFixed, Mask::kInfinite, Mask::kBeyond}) {
    for (const auto& [alibi, rope] : {std::pair{false, int64_t{0}}, {false, dims}, {true, 0}}) {
      for (const auto& [window, slots] :
           {std::pair<int64_t, int64_t>{0, 37}, {0, 50}, {6, 6}, {6, 11}, {100, 40}}) {
        cases.push_back({.alibi = alibi,
                         .rope_dims = rope,
                         .mask = mask,
                         .window = window,
                         .slots = slots,
                         .dims = dims});
      }
    }
  }
  return cases;
}

std::vector<DecodeCase> special_decode_cases(int64_t dims) {
  std::vector<DecodeCase> cases;
  const DecodeCase base{.start = 31, .rope_dims = dims, .mask = Mask::kFixed, .dims = dims};
  DecodeCase c = base;
  for (const int64_t n : {1, 2, 33, 34, 36, 37, 38, 1000}) {
    for (const Mask mask : {Mask::kFixed, Mask::kBeyond}) {
      cases.push_back(((c = base).mask = mask, c.mask_length = n, c));
    }
  }
  for (const auto& [heads, kv_heads] :
       {std::pair{1, 1}, {4, 4}, {4, 1}, {6, 2}, {10, 2}, {7, 1}, {16, 1}}) {
    cases.push_back(((c = base).heads = heads, c.kv_heads = kv_heads, c.mask_length = 100, c));
  }
  cases.push_back(((c = base).rope_dims = dims / 2, c));
  cases.push_back(((c = base).rope_dims = 2, c.scale = 0.5, c));
  cases.push_back(((c = base).rope_dims = 0, c.alibi = true, c.heads = 6, c));
  return cases;
}

void compare_decoding(const DecodeCase& c, DecodeOp op, at::ScalarType type, double eps,
                      at::Device device) {
  const int64_t packed_heads = c.heads + 2 * c.kv_heads;
  const at::Tensor exact = normal({kSequences, c.length, packed_heads, c.dims}, 1)
                               .to(at::kBFloat16)
                               .to(device, at::kDouble);
  const at::Tensor truth = whole(exact, c).first, packed = exact.to(type);
  const auto [plain, rotated] = whole(packed, c);
  const DecodeCache cache = filled_cache(c, rotated);
  const DecodeOptions options = c.options(device);
  const at::Tensor rows = at::tensor({kRowOf[0], kRowOf[1]}, at::kLong).to(device);

  Tensors mine, expected, eager;
  for (int64_t p = c.start; p < c.length; ++p) {
    const int64_t behind = std::max<int64_t>(-1, p - DecodeCase::kLag);
    const at::Tensor positions = at::tensor({p, behind}, at::kLong).to(device);
    const at::Tensor token =
        at::stack({packed[0][p], packed[1][std::max<int64_t>(behind, 0)]}).contiguous();
    const at::Tensor out = op(token, c.heads, cache, rows, positions, options);
    EXPECT_EQ(out.scalar_type(), type);
    for (int64_t b = 0; b < kSequences; ++b) {
      const int64_t position = b == 0 ? p : behind;
      if (position < 0) {
        EXPECT_EQ(out[b].count_nonzero().item<int64_t>(), 0) << c.name();
        continue;
      }
      mine.push_back(out[b]);
      expected.push_back(truth[b][position]);
      eager.push_back(plain[b][position]);
    }
  }
  expect_as_accurate(at::stack(mine), at::stack(eager), at::stack(expected), eps, c.name());
  EXPECT_TRUE(cache.keys[1].isnan().all().item<bool>()) << c.name() << ": row of no sequence";
}

}  // namespace stablemask::ops::testing
