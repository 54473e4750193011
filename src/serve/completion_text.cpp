#include "src/serve/completion_text.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "stablemask/base/log.h"
#include "stablemask/base/utf8.h"

namespace stablemask::serve {

int64_t characters(const std::string& text) {
  return std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; });
}

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  const std::string& text = tokenizer.text_of(id);
  if (is_utf8(text)) return text;
  std::string bytes = "bytes:";
  for (const char c : text) bytes += format("\\x%02x", static_cast<unsigned char>(c));
  return bytes;
}

CompletionText::CompletionText(const Tokenizer& tokenizer, const Options& options)
    : tokenizer_(tokenizer),
      continuation_(tokenizer, options.held, options.stop),
      with_entries_(options.entries),
      all_(tokenizer, options.held, {}),
      decoded_(options.offset),
      shown_(options.offset) {}

bool CompletionText::add(const Draw& draw) {
  ++tokens_;
  if (with_entries_) add_entry(draw);
  text_ += with_replacements(continuation_.push(draw.id));
  return !continuation_.stopped();
}

void CompletionText::add_entry(const Draw& draw) {
  TokenEntry entry{token_text(tokenizer_, draw.id), decoded_, draw.logprob, {}};
  bool listed = false;
  for (const auto& [id, logprob] : draw.top) {
    entry.top.emplace_back(token_text(tokenizer_, id), logprob);
    listed = listed || id == draw.id;
  }
  if (!listed) entry.top.emplace_back(entry.text, draw.logprob);
  entries_.push_back(std::move(entry));
  decoded_ += characters(with_replacements(all_.push(draw.id)));
}

void CompletionText::finish() {
  text_ += with_replacements(continuation_.finish());
  complete_ = !continuation_.stopped();
}

std::string CompletionText::take_text() {
  shown_ += characters(text_);
  return std::exchange(text_, "");
}

std::vector<TokenEntry> CompletionText::take_entries() {
  const auto later = std::ranges::find_if(
      entries_, [&](const TokenEntry& entry) { return !complete_ && entry.offset >= shown_; });
  std::vector<TokenEntry> begun(std::make_move_iterator(entries_.begin()),
                                std::make_move_iterator(later));
  entries_.erase(entries_.begin(), later);
  return begun;
}

}  // namespace stablemask::serve
