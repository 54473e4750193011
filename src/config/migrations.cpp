#include "src/config/migrations.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace stablemask {
namespace {

constexpr ConfigChange kTo2[] = {
    {ConfigChange::Kind::kAdd, "", "/model/stable_mask/beyond", R"("none")"},
    {ConfigChange::Kind::kAdd, "", "/model/stable_mask/gamma", R"("slopes")"},
};

constexpr ConfigChange kTo3[] = {
    {ConfigChange::Kind::kReplace, R"("bf16")", "/train/precision", R"("dtype")"},
};

constexpr Migration kMigrations[] = {
    {0,
     "adds the key \"version\"; the fields added with it (train.save_minutes, data.verify, "
     "optimizer.kind) have defaults that leave the results of older runs as they were",
     {}},
    {1,
     "rows beyond the mask length keep the pseudo mass of an infinite one, and gamma's default "
     "depends on the position encoding; older programs left those rows without and took slopes",
     kTo2},
    {2,
     "train.precision \"bf16\", then the default, meant the precision of train.dtype; since then "
     "it rounds the operands of products on a CPU",
     kTo3},
};

using Kind = JsonValue::Kind;

/// Parent pointer and last token of "/a/b/c": {"/a/b", "c"}.
std::pair<std::string_view, std::string_view> split(std::string_view pointer) {
  const size_t slash = pointer.rfind('/');
  return {pointer.substr(0, slash), pointer.substr(slash + 1)};
}

std::vector<JsonMember>::iterator find_member(JsonValue& object, std::string_view key) {
  return std::find_if(object.members.begin(), object.members.end(),
                      [&](const JsonMember& member) { return member.key == key; });
}

/// The object at `pointer`; nullptr: there is none.
JsonValue* find_object(JsonValue& root, std::string_view pointer) {
  if (pointer.empty()) return root.kind == Kind::kObject ? &root : nullptr;
  const auto [parent, key] = split(pointer);
  JsonValue* object = find_object(root, parent);
  if (object == nullptr) return nullptr;
  const auto member = find_member(*object, key);
  if (member == object->members.end()) return nullptr;
  return member->value.kind == Kind::kObject ? &member->value : nullptr;
}

/// As find_object, but creates what is missing and spells `true` and `false` out as
/// {"enabled": …}. nullptr: there is another value, which the field table will refuse.
JsonValue* make_object(JsonValue& root, std::string_view pointer) {
  if (pointer.empty()) return root.kind == Kind::kObject ? &root : nullptr;
  const auto [parent, key] = split(pointer);
  JsonValue* object = make_object(root, parent);
  if (object == nullptr) return nullptr;
  auto member = find_member(*object, key);
  if (member == object->members.end()) {
    JsonValue empty;
    empty.kind = Kind::kObject;
    object->members.push_back({std::string(key), {}, std::move(empty)});
    return &object->members.back().value;
  }
  JsonValue& value = member->value;
  if (value.kind == Kind::kBool) {
    JsonValue spelt_out;
    spelt_out.kind = Kind::kObject;
    spelt_out.at = value.at;
    spelt_out.members.push_back({"enabled", member->at, value});
    value = std::move(spelt_out);
  }
  return value.kind == Kind::kObject ? &value : nullptr;
}

bool is_stated(JsonValue& root, std::string_view pointer) {
  const auto [parent, key] = split(pointer);
  JsonValue* object = find_object(root, parent);
  return object != nullptr && find_member(*object, key) != object->members.end();
}

std::optional<JsonMember> take(JsonValue& root, std::string_view pointer) {
  const auto [parent, key] = split(pointer);
  JsonValue* object = find_object(root, parent);
  if (object == nullptr) return std::nullopt;
  const auto member = find_member(*object, key);
  if (member == object->members.end()) return std::nullopt;
  JsonMember taken = std::move(*member);
  object->members.erase(member);
  return taken;
}

void put(JsonValue& root, std::string_view pointer, JsonMember member) {
  const auto [parent, key] = split(pointer);
  JsonValue* object = make_object(root, parent);
  if (object == nullptr) return;
  member.key = key;
  object->members.push_back(std::move(member));
}

void forget_positions(JsonValue& value) {
  value.at = {};
  for (JsonValue& item : value.items) forget_positions(item);
  for (JsonMember& member : value.members) {
    member.at = {};
    forget_positions(member.value);
  }
}

/// The value of a JSON text, which has no position in a file.
JsonValue made(std::string_view text) {
  JsonValue value = parse_json(text);
  forget_positions(value);
  return value;
}

void apply(JsonValue& root, const ConfigChange& change) {
  switch (change.kind) {
    case ConfigChange::Kind::kRemove:
      take(root, change.from);
      return;
    case ConfigChange::Kind::kMove:
      if (is_stated(root, change.to)) return;
      if (auto member = take(root, change.from)) put(root, change.to, *std::move(member));
      return;
    case ConfigChange::Kind::kReplace: {
      const JsonValue old = parse_json(change.from);
      const auto member = take(root, change.to);
      if (!member) return;
      const bool replaces = member->value.kind == old.kind && member->value.text == old.text;
      put(root, change.to, replaces ? JsonMember{"", {}, made(change.value)} : *member);
      return;
    }
    case ConfigChange::Kind::kAdd:
      if (!is_stated(root, change.to)) put(root, change.to, {"", {}, made(change.value)});
      return;
  }
}

}  // namespace

std::span<const Migration> config_migrations() { return kMigrations; }

void migrate(JsonValue& root, int64_t version, Behaviour behaviour,
             std::span<const Migration> migrations) {
  for (const Migration& step : migrations) {
    if (step.from < version) continue;
    for (const ConfigChange& change : step.changes) {
      const bool renames =
          change.kind == ConfigChange::Kind::kMove || change.kind == ConfigChange::Kind::kRemove;
      if (renames || behaviour == Behaviour::kOfItsVersion) apply(root, change);
    }
  }
}

}  // namespace stablemask
