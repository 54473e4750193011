#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "stablemask/base/json_source.h"

namespace stablemask::interop {

/// The members of a JSON object of config.json. Each is read once, by the type that it must have;
/// null counts as absent, and `finish` refuses what nobody has read. All errors are
/// CheckpointErrors "FILE:LINE:COLUMN: FIELD: VALUE: REASON".
class FieldReader {
 public:
  /// `object` must outlive this and its copies; `prefix` ("rope_scaling.") precedes the names in
  /// messages.
  FieldReader(const JsonValue& object, std::string file, std::string prefix = "");

  bool is_stated(const std::string& key) const { return find(key) != nullptr; }
  bool has(const std::string& key) const;  ///< stated and not null

  int64_t size(const std::string& key);  ///< an integer of at least 1 that must be stated
  int64_t size(const std::string& key, int64_t fallback);
  double number(const std::string& key, double fallback);
  bool flag(const std::string& key, bool fallback);
  std::string text(const std::string& key, const std::string& fallback);
  std::vector<std::string> texts(const std::string& key);  ///< absent: empty
  std::optional<FieldReader> object(const std::string& key);
  const JsonValue* value(const std::string& key);  ///< of any type; null: absent

  /// Reads fields that do not change what the model computes.
  void skip(std::initializer_list<const char*> keys);
  /// Refuses a flag or list whose value asks for something that is not supported.
  void require_flag(const std::string& key, bool wanted, const char* reason);
  void require_absent(const std::string& key, const char* reason);

  /// Refuses the first field that was not read and is neither null nor in `ignored`.
  void finish(const std::vector<std::string>& ignored = {}) const;

  [[noreturn]] void refuse(const std::string& key, const std::string& reason) const;

 private:
  const JsonMember* find(const std::string& key) const;
  const JsonValue* take(const std::string& key);

  const JsonValue* object_;
  std::string file_, prefix_;
  std::set<std::string> read_;
};

}  // namespace stablemask::interop
