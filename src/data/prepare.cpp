#include "stablemask/data/prepare.h"

#include <algorithm>
#include <deque>
#include <future>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "src/data/files.h"
#include "src/data/round_trip.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

constexpr std::string_view kUnkText = "<unk>";

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

void count_words(std::string_view line, TextCounts& counts) {
  for (size_t at = 0; at < line.size();) {
    while (at < line.size() && is_space(line[at])) ++at;
    const size_t begin = at;
    while (at < line.size() && !is_space(line[at])) ++at;
    if (at == begin) break;
    ++counts.words;
    counts.unk_words += line.substr(begin, at - begin) == kUnkText;
  }
}

void add(TextCounts& sum, const TextCounts& counts) {
  sum.lines += counts.lines;
  sum.words += counts.words;
  sum.bytes += counts.bytes;
  sum.documents += counts.documents;
  sum.unk_words += counts.unk_words;
  sum.input_bytes += counts.input_bytes;
}

/// Position of a chunk in the input, for messages.
struct Origin {
  std::string name;
  uint64_t first_line = 1;

  [[noreturn]] void fail(uint64_t line, const std::string& what) const {
    throw DataError(format("%s: line %llu: %s", name.c_str(),
                           static_cast<unsigned long long>(first_line + line), what.c_str()));
  }
};

void require_utf8(std::string_view line, const Origin& origin, uint64_t number) {
  const std::string problem = utf8_problem(line);
  if (!problem.empty()) origin.fail(number, problem);
}

struct Encoded {
  std::string text;  // the text of the tokens
  std::vector<int32_t> tokens;
  std::vector<size_t> document_starts;  // indices of `tokens`
  TextCounts counts;
};

/// What is wrong with one line of JSON, with the offset of the byte (from 1).
std::string syntax_problem(std::string_view json) {
  try {
    parse_json(json);
  } catch (const JsonSyntaxError& error) {
    size_t byte = 0;
    for (int64_t column = 1; column < error.at().column && byte < json.size(); ++column) {
      byte += std::max<size_t>(1, utf8_character_size(json.substr(byte)));
    }
    return format("not valid JSON at byte %zu: ", byte + 1) + error.what();
  }
  return "not valid JSON";
}

/// "it has: a, b; choose one with --field"
std::string fields_of(const nlohmann::json& object) {
  constexpr size_t kMaxShown = 20;
  std::vector<std::string> names;
  for (const auto& [name, value] : object.items()) {
    // Printable as it is, in most corpora.
    const std::string quoted = in_quotes(name);
    const bool plain = !name.empty() && quoted == '"' + name + '"' &&
                       name.find_first_of(" ,;:") == std::string::npos;
    if (names.size() < kMaxShown) names.push_back(plain ? name : quoted);
  }
  if (names.empty()) return "it is an empty object";
  if (names.size() < object.size()) names.emplace_back("…");
  return "it has: " + join(names, ", ") + "; choose one with --field";
}

class ChunkEncoder {
 public:
  ChunkEncoder(const Tokenizer& tokenizer, const Origin& origin)
      : tokenizer_(tokenizer), origin_(origin) {}

  Encoded encode_text(std::string_view text) {
    std::string_view line;
    bool terminated = false;
    for (uint64_t number = 0; take_line(text, line, terminated); ++number) {
      if (is_document_line(line)) begin_document();
      encode_line(line, terminated, number);
    }
    return std::move(result_);
  }

  Encoded encode_jsonl(std::string_view text, const std::string& field) {
    std::string_view json;
    bool terminated = false;
    for (uint64_t number = 0; take_line(text, json, terminated); ++number) {
      if (std::all_of(json.begin(), json.end(), is_space)) continue;
      require_utf8(json, origin_, number);
      std::string document = field_text(json, field, number);
      if (document.empty() || document.back() != '\n') document += '\n';
      begin_document();
      std::string_view rest = document;
      std::string_view line;
      bool line_terminated = false;
      while (take_line(rest, line, line_terminated)) encode_line(line, line_terminated, number);
      result_.text += document;
    }
    return std::move(result_);
  }

 private:
  void begin_document() {
    result_.document_starts.push_back(result_.tokens.size());
    ++result_.counts.documents;
  }

  std::string field_text(std::string_view json, const std::string& field, uint64_t number) const {
    const auto value = nlohmann::json::parse(json.begin(), json.end(), nullptr, false);
    if (value.is_discarded()) origin_.fail(number, syntax_problem(json));
    if (!value.is_object()) {
      origin_.fail(number, std::string("is of type ") + value.type_name() + ", not a JSON object");
    }
    const auto found = value.find(field);
    if (found == value.end()) {
      origin_.fail(number, "has no field " + in_quotes(field) + "; " + fields_of(value));
    }
    if (!found->is_string()) {
      origin_.fail(number, "the field " + in_quotes(field) + " is of type " + found->type_name() +
                               ", not a string");
    }
    return found->get<std::string>();
  }

