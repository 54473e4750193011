#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Answers to keys that are no field: names from other trainers, misplaced and misspelt ones.
namespace stablemask {

/// A key of other trainers.
struct ForeignKey {
  std::string_view section;  ///< where the entry applies: "optimizer"; "": anywhere
  std::string_view key;      ///< lower case, with underscores
  std::string_view path;     ///< the field or section meant: "train.steps"; "": not supported
  std::string_view note;  ///< differences in meaning; why it is not supported, what to use instead
};
std::span<const ForeignKey> foreign_keys();

/// What to say about `key` in the object at `parent` (a JSON pointer, "": the whole config), which
/// is no field there: the field meant, or that it is not supported, or a near spelling.
std::string unknown_key(std::string_view key, const std::string& parent);

}  // namespace stablemask
