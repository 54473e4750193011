#include "stablemask/ops/decode.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "src/ops/contracts.h"
#include "src/ops/dispatch.h"
#include "stablemask/ops/attention.h"
#include "stablemask/ops/reference.h"

namespace stablemask::ops {
namespace {

/// The new token of one sequence: `token` [1, 1, H+2·Hkv, D], keys and values [S, Hkv, D] of its
/// row.
at::Tensor decode_one(const at::Tensor& token, int64_t heads, const at::Tensor& keys,
                      const at::Tensor& values, int64_t position, const DecodeOptions& options) {
  const int64_t slots = keys.size(0), kv_heads = keys.size(1);
  at::Tensor rotated = token;
  if (options.rope_dims > 0) {
    const at::Tensor where = at::full({1}, position, token.options().dtype(at::kLong));
    rotated =
        reference::rope(token, heads + kv_heads, options.rope_dims, where, options.rope_table);
  }
  keys[position % slots].copy_(rotated[0][0].narrow(0, heads, kv_heads));
  values[position % slots].copy_(rotated[0][0].narrow(0, heads + kv_heads, kv_heads));

  AttentionOptions attends;
  attends.scale = options.scale;
  attends.pseudo = options.pseudo;
  attends.alibi_slopes = options.alibi_slopes;
  attends.window = options.window;
  attends.query_offset = position;
  attends.key_offset = options.window > 0 ? std::max<int64_t>(0, position - options.window + 1) : 0;
  const at::Tensor visible =
      at::arange(attends.key_offset, position + 1, token.options().dtype(at::kLong))
          .remainder(slots);
  return reference::attention(rotated.narrow(2, 0, heads),
                              keys.index_select(0, visible).unsqueeze(0),
                              values.index_select(0, visible).unsqueeze(0), attends);
}

bool has_decode_kernel(const at::Tensor& packed) {
  return has_fused_kernels(packed, Kernels::kFused) && (packed.is_cpu() || packed.size(2) <= 256);
}

}  // namespace

at::Tensor reference::decode_attention(const at::Tensor& packed, int64_t heads,
                                       const DecodeCache& cache, const at::Tensor& rows,
                                       const at::Tensor& positions, const DecodeOptions& options) {
  const at::NoGradGuard no_grad;
  check_decode("reference::decode_attention", packed, heads, cache, rows, positions, options);
  at::Tensor out = at::zeros({packed.size(0), heads, packed.size(2)}, packed.options());
  const at::Tensor where = positions.to(at::kCPU);
  const at::Tensor row_of = rows.defined() ? rows.to(at::kCPU) : at::arange(packed.size(0));
  for (int64_t b = 0; b < packed.size(0); ++b) {
    const int64_t position = where[b].item<int64_t>(), row = row_of[b].item<int64_t>();
    if (position < 0) continue;
    out[b].copy_(decode_one(packed[b].unsqueeze(0).unsqueeze(0), heads, cache.keys[row],
                            cache.values[row], position, options)[0][0]);
  }
  return out;
}

at::Tensor decode_attention(const at::Tensor& packed, int64_t heads, const DecodeCache& cache,
                            const at::Tensor& rows, const at::Tensor& positions,
                            const DecodeOptions& options) {
  const at::NoGradGuard no_grad;
  check_decode("decode_attention", packed, heads, cache, rows, positions, options);
  if (!has_decode_kernel(packed)) {
    return reference::decode_attention(packed, heads, cache, rows, positions, options);
  }
  at::Tensor out = at::empty({packed.size(0), heads, packed.size(2)}, packed.options());
  STABLEMASK_KERNEL(
      packed, decode_attention(packed.contiguous(), heads, cache, rows, positions, options, out));
  return out;
}

}  // namespace stablemask::ops
