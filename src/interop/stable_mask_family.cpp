#include "src/interop/stable_mask_family.h"

#include <nlohmann/json.hpp>
#include <string>

#include "src/interop/llama_families.h"
#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const JsonValue& value) {
  using Kind = JsonValue::Kind;
  switch (value.kind) {
    case Kind::kNull:
      return nullptr;
    case Kind::kBool:
      return value.boolean;
    case Kind::kInteger:
      return value.integer;
    case Kind::kNumber:
      return value.number;
    case Kind::kString:
      return value.text;
    case Kind::kArray: {
      Json list = Json::array();
      for (const JsonValue& item : value.items) list.push_back(to_json(item));
      return list;
    }
    case Kind::kObject:
      break;
  }
  Json object = Json::object();
  for (const JsonMember& member : value.members) object[member.key] = to_json(member.value);
  return object;
}

ExternalModel read(FieldReader& fields) {
  const JsonValue* stated = fields.value("stablemask");
  if (stated == nullptr) fields.refuse("stablemask", "is missing");
  ExternalModel external;
  external.context = fields.size("max_position_embeddings");
  Json config = to_json(*stated);
  config["train"] = {{"context", external.context}};
  try {
    external.model = parse_saved_config(json_text(config), "config.json").model;
  } catch (const ConfigError& error) {
    fields.refuse("stablemask", error.what());
  }
  // Copies of what "stablemask" says, for transformers.
  fields.skip({"auto_map", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
               "num_key_value_heads", "head_dim", "intermediate_size", "tie_word_embeddings"});
  return external;
}

Json write(const ExternalModel& external) {
  const ModelConfig& model = external.model;
  Config config;
  config.model = model;
  config.train.context = external.context;
  resolve(config);
  const Json all = Json::parse(dump_config(config));
  Json json;
  json["auto_map"] = {{"AutoConfig", "configuration_stablemask.StableMaskConfig"},
                      {"AutoModelForCausalLM", "modeling_stablemask.StableMaskForCausalLM"}};
  write_sizes(model, json);
  json["num_key_value_heads"] = model.resolved_kv_heads();
  json["head_dim"] = model.resolved_head_dim();
  json["max_position_embeddings"] = external.context;
  json["tie_word_embeddings"] = model.tied_head;
  json["stablemask"] = {{"version", all.at("version")}, {"model", all.at("model")}};
  return json;
}

}  // namespace

Family stable_mask_family() {
  return {"StableMaskForCausalLM",
          "stablemask",
          read,
          write,
          place_as_llama,
          "model.",
          "lm_head.weight",
          {}};
}

}  // namespace stablemask::interop
