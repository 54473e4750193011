#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/config/config_fields.h"
#include "src/config/config_issues.h"

namespace stablemask {

/// A value that the user stated for a field, in the file or by --set.
struct StatedValue {
  const Field* field;
  ValueSource source;
  JsonValue json;        ///< from the file
  std::string argument;  ///< from --set: the text after "="

  /// Reads the value into `config`. Returns "" or what is wrong with it.
  std::string read_into(Config& config) const;
};

/// By the field's JSON pointer.
using StatedValues = std::map<std::string, StatedValue>;

/// Finds the fields that a config file and overrides state; a later statement replaces an earlier
/// one. Keys without a field, and what is no JSON object, become issues.
class ConfigReader {
 public:
  /// kSaved: the program stored the text, so that it means what its version meant.
  enum class Origin { kUser, kSaved };
  explicit ConfigReader(const std::string& name, Origin origin = Origin::kUser)
      : name_(name), origin_(origin), issues_(name) {}

  /// Reads a file's text, then the overrides ("path.to.field=value"). Throws ConfigError, without
  /// other issues, for a format version newer than kConfigVersion.
  void read(const std::string& text, const std::vector<std::string>& overrides);

  const StatedValues& stated() const { return stated_; }
  ConfigIssues& issues() { return issues_; }

 private:
  void read_text(const std::string& text);
  void read_override(const std::string& text);
  void read_version(JsonValue& root);
  void read_object(const JsonValue& object, const std::string& parent);
  void read_section(const Section& section, const JsonValue& value);
  void report_unknown_path(const std::string& pointer, const ValueSource& source);

  std::string name_;
  Origin origin_;
  StatedValues stated_;
  ConfigIssues issues_;
};

}  // namespace stablemask
