#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "stablemask/base/json_source.h"

/// Reading configs of older format versions: each version that moves, removes or changes the
/// meaning of a field adds one step to the list in migrations.cpp and raises kConfigVersion. The
/// steps edit the parsed JSON, so the field table knows the newest names only.
namespace stablemask {

/// One edit of the parsed JSON. `from` and `to` are JSON pointers of object members, but for
/// kReplace.
struct ConfigChange {
  enum class Kind {
    kMove,     ///< renames or moves `from` to `to`; without effect when `to` is stated as well
    kRemove,   ///< drops `from`
    kReplace,  ///< gives `to` the value of the JSON text `value` where it is the string of the JSON
               ///< text `from`: that value's meaning to the old program
    kAdd,      ///< states `to` with the JSON text `value` unless it is stated: the behaviour of the
               ///< old program, where it differs from the field's default
  };
  Kind kind;
  std::string_view from;
  std::string_view to;
  std::string_view value = {};
};

/// From format version `from` to `from` + 1.
struct Migration {
  int64_t from;
  std::string_view reason;
  std::span<const ConfigChange> changes;
};

/// One step per version, from version 0 up to the current one.
std::span<const Migration> config_migrations();

/// Applies the steps of `migrations` from `version` on to a config's top-level object. Members keep
/// their positions in the file; added ones have none.
/// kAdd and kReplace changes are left out for a config written by hand without a version, which
/// asks for today's defaults.
enum class Behaviour { kOfItsVersion, kOfToday };
void migrate(JsonValue& root, int64_t version, Behaviour behaviour = Behaviour::kOfItsVersion,
             std::span<const Migration> migrations = config_migrations());

}  // namespace stablemask
