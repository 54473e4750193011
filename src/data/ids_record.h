#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stablemask {

/// A line of ids, {"ids": [5, 6, …], "trained": [[1, 2], …]}: a document. Of the ids in the ranges
/// [begin, end) of "trained" the loss is taken; without that field, of all. The first id of a
/// document with that field is predicted from nothing, so no range has it.
struct IdsRecord {
  std::vector<int32_t> ids;
  bool states_trained = false;
  std::vector<std::pair<int64_t, int64_t>> trained;  ///< ascending, within `ids`
};

/// Reads such lines, in memory of their ids.
class IdsReader {
 public:
  explicit IdsReader(int64_t vocab_size) : vocab_size_(vocab_size) {}

  /// "" or what is wrong with the line; other fields are passed over.
  std::string read(std::string_view line);
  const IdsRecord& record() const { return record_; }  ///< of the last line

 private:
  std::string check() const;

  int64_t vocab_size_;
  IdsRecord record_;
};

}  // namespace stablemask
