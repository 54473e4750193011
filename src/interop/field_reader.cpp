#include "src/interop/field_reader.h"

#include <algorithm>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask::interop {

using Kind = JsonValue::Kind;

FieldReader::FieldReader(const JsonValue& object, std::string file, std::string prefix)
    : object_(&object), file_(std::move(file)), prefix_(std::move(prefix)) {
  std::set<std::string> keys;
  for (const JsonMember& member : object.members) {
    if (!keys.insert(member.key).second) refuse(member.key, "is stated twice");
  }
}

const JsonMember* FieldReader::find(const std::string& key) const {
  const auto found = std::ranges::find(object_->members, key, &JsonMember::key);
  return found == object_->members.end() ? nullptr : &*found;
}

bool FieldReader::has(const std::string& key) const {
  const JsonMember* member = find(key);
  return member != nullptr && member->value.kind != Kind::kNull;
}

const JsonValue* FieldReader::take(const std::string& key) {
  read_.insert(key);
  return has(key) ? &find(key)->value : nullptr;
}

int64_t FieldReader::size(const std::string& key) {
  if (!has(key)) refuse(key, "is missing");
  return size(key, 0);
}

int64_t FieldReader::size(const std::string& key, int64_t fallback) {
  const JsonValue* value = take(key);
  if (value == nullptr) return fallback;
  if (value->kind != Kind::kInteger || value->integer < 1) {
    refuse(key, "must be an integer of at least 1");
  }
  return value->integer;
}

double FieldReader::number(const std::string& key, double fallback) {
  const JsonValue* value = take(key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) refuse(key, "must be a number");
  return value->number;
}

bool FieldReader::flag(const std::string& key, bool fallback) {
  const JsonValue* value = take(key);
  if (value == nullptr) return fallback;
  if (value->kind != Kind::kBool) refuse(key, "must be true or false");
  return value->boolean;
}

std::string FieldReader::text(const std::string& key, const std::string& fallback) {
  const JsonValue* value = take(key);
  if (value == nullptr) return fallback;
  if (value->kind != Kind::kString) refuse(key, "must be a string");
  return value->text;
}

std::vector<std::string> FieldReader::texts(const std::string& key) {
  const JsonValue* value = take(key);
  if (value == nullptr) return {};
  if (value->kind != Kind::kArray) refuse(key, "must be a list of strings");
  std::vector<std::string> all;
  for (const JsonValue& item : value->items) {
    if (item.kind != Kind::kString) refuse(key, "must be a list of strings");
    all.push_back(item.text);
  }
  return all;
}

std::optional<FieldReader> FieldReader::object(const std::string& key) {
  const JsonValue* value = take(key);
  if (value == nullptr) return std::nullopt;
  if (value->kind != Kind::kObject) refuse(key, "must be an object");
  return FieldReader(*value, file_, prefix_ + key + ".");
}

const JsonValue* FieldReader::value(const std::string& key) { return take(key); }

void FieldReader::skip(std::initializer_list<const char*> keys) {
  read_.insert(keys.begin(), keys.end());
}

void FieldReader::require_flag(const std::string& key, bool wanted, const char* reason) {
  if (flag(key, wanted) != wanted) refuse(key, reason);
}

void FieldReader::require_absent(const std::string& key, const char* reason) {
  const JsonValue* value = take(key);
  if (value == nullptr) return;
  const bool empty = (value->kind == Kind::kObject && value->members.empty()) ||
                     (value->kind == Kind::kArray && value->items.empty());
  if (!empty) refuse(key, reason);
}

void FieldReader::finish(const std::vector<std::string>& ignored) const {
  for (const JsonMember& member : object_->members) {
    if (member.value.kind == Kind::kNull || read_.count(member.key) > 0) continue;
    if (std::ranges::find(ignored, prefix_ + member.key) != ignored.end()) continue;
    refuse(member.key,
           "is not known and may change what the model computes; if it does not, import with "
           "--ignore " +
               prefix_ + member.key);
  }
}

void FieldReader::refuse(const std::string& key, const std::string& reason) const {
  const JsonMember* member = find(key);
  const std::string name = prefix_ + key;
  if (member == nullptr) throw CheckpointError(file_ + ": " + name + ": " + reason);
  throw CheckpointError(format("%s:%lld:%lld: ", file_.c_str(),
                               static_cast<long long>(member->at.line),
                               static_cast<long long>(member->at.column)) +
                        name + ": " + describe(member->value) + ": " + reason);
}

}  // namespace stablemask::interop
