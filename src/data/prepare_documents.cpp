#include "src/data/prepare_documents.h"

#include <algorithm>
#include <deque>
#include <future>
#include <optional>
#include <utility>
#include <vector>

#include "src/data/text_kind.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/data/line_reader.h"

namespace stablemask {
namespace {

/// Bytes of text that are encoded at one time, unless one document is longer.
constexpr size_t kMostBytesAtATime = size_t{16} << 20;

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\n\v\f\r") == std::string_view::npos;
}

struct Document {
  std::string text;
  uint64_t line = 0;  ///< of the input, its first
};

/// The documents of a text or of a JSONL file.
class DocumentSource {
 public:
  DocumentSource(const std::string& input, const PrepareOptions& options)
      : reader_(input), options_(options), jsonl_(is_jsonl(input)) {
    require_plain_text(reader_.head(), reader_.name());
  }

  bool next(Document& document) { return jsonl_ ? next_record(document) : next_text(document); }
  [[noreturn]] void fail(uint64_t line, const std::string& what) const {
    throw DataError(format("%s: line %llu: %s", reader_.name().c_str(),
                           static_cast<unsigned long long>(line), what.c_str()));
  }
  const std::string& name() const { return reader_.name(); }
  uint64_t input_bytes() const { return input_bytes_; }

 private:
  bool is_jsonl(const std::string& input) {
    if (options_.format == TextFormat::kText) return false;
    if (options_.format != TextFormat::kAuto || has_jsonl_name(input)) return true;
    return input == "-" && begins_like_jsonl(reader_.head());
  }

  bool next_line(std::string_view& line, bool& terminated) {
    if (!reader_.next(line, terminated)) return false;
    check_stop("preparing text");
    input_bytes_ += line.size() + terminated;
    if (const std::string problem = utf8_problem(line); !problem.empty()) reader_.fail(problem);
    return true;
  }

  /// Lines up to the next that begins a document; blank ones before the first belong to it.
  bool next_text(Document& document) {
    document = std::move(begun_);
    begun_ = {};
    std::string_view line;
    for (bool terminated = false; next_line(line, terminated);) {
      const bool begins = is_document_line(line) && !is_blank(document.text);
      Document& target = begins ? begun_ : document;
      if (target.line == 0) target.line = reader_.number();
      target.text.append(line);
      if (terminated) target.text += '\n';
      if (begins) return true;
      require_length(document);
    }
    return !document.text.empty();
  }

  bool next_record(Document& document) {
    std::string_view json;
    for (bool terminated = false; next_line(json, terminated);) {
      constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
      if (json.starts_with(kByteOrderMark)) json.remove_prefix(kByteOrderMark.size());
      if (is_blank(json)) continue;
      document = {field_text(json), reader_.number()};
      require_length(document);
      return true;
    }
    return false;
  }

  std::string field_text(std::string_view json) const {
    JsonRecord record;
    try {
      record = read_json_record(json, options_.jsonl_field);
    } catch (const JsonSyntaxError& error) {
      reader_.fail(format("not valid JSON at column %lld: %s",
                          static_cast<long long>(error.at().column), error.what()));
    }
    if (record.kind != JsonValue::Kind::kObject) {
      reader_.fail("is not a JSON object; write one object a line");
    }
    const std::string field = in_quotes(options_.jsonl_field);
    if (!record.field) {
      reader_.fail("has no field " + field + "; choose the one with the text with --field");
    }
    if (record.field->kind != JsonValue::Kind::kString) {
      reader_.fail("the field " + field + " is not a string");
    }
    return std::move(record.field->text);
  }

  void require_length(const Document& document) const {
    if (document.text.size() <= Tokenizer::kLongestText) return;
    fail(document.line,
         format("a document of more than %zu bytes begins, and this tokenizer encodes each as a "
                "whole; divide the text into documents, as JSONL for example",
                Tokenizer::kLongestText));
  }

