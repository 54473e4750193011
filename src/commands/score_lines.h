#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/data/line_reader.h"

namespace stablemask::commands {

/// A line of the input of `score`: a text, or a context and its continuation; or token ids in the
/// place of texts.
struct ScoreLine {
  uint64_t number = 0;                 ///< from 1; blank lines count
  std::optional<std::string> context;  ///< of a pair of texts
  std::string text;                    ///< of a pair the continuation; empty: ids
  std::vector<int32_t> ids;            ///< of a pair both lists
  std::optional<int64_t> context_ids;  ///< of a pair of lists: the length of the first one

  bool has_ids() const { return !ids.empty(); }
  bool is_pair() const { return context || context_ids; }
};

/// The lines of a JSONL file, or of standard input for "-". Each is an object with the string field
/// `field`, or with the string fields "context" and "continuation"; where it has none of these,
/// with the list "ids", or with the lists "context_ids" and "continuation_ids". Other fields are
/// not read, blank lines are skipped.
class ScoreLines {
 public:
  /// Throws DataError when the file cannot be opened.
  ScoreLines(const std::string& path, std::string field);

  /// False at the end. Throws DataError, with the number of the line, for what is not such an
  /// object; and Stopped.
  bool next(ScoreLine& line);
  int64_t bytes() const { return bytes_; }  ///< read so far
  /// Throws DataError: "NAME: line NUMBER: WHAT".
  [[noreturn]] void fail(uint64_t number, const std::string& what) const;
  /// Throws DataError when there was no line.
  void require_some() const;

 private:
  std::optional<std::string> string_field(std::string_view json, const std::string& name) const;
  void take(std::string_view json, ScoreLine& line) const;
  bool take_ids(std::string_view json, ScoreLine& line) const;
  [[noreturn]] void fail_half(std::string_view json, const char* present, const char* absent) const;

  LineReader reader_;
  std::string field_;
  int64_t bytes_ = 0;
  bool some_ = false;
};

/// Counts of a text that a perplexity is divided by.
struct WordCounts {
  uint64_t words = 0;   ///< runs of bytes other than ASCII white space
  uint64_t lines = 0;   ///< line ends
  uint64_t pieces = 0;  ///< len(re.split(r"\s+", text)), which lm-eval divides by
};
WordCounts word_counts(std::string_view text);

}  // namespace stablemask::commands
