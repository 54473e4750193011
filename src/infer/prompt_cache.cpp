#include "src/infer/prompt_cache.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <bit>

#include "src/infer/launched_step.h"

namespace stablemask::infer {
namespace {

/// Tokens of the prompt to cache before the first decoding step.
int64_t to_cache(const Sequence& sequence) { return sequence.prompt_length() - 1; }

/// Those of the sequences that one pass can begin: of lengths between two powers of two, and not of
/// more tokens than a pass may have.
std::vector<SequencePtr> similar(const nn::Decoder& decoder,
                                 const std::vector<SequencePtr>& sequences) {
  const auto class_of = [](const Sequence& one) {
    return std::bit_width(static_cast<uint64_t>(to_cache(one)));
  };
  std::vector<SequencePtr> found;
  int64_t longest = 0;
  for (const SequencePtr& one : sequences) {
    if (one->cached > 0 || class_of(*one) != class_of(*sequences.front())) continue;
    const int64_t length = std::max(longest, to_cache(*one));
    const auto count = static_cast<int64_t>(found.size()) + 1;
    if (length > decoder.cache().slots() ||
        nn::Decoder::tokens_to_begin(count, length) > nn::Decoder::kLongestPrefill) {
      break;
    }
    longest = length;
    found.push_back(one);
  }
  return found;
}

int64_t begin_together(nn::Decoder& decoder, const std::vector<SequencePtr>& sequences,
                       at::Device device) {
  int64_t longest = 0, tokens = 0;
  for (const SequencePtr& one : sequences) longest = std::max(longest, to_cache(*one));
  const auto count = static_cast<int64_t>(sequences.size());
  std::vector<int64_t> ids(count * longest), rows;
  for (const SequencePtr& one : sequences) {
    std::copy_n(one->request.prompt.begin(), to_cache(*one),
                ids.begin() + static_cast<int64_t>(rows.size()) * longest);
    rows.push_back(one->row);
    one->cached = to_cache(*one);
    tokens += one->cached;
  }
  decoder.begin(to_device(rows, device), to_device(ids, device).view({count, longest}));
  return tokens;
}

}  // namespace

int64_t cache_prompts(nn::Decoder& decoder, const std::vector<SequencePtr>& sequences) {
  const at::Device device = decoder.model()->head_weight().device();
  Sequence& first = *sequences.front();
  // On a CPU a pass over several prompts is hardly faster, and would change a text's rounding.
  if (!device.is_cpu() && first.cached == 0) {
    const std::vector<SequencePtr> together = similar(decoder, sequences);
    if (together.size() > 1) return begin_together(decoder, together, device);
  }
  const int64_t count = std::min(to_cache(first) - first.cached, nn::Decoder::kLongestPrefill);
  const auto from = first.request.prompt.begin() + first.cached;
  decoder.prefill(first.row, first.cached, to_device({from, from + count}, device));
  first.cached += count;
  return count;
}

}  // namespace stablemask::infer
