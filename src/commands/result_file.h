#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "stablemask/base/output.h"

namespace stablemask::commands {

/// What decides the results of a run: names for messages and values, such as ("--n", "4").
using RunFacts = std::vector<std::pair<std::string, std::string>>;

/// What a result is made from.
struct ResultInput {
  std::string hash;  ///< 16 characters
  std::string name;  ///< for messages: "prompts.jsonl: line 3"
};

/// A JSONL file of results that take long to make. Until all are there they are in PATH.partial,
/// behind a line with the facts of the run, each with the hash of its input; `commit` makes PATH of
/// them in one step. An object for the same path goes on behind the whole lines that an interrupted
/// run has written, however that ended. A pipe, a device and standard output ("-") are written
/// straight.
class ResultFile {
 public:
  /// `inputs`: of each result. Throws ConfigError when PATH cannot be written, when another process
  /// writes it, or when PATH.partial was begun with other facts or inputs: the first is named.
  ResultFile(const std::string& path, const RunFacts& facts, std::vector<ResultInput> inputs);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;

  size_t complete() const { return complete_; }  ///< results that are there
  /// Appends the next result, one line of JSON without its line end.
  void write(std::string_view result);
  /// Publishes the results, once all are there.
  void commit();

  bool is_standard_output() const { return output_.is_standard_output(); }
  /// The file that an interrupted run leaves; "" where there is none.
  const std::string& partial() const { return partial_; }

 private:
  void open_partial();
  void resume(const RunFacts& facts);
  void require_facts(const std::string& header, const RunFacts& facts) const;
  bool is_result(std::string_view line) const;
  void begin_at(uint64_t size);

  OutputFile output_;
  std::vector<ResultInput> inputs_;
  std::string partial_;
  int fd_ = -1;  // of `partial_`
  size_t complete_ = 0;
};

}  // namespace stablemask::commands
