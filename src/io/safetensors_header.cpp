#include "src/io/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "stablemask/base/error.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"

namespace stablemask {
namespace {

constexpr size_t kMaxDepth = 3;
constexpr uint64_t kMaxNumber = uint64_t{1} << 53;
constexpr const char* kMetadataKey = "__metadata__";

bool is_unsupported_dtype(std::string_view name) {
  static constexpr std::string_view kNames[] = {
      "I8",      "I16",     "U16",         "U32",         "U64", "C64",     "F8_E4M3",
      "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4",  "F6_E2M3", "F6_E3M2"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

/// Receives the header piece by piece, so that what is refused is never built: memory stays
/// proportional to what is accepted.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const std::string& path, SafetensorsHeader& header) : path_(path), header_(header) {}

  bool start_object(std::size_t) override {
    check_depth();
    switch (where_) {
      case Where::kOutside:
        where_ = Where::kHeader;
        return true;
      case Where::kHeader:
        where_ = name_ == kMetadataKey ? Where::kMetadata : Where::kTensor;
        dtype_.clear();
        shape_.reset();
        offsets_.reset();
        return true;
      default:
        wrong_value("an object");
    }
  }

  bool key(std::string& key) override {
    switch (where_) {
      case Where::kHeader:
        header_key(key);
        break;
      case Where::kMetadata:
        if (header_.metadata.count(key) != 0) duplicate(key);
        field_ = key;
        break;
      default:
        tensor_key(key);
    }
    return true;
  }

  bool end_object() override {
    if (where_ == Where::kTensor) finish_tensor();
    where_ = where_ == Where::kHeader ? Where::kDone : Where::kHeader;
    return true;
  }

  bool start_array(std::size_t) override {
    check_depth();
    if (where_ != Where::kTensor || field_ == "dtype") wrong_value("a list");
    where_ = Where::kNumbers;
    (field_ == "shape" ? shape_ : offsets_).emplace();
    return true;
  }

  bool end_array() override {
    where_ = Where::kTensor;
    return true;
  }

  bool string(std::string& value) override {
    if (where_ == Where::kMetadata) {
      header_.metadata[field_] = value;
    } else if (where_ == Where::kTensor && field_ == "dtype") {
      dtype_ = value;
      type_ = element_type(value);
    } else {
      wrong_value("a string");
    }
    return true;
  }

  bool number_unsigned(nlohmann::json::number_unsigned_t value) override {
    if (where_ != Where::kNumbers) wrong_value("a number");
    if (value > kMaxNumber) fail_number(std::to_string(value));
    std::vector<uint64_t>& numbers = field_ == "shape" ? *shape_ : *offsets_;
    numbers.push_back(value);
    if (numbers.size() > kSafetensorsMaxRank) {
      fail(field_ == "shape" ? "rank" : "offsets",
           format("%s has %s of more than %zu numbers", in_quotes(name_).c_str(), field_.c_str(),
                  kSafetensorsMaxRank));
    }
    return true;
  }

  bool number_integer(nlohmann::json::number_integer_t value) override {
    if (where_ != Where::kNumbers) wrong_value("a number");
    fail_number(std::to_string(value));
  }

  bool number_float(nlohmann::json::number_float_t, const std::string& text) override {
    if (where_ != Where::kNumbers) wrong_value("a number");
    fail_number(text);
  }

  bool null() override { wrong_value("null"); }
  bool boolean(bool value) override { wrong_value(value ? "true" : "false"); }
  bool binary(nlohmann::json::binary_t&) override { wrong_value("binary"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    // The parser turns a number that no double holds into an error of its own.
    if (where_ == Where::kNumbers && error.id == kOutOfRange) fail_number("too large");
    if (where_ == Where::kDone) fail("after-object", "more text after the object");
    fail("syntax", format("not JSON at byte %zu of the header", position));
  }

 private:
  enum class Where { kOutside, kHeader, kMetadata, kTensor, kNumbers, kDone };
  static constexpr int kOutOfRange = 406;  // nlohmann's "number overflow parsing"

  [[noreturn]] void fail(const char* name, const std::string& detail) const {
    fail_safetensors(path_, name, detail);
  }

  [[noreturn]] void fail_number(const std::string& text) const {
    fail("number", in_quotes(name_) + " has the number " + in_quotes(text) + " in its " + field_ +
                       "; only integers from 0 to 2^53 are");
  }

  [[noreturn]] void duplicate(const std::string& key) const {
    fail("duplicate-key", "the key " + in_quotes(key) + " stands twice in one object");
  }

  [[noreturn]] void wrong_value(const char* what) const {
    if (where_ == Where::kMetadata || (where_ == Where::kHeader && name_ == kMetadataKey)) {
      fail("metadata", std::string("__metadata__ holds ") + what + " instead of strings by name");
    }
    const std::string place =
        where_ == Where::kHeader ? in_quotes(name_) : field_ + " of " + in_quotes(name_);
    fail("wrong-type", place + " is or holds " + what);
  }

  void check_depth() {
    const size_t depth = where_ == Where::kOutside   ? 0
                         : where_ == Where::kHeader  ? 1
                         : where_ == Where::kNumbers ? 3
                                                     : 2;
    if (depth + 1 > kMaxDepth) fail("depth", "nested deeper than 3 levels");
  }

  void header_key(const std::string& key) {
    name_ = key;
    field_.clear();
    if (key == kMetadataKey) {
      if (has_metadata_) duplicate(key);
      has_metadata_ = true;
      return;
    }
    const std::string problem = safetensors_name_problem(key);
    if (!problem.empty()) fail("name", "the name " + in_quotes(key) + " " + problem);
    if (header_.entries.count(key) != 0) duplicate(key);
    if (header_.entries.size() == kSafetensorsMaxTensors) {
      fail("too-many-tensors", format("more than %zu", kSafetensorsMaxTensors));
    }
  }

  void tensor_key(const std::string& key) {
    const bool seen = key == "dtype"          ? !dtype_.empty()
                      : key == "shape"        ? shape_.has_value()
                      : key == "data_offsets" ? offsets_.has_value()
                                              : unknown_field(key);
    field_ = key;
    if (seen) duplicate(key);
  }

  [[noreturn]] bool unknown_field(const std::string& key) const {
    fail("unknown-field", in_quotes(name_) + " has a field " + in_quotes(key));
  }

  ElementType element_type(const std::string& dtype) const {
    if (const std::optional<ElementType> type = parse_element_name(dtype)) return *type;
    if (is_unsupported_dtype(dtype)) {
      fail("unsupported-dtype",
           in_quotes(name_) + " is of type " + dtype + ", which is not read here");
    }
    fail("unknown-dtype", in_quotes(name_) + " is of an unknown type " + in_quotes(dtype));
  }

  void finish_tensor() {
    const char* missing = dtype_.empty() ? "dtype"
                          : !shape_      ? "shape"
                          : !offsets_    ? "data_offsets"
                                         : nullptr;
    if (missing) fail("missing-field", in_quotes(name_) + " has no " + missing);
    if (offsets_->size() != 2) {
      fail("offsets", format("%s has %zu data_offsets instead of two", in_quotes(name_).c_str(),
                             offsets_->size()));
    }
    header_.entries.emplace(
        name_,
        SafetensorsEntry{type_, {shape_->begin(), shape_->end()}, (*offsets_)[0], (*offsets_)[1]});
  }

  const std::string& path_;
  SafetensorsHeader& header_;
  Where where_ = Where::kOutside;
  bool has_metadata_ = false;
  std::string name_;   // of the tensor, or __metadata__
  std::string field_;  // of the tensor, or of the metadata
  std::string dtype_;
  ElementType type_ = ElementType::kF32;
  std::optional<std::vector<uint64_t>> shape_;
  std::optional<std::vector<uint64_t>> offsets_;
};

void check_text(std::string_view json, const std::string& path) {
  if (json.starts_with("\xEF\xBB\xBF")) {
    fail_safetensors(path, "encoding", "the header starts with a byte order mark");
  }
  if (json.find('\0') != std::string_view::npos) {
    fail_safetensors(path, "encoding", "the header has a NUL byte");
  }
  if (!is_utf8(json)) fail_safetensors(path, "encoding", "the header is not UTF-8");
  if (!json.starts_with('{')) {
    fail_safetensors(path, "not-an-object", "the header does not start with '{'");
  }
  // Other white space would do for JSON, but the format pads with spaces.
  const char last = json[json.find_last_not_of(' ')];
  if (last == '\n' || last == '\r' || last == '\t') {
    fail_safetensors(path, "after-object", "the header is padded with other bytes than spaces");
  }
}

void check_size(const std::string& name, const SafetensorsEntry& entry, uint64_t data_bytes,
                const std::string& path) {
  int64_t bytes = static_cast<int64_t>(element_size(entry.type));
  for (const int64_t dimension : entry.shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) {
      fail_safetensors(path, "overflow",
                       "the size of " + in_quotes(name) + " does not fit 63 bits");
    }
  }
  if (entry.begin > entry.end || entry.end > data_bytes) {
    fail_safetensors(path, "offsets",
                     format("%s is at [%llu, %llu) in %llu bytes of data", in_quotes(name).c_str(),
                            static_cast<unsigned long long>(entry.begin),
                            static_cast<unsigned long long>(entry.end),
                            static_cast<unsigned long long>(data_bytes)));
  }
  if (entry.end - entry.begin != static_cast<uint64_t>(bytes)) {
    fail_safetensors(path, "size-mismatch",
                     format("%s takes %llu bytes instead of %lld", in_quotes(name).c_str(),
                            static_cast<unsigned long long>(entry.end - entry.begin),
                            static_cast<long long>(bytes)));
  }
}

/// Tensors must tile the data exactly.
void check_tiling(const SafetensorsHeader& header, uint64_t data_bytes, const std::string& path) {
  using Item = std::pair<const std::string, SafetensorsEntry>;
  std::vector<const Item*> items;
  items.reserve(header.entries.size());
  for (const Item& item : header.entries) items.push_back(&item);
  std::sort(items.begin(), items.end(), [](const Item* a, const Item* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t next = 0;
  for (const Item* item : items) {
    if (item->second.begin != next) {
      const bool overlap = item->second.begin < next;
      fail_safetensors(path, overlap ? "overlap" : "gap",
                       in_quotes(item->first) + (overlap ? " shares bytes with the tensor before it"
                                                         : " leaves bytes unused before it"));
    }
    next = item->second.end;
  }
  if (next != data_bytes) {
    fail_safetensors(path, "trailing-data",
                     format("%llu bytes after the last tensor",
                            static_cast<unsigned long long>(data_bytes - next)));
  }
}

}  // namespace

void fail_safetensors(const std::string& path, const char* name, const std::string& detail) {
  throw CheckpointError(path + ": bad safetensors file (" + name + "): " + detail);
}

std::string safetensors_name_problem(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kSafetensorsMaxNameBytes) return "is longer than 512 bytes";
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7F; };
  if (std::any_of(name.begin(), name.end(), is_control)) return "has control characters";
  if (!is_utf8(name)) return "is not UTF-8";
  return "";
}

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                           const std::string& path) {
  check_text(json, path);
  SafetensorsHeader header;
  HeaderReader reader(path, header);
  nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  for (const auto& [name, entry] : header.entries) check_size(name, entry, data_bytes, path);
  check_tiling(header, data_bytes, path);
  return header;
}

}  // namespace stablemask