  LineReader reader_;
  const PrepareOptions& options_;
  bool jsonl_;
  Document begun_;  ///< of a text: the next document, as far as it is read
  uint64_t input_bytes_ = 0;
};

/// Writes documents in their order.
class DocumentSink {
 public:
  DocumentSink(const std::string& output, const Tokenizer& tokenizer)
      : writer_(output, static_cast<uint64_t>(tokenizer.vocab_size()), tokenizer.sha256()) {}

  void take(const Document& document, const std::vector<int32_t>& ids) {
    writer_.begin_document();
    writer_.append(ids);
    text_hash_.update(document.text.data(), document.text.size());
    count_words(document.text, counts);
    counts.lines += static_cast<uint64_t>(std::ranges::count(document.text, '\n'));
    counts.bytes += document.text.size();
    ++counts.documents;
  }

  ShardInfo finish(const std::string& name) {
    if (counts.bytes == 0) throw DataError(name + " is empty: nothing to prepare");
    ShardInfo info;
    info.lines = counts.lines;
    info.words = counts.words;
    info.bytes = counts.bytes;
    info.text_sha256 = text_hash_.hex();
    return writer_.finish(info);
  }

  TextCounts counts;

 private:
  ShardWriter writer_;
  Sha256 text_hash_;
};

/// The documents that are encoded at a time.
struct DocumentBatch {
  std::vector<Document> documents;
  std::vector<std::vector<int32_t>> ids;
  size_t bytes = 0;
};

/// Encodes every `threads`-th document from `first` on.
void encode_some(const Tokenizer& tokenizer, const DocumentSource& source, size_t first,
                 size_t threads, DocumentBatch& batch) {
  for (size_t i = first; i < batch.documents.size(); i += threads) {
    const Document& document = batch.documents[i];
    try {
      batch.ids[i] = tokenizer.encode(document.text);
    } catch (const DataError& error) {
      source.fail(document.line, error.what());
    }
    batch.ids[i].push_back(tokenizer.end_of_text_id());
  }
}

void encode_batch(const Tokenizer& tokenizer, const DocumentSource& source, int threads,
                  DocumentBatch& batch) {
  batch.ids.assign(batch.documents.size(), {});
  const auto count = std::min(static_cast<size_t>(threads), batch.documents.size());
  std::vector<std::future<void>> others;
  for (size_t i = 1; i < count; ++i) {
    others.push_back(std::async(std::launch::async, [&tokenizer, &source, i, count, &batch] {
      encode_some(tokenizer, source, i, count, batch);
    }));
  }
  encode_some(tokenizer, source, 0, std::max<size_t>(count, 1), batch);
  for (std::future<void>& other : others) other.get();
}

}  // namespace

ShardInfo prepare_documents(const std::string& input, const std::string& output,
                            const Tokenizer& tokenizer, const PrepareOptions& options) {
  require_other_file(output, {input});
  if (!tokenizer.can_encode()) static_cast<void>(tokenizer.encode(""));  // throws
  DocumentSource source(input, options);
  DocumentSink sink(output, tokenizer);
  constexpr size_t kBytesOfAThread = size_t{1} << 20;
  const size_t most =
      std::min(kMostBytesAtATime, kBytesOfAThread * static_cast<size_t>(options.threads));
  DocumentBatch batch;
  const auto flush = [&] {
    encode_batch(tokenizer, source, options.threads, batch);
    for (size_t i = 0; i < batch.documents.size(); ++i) {
      sink.take(batch.documents[i], batch.ids[i]);
    }
    batch = {};
    sink.counts.input_bytes = source.input_bytes();
    if (options.progress) options.progress(sink.counts);
  };
  for (Document document; source.next(document);) {
    if (batch.bytes + document.text.size() > most) flush();
    batch.bytes += document.text.size();
    batch.documents.push_back(std::move(document));
  }
  flush();
  return sink.finish(source.name());
}

}  // namespace stablemask
