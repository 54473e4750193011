#include "stablemask/data/prepare.h"

#include <algorithm>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "src/data/files.h"
#include "src/data/line_encoders.h"
#include "src/data/prepare_documents.h"
#include "src/data/round_trip.h"
#include "src/data/samples.h"
#include "src/data/text_kind.h"
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

constexpr std::string_view kUnkWord = "<unk>";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr size_t kAppendedTokens = size_t{1} << 20;
// Bytes of text that may be encoded at one time: these, or two chunks a thread if that is more. A
// longer line is encoded alone.
constexpr size_t kMaxBytesUnderWay = size_t{64} << 20;
constexpr size_t kBytesOfAThread = size_t{2} << 20;

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

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
  std::vector<bool> trained;            // of samples: for each token
  std::vector<size_t> document_starts;  // indices of `tokens`
  TextCounts counts;
};

/// Offset, from 0, of the byte in a line of JSON where a problem is.
size_t byte_of(std::string_view json, const JsonSyntaxError& error) {
  size_t byte = 0;
  for (int64_t column = 1; column < error.at().column && byte < json.size(); ++column) {
    byte += std::max<size_t>(1, utf8_character_size(json.substr(byte)));
  }
  return byte;
}

/// "it has: a, b"
std::string fields_of(const JsonRecord& record) {
  std::vector<std::string> names;
  for (const std::string& name : record.keys) {
    // Printable as it is, in most corpora.
    const std::string quoted = in_quotes(name);
    const bool plain = !name.empty() && quoted == '"' + name + '"' &&
                       name.find_first_of(" ,;:") == std::string::npos;
    names.push_back(plain ? name : quoted);
  }
  if (names.empty()) return "it is an empty object";
  std::sort(names.begin(), names.end());
  if (names.size() < record.members) names.emplace_back("…");
  return "it has: " + join(names, ", ");
}

