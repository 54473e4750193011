#pragma once

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "stablemask/config/config.h"

/// The field table: each field of a config is declared once, in config_fields.cpp or
/// training_fields.cpp; parsing, checking, dumping, the JSON Schema and the reference are generated
/// from it.
namespace stablemask {

/// Pointer to a field's member of a Config. Its type decides the JSON form.
using FieldRef =
    std::variant<bool*, int64_t*, double*, std::string*, std::vector<std::string>*,
                 std::vector<TrainShard>*, PerHead*, GammaSpec*, MaskLengthSpec*, Position*,
                 FfnKind*, NormKind*, AttentionBackend*, ScheduleKind*, DeviceKind*, DtypeKind*,
                 NonFinitePolicy*, VerifyKind*, OptimizerKind*, BeyondMask*, ShardKind*,
                 ReduceDtype*, StateDtype*, RopeScaling*, BiasKind*, Precision*, Fp8Gradients*>;

/// Allowed numbers; for a list, of each element.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool above_low = false;   ///< low itself is not allowed
  bool below_high = false;  ///< high itself is not allowed
  bool or_zero = false;     ///< 0 is allowed in addition, as "off"
};

struct Field {
  std::string_view name;
  FieldRef (*in)(Config&);
  Range range;
  bool frozen;  ///< may not change when a run is resumed
  std::string_view meaning;
  std::span<const std::string_view> choices = {};  ///< allowed texts; empty: any
  bool line_ends = false;                          ///< texts may contain "\n"
};

struct Section {
  std::string_view pointer;  ///< JSON pointer: "/model", "/model/stable_mask"
  std::string_view meaning;
  std::span<const Field> fields;
  bool on_off = false;  ///< `true` or `false` may stand for the object: the field "enabled"
};

/// In the order of the members of Config; a nested section follows its parent.
std::span<const Section> config_sections();

/// nullptr: there is no section at this JSON pointer.
const Section* find_section(std::string_view pointer);

/// nullptr: the section has no such field.
const Field* find_field(const Section& section, std::string_view name);

std::string field_pointer(const Section& section, const Field& field);

/// JSON names of the values of an enumeration, in the order of their declaration.
std::span<const std::string_view> names_of(Position);
std::span<const std::string_view> names_of(FfnKind);
std::span<const std::string_view> names_of(NormKind);
std::span<const std::string_view> names_of(BiasKind);
std::span<const std::string_view> names_of(AttentionBackend);
std::span<const std::string_view> names_of(ScheduleKind);
std::span<const std::string_view> names_of(DeviceKind);
std::span<const std::string_view> names_of(DtypeKind);
std::span<const std::string_view> names_of(Precision);
std::span<const std::string_view> names_of(Fp8Gradients);
std::span<const std::string_view> names_of(NonFinitePolicy);
std::span<const std::string_view> names_of(ShardKind);
std::span<const std::string_view> names_of(ReduceDtype);
std::span<const std::string_view> names_of(StateDtype);
std::span<const std::string_view> names_of(VerifyKind);
std::span<const std::string_view> names_of(OptimizerKind);
std::span<const std::string_view> names_of(BeyondMask);

/// Model sizes by name, the defaults that model.preset selects.
struct Preset {
  std::string_view name;
  int64_t layers, channels, heads, ffn_hidden, vocab_size;
};
std::span<const Preset> model_presets();
inline constexpr std::string_view kPresetPointer = "/model/preset";
/// Whether presets set the field at this JSON pointer.
bool is_preset_size(std::string_view pointer);

}  // namespace stablemask
