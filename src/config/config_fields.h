#pragma once

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "stablemask/config/config.h"

/// The field table: every knob of a config is written down once, here, and parsing, checking,
/// dumping, the schema and the reference follow from it.
namespace stablemask {

/// Where a field's value lies in a Config. The type decides how it looks in JSON.
using FieldRef = std::variant<bool*, int64_t*, double*, std::string*, std::vector<std::string>*,
                              PerHead*, GammaSpec*, MaskLengthSpec*, Position*, FfnKind*, NormKind*,
                              AttentionBackend*, ScheduleKind*, DeviceKind*, DtypeKind*,
                              NonFinitePolicy*, VerifyKind*, OptimizerKind*>;

/// Allowed numbers, each of a list.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool above_low = false;   ///< low itself is not allowed
  bool below_high = false;  ///< high itself is not allowed
};

struct Field {
  std::string_view name;
  FieldRef (*in)(Config&);
  Range range;
  bool frozen;  ///< may not change when a run is resumed
  std::string_view meaning;
  std::span<const std::string_view> choices = {};  ///< of a text; none: any text
};

struct Section {
  std::string_view pointer;  ///< JSON pointer: "/model", "/model/stable_mask"
  std::string_view meaning;
  std::span<const Field> fields;
  bool on_off = false;  ///< `true` or `false` may stand for the object: the field "enabled"
};

/// In the order of the struct Config; a section follows the one it lies in.
std::span<const Section> config_sections();

/// nullptr: there is none at this JSON pointer.
const Section* find_section(std::string_view pointer);

std::string field_pointer(const Section& section, const Field& field);

/// Names of an enumeration's values in JSON, in their order.
std::span<const std::string_view> names_of(Position);
std::span<const std::string_view> names_of(FfnKind);
std::span<const std::string_view> names_of(NormKind);
std::span<const std::string_view> names_of(AttentionBackend);
std::span<const std::string_view> names_of(ScheduleKind);
std::span<const std::string_view> names_of(DeviceKind);
std::span<const std::string_view> names_of(DtypeKind);
std::span<const std::string_view> names_of(NonFinitePolicy);
std::span<const std::string_view> names_of(VerifyKind);
std::span<const std::string_view> names_of(OptimizerKind);

/// Model sizes by name: what model.preset sets before anything else is read.
struct Preset {
  std::string_view name;
  int64_t layers, channels, heads, ffn_hidden, vocab_size;
};
std::span<const Preset> model_presets();

}  // namespace stablemask