class ChunkEncoder {
 public:
  ChunkEncoder(const Tokenizer& tokenizer, LineEncoder& lines, const Origin& origin)
      : tokenizer_(tokenizer), lines_(lines), origin_(origin) {}

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
      encode_lines(document, number);
    }
    return std::move(result_);
  }

  /// A sample begins with Tokenizer::start_id, as every text that a model continues.
  Encoded encode_samples(std::string_view text, SampleTemplate form) {
    std::string_view json;
    bool terminated = false;
    for (uint64_t number = 0; take_line(text, json, terminated); ++number) {
      if (std::all_of(json.begin(), json.end(), is_space)) continue;
      require_utf8(json, origin_, number);
      begin_document();
      if (tokenizer_.lossless()) {
        encode_lines("\n", number);
      } else {
        result_.tokens.push_back(tokenizer_.start_id());
      }
      for (const SamplePart& part : sample_of(json, form, number)) {
        result_.trained.resize(result_.tokens.size(), false);
        encode_part(part.text, number);
        if (part.trained) result_.tokens.push_back(tokenizer_.end_of_text_id());
        result_.trained.resize(result_.tokens.size(), part.trained);
      }
    }
    return std::move(result_);
  }

 private:
  void begin_document() {
    result_.document_starts.push_back(result_.tokens.size());
    ++result_.counts.documents;
  }

  /// Adds a part of a sample.
  void encode_part(const std::string& text, uint64_t number) {
    if (text.empty()) return;
    if (tokenizer_.lossless()) return encode_lines(text, number);
    try {
      const bool begins = result_.document_starts.back() + 1 == result_.tokens.size();
      const std::vector<int32_t> ids = begins ? tokenizer_.encode(text) : continuation(text);
      result_.tokens.insert(result_.tokens.end(), ids.begin(), ids.end());
    } catch (const DataError& error) {
      origin_.fail(number, error.what());
    }
    result_.text += text;
    count_words(text, result_.counts);
    result_.counts.lines += static_cast<uint64_t>(std::ranges::count(text, '\n'));
    result_.counts.bytes += text.size();
  }

  /// Ids of a text that is not the first, without the space that a tokenizer adds before a text.
  std::vector<int32_t> continuation(const std::string& text) const {
    const std::vector<int32_t> before = tokenizer_.encode("\n");
    const std::vector<int32_t> all = tokenizer_.encode("\n" + text);
    const auto [in_all, in_before] =
        std::mismatch(all.begin(), all.end(), before.begin(), before.end());
    if (in_before != before.end()) return tokenizer_.encode(text);  // one piece spans both
    return {in_all, all.end()};
  }

  /// Adds a whole text of one line of the input.
  void encode_lines(std::string_view text, uint64_t number) {
    result_.text += text;
    std::string_view line;
    bool terminated = false;
    while (take_line(text, line, terminated)) encode_line(line, terminated, number);
  }

  /// read(json), with the errors of JSON's syntax as those of the line.
  template <typename Read>
  auto read_line(std::string_view json, uint64_t number, const Read& read) const {
    const size_t mark = json.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
    json.remove_prefix(mark);
    try {
      return read(json);
    } catch (const JsonSyntaxError& error) {
      origin_.fail(number, format("not valid JSON at byte %zu: %s", mark + byte_of(json, error) + 1,
                                  error.what()));
    }
  }

  std::vector<SamplePart> sample_of(std::string_view json, SampleTemplate form,
                                    uint64_t number) const {
    try {
      return read_line(json, number,
                       [&](std::string_view line) { return read_sample(line, form); });
    } catch (const SampleProblem& problem) {
      origin_.fail(number, problem.what());
    }
  }

  std::string field_text(std::string_view json, const std::string& field, uint64_t number) const {
    JsonRecord record = read_line(
        json, number, [&](std::string_view line) { return read_json_record(line, field); });
    if (record.kind != JsonValue::Kind::kObject) {
      origin_.fail(number, std::string("is of type ") + kind_name(record.kind) +
                               ", not a JSON object; write one object a line, for example with "
                               "jq -c '.[]' for an array");
    }
    if (!record.field) {
      origin_.fail(number, "has no field " + in_quotes(field) + "; " + fields_of(record) +
                               (record.members > 0 ? "; choose one with --field" : ""));
    }
    if (record.field->kind != JsonValue::Kind::kString) {
      origin_.fail(number, "the field " + in_quotes(field) + " is of type " +
                               kind_name(record.field->kind) + ", not a string");
    }
    return std::move(record.field->text);
  }

  void encode_line(std::string_view line, bool terminated, uint64_t number) {
    require_utf8(line, origin_, number);
    const size_t begin = result_.tokens.size();
    lines_.append(line, result_.tokens);
    // Word-level perplexity divides by the words of the text: the tokens must encode all of it.
    const std::string difference =
        round_trip_difference(tokenizer_, line, std::span(result_.tokens).subspan(begin));
    if (!difference.empty()) origin_.fail(number, difference);
    if (terminated) result_.tokens.push_back(tokenizer_.eos_id());
    count_words(line, result_.counts);
    result_.counts.lines += terminated;
    result_.counts.bytes += line.size() + terminated;
  }

  const Tokenizer& tokenizer_;
  LineEncoder& lines_;
  const Origin& origin_;
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
      while (written < end) {  // no second copy of the tokens of a long line
        const size_t slice_end = std::min(end, written + kAppendedTokens);
        append(chunk, static_cast<std::ptrdiff_t>(written), static_cast<std::ptrdiff_t>(slice_end));
        written = slice_end;
      }
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

  /// `sample_template`: of samples; "": text.
  ShardInfo finish(const std::string& name, const std::string& sample_template) {
    if (counts_.bytes == 0) throw DataError(name + " is empty: nothing to prepare");
    ShardInfo info;
    info.lines = counts_.lines;
    info.words = counts_.words;
    info.bytes = counts_.bytes;
    info.text_sha256 = text_hash_.hex();
    info.sample_template = sample_template;
    return writer_.finish(info);
  }

 private:
  void append(const Encoded& chunk, std::ptrdiff_t begin, std::ptrdiff_t end) {
    const std::vector<int32_t> tokens(chunk.tokens.begin() + begin, chunk.tokens.begin() + end);
    if (chunk.trained.empty()) {
      writer_.append(tokens);
    } else {
      writer_.append(tokens, {chunk.trained.begin() + begin, chunk.trained.begin() + end});
    }
  }

  ShardWriter writer_;
  const PrepareOptions& options_;
  Sha256 text_hash_;
  TextCounts counts_;
};

bool is_jsonl(const std::string& input, TextFormat format, LineChunkReader& reader) {
  if (format != TextFormat::kAuto) return format != TextFormat::kText;
  if (has_jsonl_name(input)) return true;
  if (!begins_like_jsonl(reader.head())) return false;
  if (input == "-") return true;
  log_warning(input +
              ": is read as text because of its name, but looks like JSONL; --format jsonl reads a "
              "document from each line, --format text reads it as it is");
  return false;
}

/// How the lines of a JSONL file that begins with `chunk` become samples; nullopt: each is a
/// document.
std::optional<SampleTemplate> sample_template_of(std::string_view chunk, const Origin& origin,
                                                 const PrepareOptions& options) {
  const bool forced = options.format == TextFormat::kSamples;
  if (!forced && options.format != TextFormat::kAuto) return std::nullopt;
  std::string_view line;
  bool terminated = false;
  for (uint64_t number = 0; take_line(chunk, line, terminated); ++number) {
    if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
    if (std::all_of(line.begin(), line.end(), is_space)) continue;
    // A file of documents may have fields of these names beside their text.
    if (!forced && has_key(line, options.jsonl_field)) return std::nullopt;
    const std::optional<SampleTemplate> form = template_of(line);
    if (form || !forced) return form;
    origin.fail(number,
                "has neither the fields \"prompt\" and \"completion\" nor the field \"messages\"");
  }
  return std::nullopt;
}

