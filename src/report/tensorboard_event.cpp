#include "src/report/tensorboard_event.h"

#include <cstring>

namespace stablemask {
namespace {

// Numbers of fields and values of enumerations, from the .proto files named in the header.
namespace event {
constexpr uint32_t kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5;
}
namespace summary {
constexpr uint32_t kValue = 1;
}
namespace value {
constexpr uint32_t kTag = 1, kSimpleValue = 2, kTensor = 8, kMetadata = 9;
}
namespace metadata {
constexpr uint32_t kPluginData = 1, kDataClass = 4;
constexpr uint64_t kDataClassTensor = 2;
}  // namespace metadata
namespace plugin_data {
constexpr uint32_t kName = 1;
}
namespace tensor {
constexpr uint32_t kType = 1, kShape = 2, kStringValue = 8;
constexpr uint64_t kTypeString = 7;
}  // namespace tensor

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

/// Appends the fields of one message.
class Writer {
 public:
  void number(uint32_t field, uint64_t x) {
    varint(field << 3 | kVarint);
    varint(x);
  }
  void fixed(uint32_t field, double x) { plain(field << 3 | kFixed64, x); }
  void fixed(uint32_t field, float x) { plain(field << 3 | kFixed32, x); }
  void bytes(uint32_t field, std::string_view x) {
    varint(field << 3 | kBytes);
    varint(x.size());
    out_ += x;
  }
  const std::string& message() const { return out_; }

 private:
  void varint(uint64_t x) {
    for (; x >= 0x80; x >>= 7) out_ += static_cast<char>(x | 0x80);
    out_ += static_cast<char>(x);
  }
  template <class T>
  void plain(uint32_t key, T x) {
    varint(key);
    char raw[sizeof x];
    std::memcpy(raw, &x, sizeof x);  // wire format and host are little-endian
    out_.append(raw, sizeof x);
  }

  std::string out_;
};

/// One field of a message: `number` for varints, `bytes` for all other wire types.
struct WireField {
  uint32_t field = 0;
  WireType type = kVarint;
  uint64_t number = 0;
  std::string_view bytes;

  template <class T>
  T plain() const {
    T x{};
    if (bytes.size() == sizeof x) bytes.copy(reinterpret_cast<char*>(&x), sizeof x);
    return x;
  }
};

/// Reads the fields of one message in order.
class Reader {
 public:
  explicit Reader(std::string_view message) : rest_(message) {}

  /// nullopt at the end, and at bytes that are no field.
  std::optional<WireField> next() {
    if (rest_.empty()) return std::nullopt;
    const uint64_t key = varint();
    WireField field;
    field.field = static_cast<uint32_t>(key >> 3);
    field.type = static_cast<WireType>(key & 7);
    switch (field.type) {
      case kVarint:
        field.number = varint();
        break;
      case kFixed64:
        field.bytes = take(8);
        break;
      case kFixed32:
        field.bytes = take(4);
        break;
      case kBytes:
        field.bytes = take(varint());
        break;
      default:
        failed_ = true;
    }
    if (failed_) return std::nullopt;
    return field;
  }
  bool failed() const { return failed_; }

 private:
  uint64_t varint() {
    uint64_t x = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      x |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return x;
    }
    failed_ = true;
    return 0;
  }
  std::string_view take(uint64_t size) {
    if (failed_ || size > rest_.size()) {
      failed_ = true;
      return {};
    }
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view rest_;
  bool failed_ = false;
};

/// Calls `use` with every field; false: not the wire format.
template <class Use>
bool read_fields(std::string_view message, Use use) {
  Reader reader(message);
  while (const std::optional<WireField> field = reader.next()) {
    if (!use(*field)) return false;
  }
  return !reader.failed();
}

std::string encode_scalar(const TensorboardEvent::Scalar& scalar) {
  Writer out;
  out.bytes(value::kTag, scalar.tag);
  out.fixed(value::kSimpleValue, scalar.value);
  return out.message();
}

/// A tensor of type string without dimensions, for the plugin "text".
std::string encode_text(const TensorboardEvent::Text& text) {
  Writer content;
  content.number(tensor::kType, tensor::kTypeString);
  content.bytes(tensor::kShape, "");
  content.bytes(tensor::kStringValue, text.markdown);
  Writer plugin;
  plugin.bytes(plugin_data::kName, "text");
  Writer about;
  about.bytes(metadata::kPluginData, plugin.message());
  about.number(metadata::kDataClass, metadata::kDataClassTensor);
  Writer out;
  out.bytes(value::kTag, text.tag);
  out.bytes(value::kTensor, content.message());
  out.bytes(value::kMetadata, about.message());
  return out.message();
}

bool decode_value(std::string_view bytes, TensorboardEvent& out) {
  std::string tag;
  std::optional<float> scalar;
  std::optional<std::string> text;
  const auto read_tensor = [&](const WireField& field) {
    if (field.field == tensor::kStringValue) text = field.bytes;
    return true;
  };
  const bool sound = read_fields(bytes, [&](const WireField& field) {
    if (field.field == value::kTag) tag = field.bytes;
    if (field.field == value::kSimpleValue) scalar = field.plain<float>();
    return field.field != value::kTensor || read_fields(field.bytes, read_tensor);
  });
  if (scalar) out.scalars.push_back({tag, *scalar});
  if (text) out.texts.push_back({tag, *text});
  return sound;
}

}  // namespace

std::string encode_event(const TensorboardEvent& in) {
  Writer values;
  for (const auto& scalar : in.scalars) values.bytes(summary::kValue, encode_scalar(scalar));
  for (const auto& text : in.texts) values.bytes(summary::kValue, encode_text(text));
  Writer out;
  out.fixed(event::kWallTime, in.wall_time);
  if (in.step != 0) out.number(event::kStep, static_cast<uint64_t>(in.step));
  if (!in.file_version.empty()) out.bytes(event::kFileVersion, in.file_version);
  if (!values.message().empty()) out.bytes(event::kSummary, values.message());
  return out.message();
}

std::optional<TensorboardEvent> decode_event(std::string_view bytes) {
  TensorboardEvent out;
  const auto read_value = [&](const WireField& field) {
    return field.field != summary::kValue || decode_value(field.bytes, out);
  };
  const bool sound = read_fields(bytes, [&](const WireField& field) {
    if (field.field == event::kWallTime) out.wall_time = field.plain<double>();
    if (field.field == event::kStep) out.step = static_cast<int64_t>(field.number);
    if (field.field == event::kFileVersion) out.file_version = field.bytes;
    return field.field != event::kSummary || read_fields(field.bytes, read_value);
  });
  if (!sound) return std::nullopt;
  return out;
}

}  // namespace stablemask
