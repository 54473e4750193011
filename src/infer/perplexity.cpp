#include "stablemask/infer/perplexity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

/// A text with a published count of words and line ends.
struct GoldenText {
  const char* name;
  const char* text_sha256;
  uint64_t words_and_lines;
};
constexpr std::array<GoldenText, 4> kGoldenTexts{{
    {"WikiText-103 test", "56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9",
     245569},
    {"WikiText-103 validation", "9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b",
     217646},
    {"WikiText-2 test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0", 245569},
    {"WikiText-2 validation", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
     217646},
}};

/// len(text.strip().split(" ")) of a text that is fed piece by piece: single spaces separate, so a
/// line feed between two spaces is a word; white space at both ends of the text does not count.
class SpaceWordCounter {
 public:
  void feed(const std::string& text) {
    for (const char c : text) {
      if (c == ' ') {
        ++pending_spaces_;
      } else if (c == '\n' || c == '\t' || c == '\r' || c == '\v' || c == '\f') {
        // Part of a word, or of the stripped ends: no word starts or ends here.
      } else {
        if (started_) spaces_ += pending_spaces_;
        pending_spaces_ = 0;
        started_ = true;
      }
    }
  }
  uint64_t count() const { return started_ ? spaces_ + 1 : 0; }

 private:
  uint64_t spaces_ = 0, pending_spaces_ = 0;
  bool started_ = false;
};

double perplexity_of(double nll, double denominator) {
  return denominator > 0 ? std::exp(nll / denominator) : std::numeric_limits<double>::quiet_NaN();
}

nlohmann::json number_or_null(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
}

/// Calls take(ids) with all ids of the shard, in order.
template <class Take>
void for_each_chunk(const Shard& shard, const Take& take) {
  constexpr int64_t kChunk = 1 << 16;
  std::vector<int64_t> ids(kChunk);
  for (int64_t begin = 0; begin < shard.size(); begin += kChunk) {
    check_stop("reading a token shard");
    const int64_t count = std::min(kChunk, shard.size() - begin);
    shard.read(begin, count, ids.data());
    take(std::span<const int64_t>(ids.data(), count));
  }
}

/// How often each id occurs, [V].
std::vector<uint64_t> count_ids(const Shard& shard) {
  std::vector<uint64_t> counts(shard.info().vocab_size);
  for_each_chunk(shard, [&](std::span<const int64_t> ids) {
    for (const int64_t id : ids) ++counts[id];  // read() refuses ids outside the vocabulary
  });
  return counts;
}

std::string row(const char* name, double value, const std::string& formula) {
  return format("%-10s %12s   %s", name, figure_text(value).c_str(), formula.c_str()) +
         (std::isnan(value) ? ", undefined for so few words\n" : "\n");
}

}  // namespace

std::string figure_text(double value) { return std::isnan(value) ? "-" : format("%.4f", value); }

double Perplexity::token() const { return perplexity_of(nll, tokens); }
double Perplexity::word() const {
  return perplexity_of(nll, has_text() ? static_cast<double>(word_count()) : 0);
}
double Perplexity::lm_eval() const {
  return perplexity_of(nll, has_text() ? static_cast<double>(lm_eval_count()) : 0);
}
double Perplexity::megatron() const {
  if (space_words < 2 || tokens < 2) return std::numeric_limits<double>::quiet_NaN();
  const double tokens_per_word = (tokens - 1.0) / (space_words - 1.0);
  return std::exp(nll / tokens * tokens_per_word);
}
double Perplexity::bits_per_byte() const {
  if (!has_text()) return std::numeric_limits<double>::quiet_NaN();
  return nll / (bytes * std::log(2.0));
}
double Perplexity::bits_per_token() const {
  return nll / (static_cast<double>(tokens) * std::log(2.0));
}

TextAudit audit_text(const Shard& shard, const Tokenizer& tokenizer) {
  Sha256 hash;
  SpaceWordCounter spaces;
  std::vector<int32_t> line;
  const auto decode_line = [&] {
    const std::string text = tokenizer.decode(line);
    hash.update(text.data(), text.size());
    spaces.feed(text);
    line.clear();
  };
  for_each_chunk(shard, [&](std::span<const int64_t> ids) {
    for (const int64_t id : ids) {
      line.push_back(static_cast<int32_t>(id));
      if (line.back() == tokenizer.eos_id()) decode_line();
    }
  });
  if (!line.empty()) decode_line();
  return {hash.hex() == shard.info().text_sha256, spaces.count()};
}