/// Whether the input holds samples. Standard input cannot be read twice: its format says so.
bool begins_with_samples(const std::string& input, const PrepareOptions& options) {
  if (options.format != TextFormat::kAuto) return options.format == TextFormat::kSamples;
  if (input == "-" || !has_jsonl_name(input)) return false;
  LineChunkReader reader(input, options.chunk_bytes);
  std::string chunk;
  require_plain_text(reader.head(), reader.name());
  return reader.next(chunk) && sample_template_of(chunk, Origin{reader.name()}, options);
}

/// Chunks that are being encoded, in the order of the text.
class UnderWay {
 public:
  UnderWay(ShardSink& sink, int threads)
      : sink_(sink),
        threads_(static_cast<size_t>(threads)),
        max_bytes_(std::max(kMaxBytesUnderWay, threads_ * kBytesOfAThread)) {}

  /// Waits until there is room for a chunk of this size.
  void make_room(size_t bytes) {
    while (!chunks_.empty() && (chunks_.size() >= threads_ || bytes_ + bytes > max_bytes_)) {
      take_first();
    }
  }
  void add(std::future<Encoded> chunk, size_t bytes) {
    chunks_.push_back({std::move(chunk), bytes});
    bytes_ += bytes;
  }
  bool empty() const { return chunks_.empty(); }
  void take_first() {
    const Encoded encoded = chunks_.front().encoded.get();
    bytes_ -= chunks_.front().bytes;
    chunks_.pop_front();
    sink_.take(encoded);
  }

 private:
  struct Chunk {
    std::future<Encoded> encoded;
    size_t bytes;
  };

  ShardSink& sink_;
  size_t threads_, max_bytes_;
  std::deque<Chunk> chunks_;
  size_t bytes_ = 0;
};

}  // namespace

void count_words(std::string_view line, TextCounts& counts) {
  for (size_t at = 0; at < line.size();) {
    while (at < line.size() && is_space(line[at])) ++at;
    const size_t begin = at;
    while (at < line.size() && !is_space(line[at])) ++at;
    if (at == begin) break;
    ++counts.words;
    counts.unk_words += line.substr(begin, at - begin) == kUnkWord;
  }
}

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
  if (!tokenizer.lossless() && !begins_with_samples(input, options)) {
    return prepare_documents(input, output, tokenizer, options);
  }
  require_other_file(output, {input});
  LineChunkReader reader(input, options.chunk_bytes);
  // Before it waits for text: an unwritable folder shows at once.
  ShardSink sink(output, tokenizer, options);
  require_plain_text(reader.head(), reader.name());
  const bool jsonl = is_jsonl(input, options.format, reader);
  // A bounded number of bytes is under way, and chunks are taken in their order: bounded memory,
  // and the same shard for any number of threads.
  LineEncoders encoders(tokenizer);  // outlives the chunks under way
  UnderWay under_way(sink, options.threads);
  std::optional<SampleTemplate> form;
  for (std::string chunk; reader.next(chunk);) {
    check_stop("preparing text");
    if (jsonl && reader.first_line() == 1) {
      form = sample_template_of(chunk, Origin{reader.name()}, options);
    }
    const size_t bytes = chunk.size();
    under_way.make_room(bytes);
    under_way.add(std::async(
                      std::launch::async,
                      [&tokenizer, &encoders, &options, jsonl, form,
                       origin = Origin{reader.name(), reader.first_line()}](std::string text) {
                        std::unique_ptr<LineEncoder> lines = encoders.take();
                        ChunkEncoder encoder(tokenizer, *lines, origin);
                        Encoded encoded = form    ? encoder.encode_samples(text, *form)
                                          : jsonl ? encoder.encode_jsonl(text, options.jsonl_field)
                                                  : encoder.encode_text(text);
                        encoders.give_back(std::move(lines));
                        encoded.counts.input_bytes = text.size();
                        if (!jsonl) encoded.text = std::move(text);
                        return encoded;
                      },
                      std::move(chunk)),
                  bytes);
  }
  while (!under_way.empty()) {
    check_stop("preparing text");
    under_way.take_first();
  }
  return sink.finish(reader.name(), form ? template_name(*form) : "");
}

TextCounts count_text(const std::string& path) {
  TextCounts counts;
  LineChunkReader reader(path);
  require_plain_text(reader.head(), reader.name());
  for (std::string chunk; reader.next(chunk);) {
    const Origin origin{reader.name(), reader.first_line()};
    counts.input_bytes += chunk.size();
    std::string_view rest = chunk;
    std::string_view line;
    bool terminated = false;
    for (uint64_t number = 0; take_line(rest, line, terminated); ++number) {
      require_utf8(line, origin, number);
      count_words(line, counts);
      counts.lines += terminated;
      counts.bytes += line.size() + terminated;
      counts.documents += is_document_line(line);
    }
  }
  return counts;
}

}  // namespace stablemask
