#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stablemask {

/// What an event of a TensorBoard event file holds: the parts of TensorFlow's protocol buffer
/// message `Event` (event.proto, summary.proto, tensor.proto) that scalars and texts need.
struct TensorboardEvent {
  struct Scalar {
    std::string tag;
    float value = 0;
    bool operator==(const Scalar&) const = default;
  };
  /// Shown by TensorBoard's text plugin, as Markdown.
  struct Text {
    std::string tag;
    std::string markdown;
    bool operator==(const Text&) const = default;
  };

  double wall_time = 0;  ///< seconds since 1970
  int64_t step = 0;
  std::string file_version;  ///< of the first event of a file; else ""
  std::vector<Scalar> scalars;
  std::vector<Text> texts;
};

/// The version that TensorBoard expects in the first event of a file.
inline constexpr const char* kEventFileVersion = "brain.Event:2";

/// Protocol buffer wire format. Texts must be UTF-8.
std::string encode_event(const TensorboardEvent& event);

/// nullopt: not the wire format. Fields that TensorboardEvent lacks are passed over.
std::optional<TensorboardEvent> decode_event(std::string_view bytes);

}  // namespace stablemask