std::string recognise_text(const ShardInfo& info) {
  for (const GoldenText& golden : kGoldenTexts) {
    if (info.text_sha256 != golden.text_sha256) continue;
    if (info.words + info.lines == golden.words_and_lines) return golden.name;
    throw DataError(
        format("%s: the shard states %s words and line ends, the published count is %s; prepare "
               "it again",
               golden.name, with_commas(info.words + info.lines).c_str(),
               with_commas(golden.words_and_lines).c_str()));
  }
  return "";
}

Perplexity unigram_baseline(const Shard& train, const Shard& shard) {
  shard.require_tokenizer(train.info().tokenizer_sha256);
  const std::vector<uint64_t> seen = count_ids(train);
  const std::vector<uint64_t> scored = count_ids(shard);
  const double total = static_cast<double>(train.size()) + static_cast<double>(seen.size());

  const ShardInfo& info = shard.info();
  Perplexity result;
  result.tokens = info.tokens;
  result.words = info.words;
  result.lines = info.lines;
  result.documents = info.documents;
  result.bytes = info.bytes;
  for (size_t id = 0; id < scored.size(); ++id) {
    result.nll -= static_cast<double>(scored[id]) * std::log((seen[id] + 1.0) / total);
  }
  return result;
}

std::string perplexity_report(const Perplexity& result, const std::string& convention) {
  const std::string nll = format("%.4f", result.nll);
  const std::string words = with_commas(result.word_count());
  std::string lines;
  const bool all = convention == "all" && result.has_text();
  const auto wants = [&](const char* name) { return all || convention == name; };
  if (convention == "all" || convention == "token") {
    lines += row("token", result.token(), "exp(NLL / " + with_commas(result.tokens) + " tokens)");
  }
  if (convention == "all" && !result.text_known) {
    lines += row("bits/token", result.bits_per_token(),
                 "NLL / (" + with_commas(result.tokens) + " tokens * ln 2)");
  }
  if (wants("word")) {
    lines += row("word", result.word(),
                 "exp(NLL / " + words + " words + EOS)  [fairseq, Transformer-XL, ALiBi]");
  }
  if (wants("lm-eval")) {
    lines += row(
        "lm-eval", result.lm_eval(),
        "exp(NLL / " + with_commas(result.lm_eval_count()) + " words without EOS, per document)");
  }
  if (convention == "megatron" || (all && result.space_words > 0)) {
    lines += row("megatron", result.megatron(),
                 "exp(mean token NLL * " + with_commas(result.tokens - 1) + " / " +
                     with_commas(std::max<uint64_t>(result.space_words, 1) - 1) +
                     " original words - 1)");
  }
  if (wants("bpb")) {
    lines += row("bpb", result.bits_per_byte(),
                 "NLL / (" + with_commas(result.bytes) + " bytes * ln 2)  bits per byte");
  }
  if (lines.empty()) {
    throw ConfigError("convention \"" + convention +
                      "\": must be all, token, word, lm-eval, megatron or bpb");
  }
  return "NLL        " + nll + " nats over " + with_commas(result.tokens) +
         (result.of_samples() ? " tokens of completions\n" : " tokens\n") + lines;
}

std::string perplexity_json(const Perplexity& result) {
  nlohmann::ordered_json json;
  json["nll"] = number_or_null(result.nll);
  json["tokens"] = result.tokens;
  json["words"] = result.words;
  json["lines"] = result.lines;
  json["documents"] = result.documents;
  json["bytes"] = result.bytes;
  json["word_count"] = result.word_count();
  json["lm_eval_count"] = result.lm_eval_count();
  json["space_words"] = result.space_words;
  json["token_perplexity"] = number_or_null(result.token());
  json["word_perplexity"] = number_or_null(result.word());
  json["lm_eval_perplexity"] = number_or_null(result.lm_eval());
  json["megatron_perplexity"] = number_or_null(result.megatron());
  json["bits_per_token"] = number_or_null(result.bits_per_token());
  json["bits_per_byte"] = number_or_null(result.bits_per_byte());
  if (result.of_samples()) {
    json["samples"] = result.samples.samples;
    json["samples_truncated"] = result.samples.truncated;
    json["samples_dropped"] = result.samples.dropped;
  }
  return json_text(json);
}

}  // namespace stablemask