  void encode_line(std::string_view line, bool terminated, uint64_t number) {
    require_utf8(line, origin_, number);
    ids_.clear();
    tokenizer_.encode_line(line, ids_);
    // Word-level perplexity divides by the words of the text: the tokens must encode all of it.
    const std::string difference = round_trip_difference(tokenizer_, line, ids_);
    if (!difference.empty()) origin_.fail(number, difference);
    if (terminated) ids_.push_back(tokenizer_.eos_id());
    result_.tokens.insert(result_.tokens.end(), ids_.begin(), ids_.end());
    count_words(line, result_.counts);
    result_.counts.lines += terminated;
    result_.counts.bytes += line.size() + terminated;
  }

  const Tokenizer& tokenizer_;
  const Origin& origin_;
  std::vector<int32_t> ids_;
  Encoded result_;
};

// Takes encoded chunks in the order of the text.
class ShardSink {
 public:
  ShardSink(const std::string& output, const Tokenizer& tokenizer, const PrepareOptions& options)
      : writer_(output, static_cast<uint64_t>(tokenizer.vocab_size()), tokenizer.sha256()),
        options_(options) {}

  void take(const Encoded& chunk) {
    size_t written = 0;
    const auto append_until = [&](size_t end) {
      writer_.append({chunk.tokens.begin() + static_cast<std::ptrdiff_t>(written),
                      chunk.tokens.begin() + static_cast<std::ptrdiff_t>(end)});
      written = end;
    };
    for (const size_t start : chunk.document_starts) {
      append_until(start);
      writer_.begin_document();
    }
    append_until(chunk.tokens.size());
    text_hash_.update(chunk.text.data(), chunk.text.size());
    add(counts_, chunk.counts);
    if (options_.progress) options_.progress(counts_);
  }

  ShardInfo finish(const std::string& name) {
    if (counts_.bytes == 0) throw DataError(name + " is empty: nothing to prepare");
    ShardInfo info;
    info.lines = counts_.lines;
    info.words = counts_.words;
    info.bytes = counts_.bytes;
    info.text_sha256 = text_hash_.hex();
    return writer_.finish(info);
  }

 private:
  ShardWriter writer_;
  const PrepareOptions& options_;
  Sha256 text_hash_;
  TextCounts counts_;
};

bool is_jsonl(const std::string& input, TextFormat format) {
  if (format != TextFormat::kAuto) return format == TextFormat::kJsonl;
  return input.ends_with(".jsonl") || input.ends_with(".ndjson");
}

}  // namespace

bool is_document_line(std::string_view line) {
  while (!line.empty() && is_space(line.back())) line.remove_suffix(1);
  if (line.size() < 6 || line.substr(0, 3) != " = " || line.substr(line.size() - 2) != " =") {
    return false;
  }
  const std::string_view title = line.substr(3, line.size() - 5);
  return !title.empty() && title.front() != '=' && title.back() != '=';
}

ShardInfo prepare_shard(const std::string& input, const std::string& output,
                        const Tokenizer& tokenizer, const PrepareOptions& options) {
  if (options.threads < 1 || options.threads > 1024) {
    throw DataError(format("%d threads is not within 1 to 1024", options.threads));
  }
  require_other_file(output, {input});
  const bool jsonl = is_jsonl(input, options.format);
  LineChunkReader reader(input, options.chunk_bytes);
  ShardSink sink(output, tokenizer, options);
  Origin origin{reader.name()};
  // At most `threads` chunks are under way, and they are taken in their order: bounded memory, and
  // the same shard for any number of threads.
  std::deque<std::future<Encoded>> under_way;
  const auto take_first = [&] {
    const Encoded chunk = under_way.front().get();
    under_way.pop_front();
    sink.take(chunk);
  };
  for (std::string chunk; reader.next(chunk);) {
    check_stop("preparing text");
    if (under_way.size() >= static_cast<size_t>(options.threads)) take_first();
    const auto lines = static_cast<uint64_t>(std::count(chunk.begin(), chunk.end(), '\n'));
    under_way.push_back(std::async(
        std::launch::async,
        [&tokenizer, &options, jsonl, origin](std::string text) {
          ChunkEncoder encoder(tokenizer, origin);
          Encoded encoded =
              jsonl ? encoder.encode_jsonl(text, options.jsonl_field) : encoder.encode_text(text);
          encoded.counts.input_bytes = text.size();
          if (!jsonl) encoded.text = std::move(text);
          return encoded;
        },
        std::move(chunk)));
    origin.first_line += lines;
  }
  while (!under_way.empty()) {
    check_stop("preparing text");
    take_first();
  }
  return sink.finish(reader.name());
}

TextCounts count_text(const std::string& path) {
  TextCounts counts;
  LineChunkReader reader(path);
  Origin origin{reader.name()};
  for (std::string chunk; reader.next(chunk);) {
    counts.input_bytes += chunk.size();
    std::string_view rest = chunk;
    std::string_view line;
    bool terminated = false;
    const uint64_t before = counts.lines;
    while (take_line(rest, line, terminated)) {
      require_utf8(line, origin, counts.lines - before);
      count_words(line, counts);
      counts.lines += terminated;
      counts.bytes += line.size() + terminated;
      counts.documents += is_document_line(line);
    }
    origin.first_line += counts.lines - before;
  }
  return counts;
}

}  // namespace stablemask
