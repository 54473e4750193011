#include "stablemask/infer/prompt.h"

#include <algorithm>
#include <string_view>

#include "stablemask/infer/generate.h"

namespace stablemask::infer {

PromptEncoder::PromptEncoder(const Tokenizer& tokenizer, bool heal) : tokenizer_(tokenizer) {
  if (!heal) return;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (id != tokenizer.eos_id() && !tokenizer.text_of(id).empty()) by_text_.push_back(id);
  }
  std::ranges::stable_sort(by_text_, {},
                           [&](int32_t id) -> std::string_view { return tokenizer.text_of(id); });
}

Prompt PromptEncoder::encode(const std::string& text, const std::string& what) const {
  Prompt prompt{prompt_ids(tokenizer_, text, what)};
  const int32_t last = prompt.ids.back();
  if (by_text_.empty() || last == tokenizer_.eos_id()) return prompt;
  const std::string_view held = tokenizer_.text_of(last);
  const auto text_of = [&](int32_t id) -> std::string_view { return tokenizer_.text_of(id); };
  std::vector<int32_t> ids;
  for (auto at = std::ranges::lower_bound(by_text_, held, {}, text_of);
       at != by_text_.end() && text_of(*at).starts_with(held); ++at) {
    // A character may also have a byte piece, which no text with a piece of that character uses.
    if (*at == last || text_of(*at).size() > held.size()) ids.push_back(*at);
  }
  if (ids.size() < 2) return prompt;
  std::ranges::sort(ids);
  prompt.ids.pop_back();
  prompt.first_ids = std::move(ids);
  prompt.held = held;
  return prompt;
}

}  // namespace stablemask::infer
