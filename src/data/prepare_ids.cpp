#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "src/data/ids_record.h"
#include "src/data/prepare_documents.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/log.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "stablemask/data/line_reader.h"
#include "stablemask/data/prepare.h"

namespace stablemask {
namespace {

/// Writes documents of ids.
class IdsSink {
 public:
  IdsSink(const std::string& output, const Tokenizer& tokenizer)
      : tokenizer_(tokenizer),
        writer_(output, static_cast<uint64_t>(tokenizer.vocab_size()), tokenizer.sha256()) {}

  /// Returns "" or what is wrong with the line.
  std::string take(const IdsRecord& record) {
    if (counts.documents == 0) samples_ = record.states_trained;
    if (record.states_trained != samples_) {
      return samples_ ? "has no field \"trained\", which the lines before have"
                      : "has a field \"trained\", which the lines before have not";
    }
    writer_.begin_document();
    append(record);
    ++counts.documents;
    // Of other tokenizers the text is not known.
    if (!tokenizer_.lossless()) return "";
    const std::string text = tokenizer_.decode(record.ids);
    text_hash_.update(text.data(), text.size());
    count_words(text, counts);
    counts.lines += static_cast<uint64_t>(std::ranges::count(text, '\n'));
    counts.bytes += text.size();
    return "";
  }

  ShardInfo finish() {
    ShardInfo info;
    info.lines = counts.lines;
    info.words = counts.words;
    info.bytes = counts.bytes;
    info.text_sha256 = text_hash_.hex();
    if (samples_) info.sample_template = "ids";
    return writer_.finish(info);
  }

  TextCounts counts;

 private:
  void append(const IdsRecord& record) {
    if (!samples_) return writer_.append(record.ids);
    std::vector<bool> trained(record.ids.size());
    for (const auto& [begin, end] : record.trained) {
      std::fill(trained.begin() + begin, trained.begin() + end, true);
    }
    writer_.append(record.ids, trained);
  }

  const Tokenizer& tokenizer_;
  ShardWriter writer_;
  Sha256 text_hash_;
  bool samples_ = false;
};

}  // namespace

ShardInfo prepare_ids(const std::string& input, const std::string& output,
                      const Tokenizer& tokenizer, const PrepareOptions& options) {
  require_other_file(output, {input});
  LineReader reader(input);
  IdsSink sink(output, tokenizer);
  IdsReader parser(tokenizer.vocab_size());
  std::string_view line;
  constexpr uint64_t kInterval = uint64_t{1} << 20;
  for (bool terminated = false; reader.next(line, terminated);) {
    check_stop("preparing ids");
    const uint64_t before = sink.counts.input_bytes;
    sink.counts.input_bytes += line.size() + terminated;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    std::string problem = parser.read(line);
    if (problem.empty()) problem = sink.take(parser.record());
    if (!problem.empty()) reader.fail(problem);
    const bool shown = before / kInterval != sink.counts.input_bytes / kInterval;
    if (options.progress && shown) options.progress(sink.counts);
  }
  if (sink.counts.documents == 0) throw DataError(reader.name() + " is empty: nothing to prepare");
  return sink.finish();
}

}  // namespace stablemask
