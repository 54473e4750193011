#include "src/commands/sample_preview.h"

#include <algorithm>
#include <vector>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/data/packed_samples.h"

namespace stablemask::commands {
namespace {

constexpr const char* kLineEnd = "\u23CE";
constexpr const char* kEndOfText = "<end of text>";

std::string commas_of(int64_t value) { return with_commas(static_cast<uint64_t>(value)); }

/// Characters that a terminal would obey, and bytes that are none, become \xNN.
std::string shown_text(std::string_view text) {
  std::string shown;
  while (!text.empty()) {
    const size_t size = utf8_character_size(text);
    const std::string_view character = text.substr(0, std::max<size_t>(size, 1));
    if (size > 0 && !has_controls(character)) {
      shown += character;
    } else {
      for (const char c : character) shown += format("\\x%02X", static_cast<unsigned char>(c));
    }
    text.remove_prefix(character.size());
  }
  return shown;
}

/// Text in lines that each begin with the name of their kind.
class PreviewLines {
 public:
  explicit PreviewLines(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void add(const char* kind, int32_t id) {
    if (kind != kind_) end_line();
    kind_ = kind;
    if (id == tokenizer_.end_of_text_id()) {
      flush();
      line_ += kEndOfText;
    } else if (id == tokenizer_.eos_id()) {
      flush();
      line_ += kLineEnd;
      end_line();
    } else {
      ids_.push_back(id);
    }
  }

  std::string finish() {
    end_line();
    return std::move(text_);
  }

 private:
  /// Ids are decoded together: a character may be of several.
  void flush() {
    if (!ids_.empty()) line_ += shown_text(tokenizer_.decode(ids_));
    ids_.clear();
  }
  void end_line() {
    flush();
    if (!line_.empty()) text_ += format("  %-7s |", kind_) + line_ + "|\n";
    line_.clear();
  }

  const Tokenizer& tokenizer_;
  const char* kind_ = "";
  std::vector<int32_t> ids_;
  std::string line_, text_;
};

}  // namespace

std::string preview_legend(const Tokenizer& tokenizer) {
  const std::string line_end =
      tokenizer.lossless() ? format("%s is the line end, id %d; ", kLineEnd, tokenizer.eos_id())
                           : "";
  return "special tokens: " + line_end +
         format("%s is id %d\n", kEndOfText, tokenizer.end_of_text_id());
}

std::string sample_preview(const Shard& shard, const Tokenizer& tokenizer, int64_t number,
                           int64_t context) {
  const std::vector<int64_t>& starts = shard.document_starts();
  const auto index = static_cast<size_t>(number);
  const int64_t begin = starts[index];
  const int64_t tokens = (index + 1 < starts.size() ? starts[index + 1] : shard.size()) - begin;
  const int64_t kept = context > 0 ? std::min(tokens, context + 1) : tokens;
  std::vector<int64_t> ids(static_cast<size_t>(tokens));
  shard.read(begin, tokens, ids.data());
  const std::vector<bool> trained = shard.read_trained(begin, tokens);
  PreviewLines lines(tokenizer);
  int64_t targets = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const bool target = trained[static_cast<size_t>(i)];
    const char* const kind = i >= kept ? "cut" : target ? "trained" : "masked";
    lines.add(kind, static_cast<int32_t>(ids[static_cast<size_t>(i)]));
    targets += target && i < kept;
  }
  std::string head = "sample " + commas_of(number + 1) + ": " + commas_of(tokens) + " tokens";
  if (kept < tokens) head += ", truncated to " + commas_of(kept);
  head += ", " + commas_of(targets) + " trained";
  if (targets == 0) head += ": dropped";
  return head + "\n" + lines.finish();
}

std::string packing_text(const Shard& shard, int64_t context) {
  const PackedSamples packed({&shard}, context);
  const PackingCounts& counts = packed.counts();
  return "context " + commas_of(context) + ": " + commas_of(counts.samples) + " samples in " +
         commas_of(packed.rows()) + (packed.rows() == 1 ? " sequence, " : " sequences, ") +
         format("%.1f %% filled, ", 100 * packed.fill_rate()) + commas_of(counts.targets) +
         " training targets; " + commas_of(counts.truncated) + " truncated, " +
         commas_of(counts.dropped) + " dropped\n";
}

}  // namespace stablemask::commands
