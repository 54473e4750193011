#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/json_source.h"

namespace stablemask {

/// Where a value comes from: a position of the file, an override, or neither (a default).
struct ValueSource {
  JsonPosition at;  ///< line 0: not from the file
  std::string set;  ///< "path=value" of --set; "": not from --set
};

/// "--set path=value", "NAME:LINE:COLUMN", or "" for a default.
std::string place_of(const ValueSource& source, const std::string& name);

/// The errors of a config.
class ConfigIssues {
 public:
  /// `name` stands for the config file in messages.
  explicit ConfigIssues(std::string name) : name_(std::move(name)) {}

  /// An error at the JSON pointer `pointer` ("": the whole config) that the values of `sources`
  /// cause. Overrides are named first; of several positions in the file the first.
  void add(const std::string& pointer, const std::vector<ValueSource>& sources,
           const std::string& message);

  bool empty() const { return issues_.empty(); }
  bool concerns(std::string_view pointer) const;

  /// One line each, in the order of the file; those of overrides last.
  std::string text() const;

 private:
  struct Issue {
    std::string pointer;
    bool from_set;
    JsonPosition at;
    std::string line;
  };

  std::string name_;
  std::vector<Issue> issues_;
};

}  // namespace stablemask
