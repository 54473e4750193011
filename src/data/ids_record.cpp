#include "src/data/ids_record.h"

#include <nlohmann/json.hpp>

#include "stablemask/base/log.h"

namespace stablemask {
namespace {

/// Receives a line's JSON value by value. Each returns false for the end of the parsing.
class IdsHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit IdsHandler(IdsRecord& record) : record_(record) {}

  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("a boolean"); }
  bool number_integer(number_integer_t value) override { return integer(value); }
  bool number_unsigned(number_unsigned_t value) override {
    return value <= INT64_MAX ? integer(static_cast<int64_t>(value)) : other("a large number");
  }
  bool number_float(number_float_t, const string_t&) override { return other("a fraction"); }
  bool string(string_t&) override { return other("a text"); }
  bool binary(binary_t&) override { return other("binary"); }

  bool start_object(size_t) override {
    if (depth_++ > 0) return other("an object");
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ != 1) return true;
    field_ = name == "ids" ? Field::kIds : name == "trained" ? Field::kTrained : Field::kOther;
    bool& seen = field_ == Field::kIds ? has_ids_ : record_.states_trained;
    if (field_ == Field::kOther) return true;
    if (seen) return fail("the field \"" + name + "\" is stated twice");
    seen = true;
    return true;
  }
  bool start_array(size_t) override {
    ++depth_;
    if (depth_ == 1) return fail("is a list, not an object {\"ids\": […]}");
    if (field_ == Field::kIds && depth_ > 2) return wrong("a list");
    if (field_ == Field::kTrained && depth_ > 3) return wrong("a list");
    if (field_ == Field::kTrained && depth_ == 3) range_.clear();
    return true;
  }
  bool end_array() override {
    if (field_ == Field::kTrained && depth_ == 3) {
      if (range_.size() != 2) return fail("a range of \"trained\" is not [begin, end]");
      record_.trained.emplace_back(range_[0], range_[1]);
    }
    --depth_;
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return fail(format("not valid JSON at byte %zu", position));
  }

  /// "" or what is wrong with the line that was read.
  std::string problem() const {
    return problem_.empty() && !has_ids_ ? "has no field \"ids\", the list of token ids" : problem_;
  }

 private:
  enum class Field : uint8_t { kIds, kTrained, kOther };

  bool integer(int64_t value) {
    if (field_ == Field::kIds && depth_ == 2) {
      // An id beyond 32 bits is in no vocabulary.
      record_.ids.push_back(value < 0 || value > INT32_MAX ? -1 : static_cast<int32_t>(value));
      return true;
    }
    if (field_ == Field::kTrained && depth_ == 3) {
      range_.push_back(value);
      return true;
    }
    return other("a number");
  }
  bool other(const char* what) {
    if (depth_ == 0) return fail(std::string("is ") + what + ", not an object {\"ids\": […]}");
    return field_ == Field::kOther || wrong(what);
  }
  bool wrong(const char* what) {
    return fail(field_ == Field::kIds
                    ? std::string("\"ids\" is not a list of integers: it has ") + what
                    : std::string("\"trained\" is not a list of ranges [begin, end]: it has ") +
                          what);
  }
  bool fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
    return false;
  }

  IdsRecord& record_;
  std::vector<int64_t> range_;
  std::string problem_;
  int depth_ = 0;
  Field field_ = Field::kOther;
  bool has_ids_ = false;
};

}  // namespace

std::string IdsReader::read(std::string_view line) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  record_ = {};
  IdsHandler handler(record_);
  nlohmann::json::sax_parse(line, &handler);
  const std::string problem = handler.problem();
  return problem.empty() ? check() : problem;
}

std::string IdsReader::check() const {
  if (record_.ids.empty()) return "\"ids\" is empty";
  for (size_t i = 0; i < record_.ids.size(); ++i) {
    if (record_.ids[i] >= 0 && record_.ids[i] < vocab_size_) continue;
    return format("id number %zu of \"ids\" is not in the vocabulary of %lld", i + 1,
                  static_cast<long long>(vocab_size_));
  }
  int64_t last = 1;
  for (const auto& [begin, end] : record_.trained) {
    if (begin < last || end <= begin || end > static_cast<int64_t>(record_.ids.size())) {
      return format(
          "the range [%lld, %lld] of \"trained\" is empty, has the first id, goes beyond the last, "
          "or is not after the range before it",
          static_cast<long long>(begin), static_cast<long long>(end));
    }
    last = end;
  }
  return "";
}

}  // namespace stablemask
