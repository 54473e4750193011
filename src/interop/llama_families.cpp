#include "src/interop/llama_families.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "src/interop/rope_fields.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;

/// Defaults of a class for fields that its config.json does not state.
struct Defaults {
  int64_t context;
  int64_t kv_heads;  ///< 0: as many as heads
  int64_t head_dim;  ///< 0: channels / heads
};

/// The fields that all families of this file share.
ExternalModel read_shared(FieldReader& fields, const Defaults& defaults) {
  ExternalModel external;
  ModelConfig& model = external.model;
  read_sizes(fields, model);
  // null stands for as many as heads in every class, an absent field for the class's default.
  const int64_t kv_heads = fields.is_stated("num_key_value_heads") ? 0 : defaults.kv_heads;
  model.kv_heads = fields.size("num_key_value_heads", kv_heads);
  model.head_dim = fields.size("head_dim", defaults.head_dim);
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.refuse("hidden_act", "is not supported in this family; supported is silu");
  }
  model.ffn = FfnKind::kSwiglu;
  model.norm = NormKind::kRms;
  model.norm_eps = fields.number("rms_norm_eps", 1e-6);
  model.tied_head = fields.flag("tie_word_embeddings", false);
  model.init_std = fields.number("initializer_range", model.init_std);
  external.context = fields.size("max_position_embeddings", defaults.context);
  read_rope(fields, external);
  model.stable_mask.enabled = false;
  return external;
}

Json write_shared(const ExternalModel& external) {
  const ModelConfig& model = external.model;
  Json json;
  write_sizes(model, json);
  json["num_key_value_heads"] = model.resolved_kv_heads();
  json["head_dim"] = model.resolved_head_dim();
  json["hidden_act"] = "silu";
  json["max_position_embeddings"] = external.context;
  json["initializer_range"] = model.init_std;
  json["rms_norm_eps"] = model.norm_eps;
  json["tie_word_embeddings"] = model.tied_head;
  json["attention_dropout"] = 0.0;
  write_rope(external, json);
  return json;
}

ExternalModel read_llama(FieldReader& fields) {
  ExternalModel external = read_shared(fields, {.context = 2048, .kv_heads = 0, .head_dim = 0});
  if (external.model.channels % external.model.heads != 0) {
    fields.refuse("num_attention_heads", "must divide hidden_size in this family");
  }
  const bool bias = fields.flag("attention_bias", false);
  if (fields.flag("mlp_bias", false) != bias) {
    fields.refuse("mlp_bias",
                  "biases in the attention alone, or in the feed-forward layer alone, "
                  "are not supported");
  }
  external.model.bias = bias ? BiasKind::kAll : BiasKind::kNone;
  return external;
}

Json write_llama(const ExternalModel& external) {
  Json json = write_shared(external);
  json["attention_bias"] = external.model.bias == BiasKind::kAll;
  json["mlp_bias"] = external.model.bias == BiasKind::kAll;
  return json;
}

ExternalModel read_mistral(FieldReader& fields) {
  ExternalModel external =
      read_shared(fields, {.context = 4096 * 32, .kv_heads = 8, .head_dim = 0});
  // A query sees the last sliding_window keys, its own included, as with model.window.
  const int64_t window = fields.is_stated("sliding_window") ? 0 : 4096;
  external.model.window = fields.size("sliding_window", window);
  return external;
}

Json write_mistral(const ExternalModel& external) {
  Json json = write_shared(external);
  json["sliding_window"] = external.model.window ? Json(external.model.window) : Json(nullptr);
  return json;
}

/// Qwen's window, which layers from max_window_layers on have, or those that layer_types names.
int64_t read_qwen_window(FieldReader& fields, int64_t layers) {
  const bool used = fields.flag("use_sliding_window", false);
  const int64_t window = fields.size("sliding_window", used ? 4096 : 0);
  const JsonValue* first = fields.value("max_window_layers");
  const int64_t full_layers = first == nullptr ? 28 : first->integer;
  if (first != nullptr && first->kind != JsonValue::Kind::kInteger) {
    fields.refuse("max_window_layers", "must be an integer");
  }
  int64_t windowed = used ? std::clamp<int64_t>(layers - full_layers, 0, layers) : 0;
  const char* field = "max_window_layers";
  if (fields.has("layer_types")) {
    field = "layer_types";
    const std::vector<std::string> types = fields.texts(field);
    windowed = std::ranges::count(types, "sliding_attention");
    const auto known = windowed + std::ranges::count(types, "full_attention");
    if (static_cast<int64_t>(types.size()) != layers || known != layers) {
      fields.refuse(field, "must state full_attention or sliding_attention for every layer");
    }
    if (windowed > 0 && (!used || window == 0)) {
      fields.refuse(field, "has windows, but use_sliding_window and sliding_window state none");
    }
  }
  if (windowed != 0 && windowed != layers) {
    fields.refuse(field, "a window in some of the layers only is not supported");
  }
  return windowed > 0 ? window : 0;
}

void write_qwen_window(const ModelConfig& model, Json& json) {
  json["use_sliding_window"] = model.window > 0;
  json["sliding_window"] = model.window ? Json(model.window) : Json(nullptr);
  json["max_window_layers"] = model.window ? 0 : model.layers;
}

ExternalModel read_qwen2(FieldReader& fields) {
  ExternalModel external = read_shared(fields, {.context = 32768, .kv_heads = 32, .head_dim = 0});
  external.model.bias = BiasKind::kQkv;
  external.model.window = read_qwen_window(fields, external.model.layers);
  return external;
}

Json write_qwen2(const ExternalModel& external) {
  Json json = write_shared(external);
  write_qwen_window(external.model, json);
  return json;
}

ExternalModel read_qwen3(FieldReader& fields) {
  ExternalModel external = read_shared(fields, {.context = 32768, .kv_heads = 32, .head_dim = 128});
  external.model.qk_norm = true;
  external.model.window = read_qwen_window(fields, external.model.layers);
  fields.require_flag("attention_bias", false,
                      "biases of all projections of the attention alone are not supported");
  return external;
}

Json write_qwen3(const ExternalModel& external) {
  Json json = write_shared(external);
  json["attention_bias"] = false;
  write_qwen_window(external.model, json);
  return json;
}

}  // namespace

std::vector<TensorRows> place_as_llama(const ModelConfig&, const nn::ExternalTensor& tensor) {
  return {{tensor.name, 0, tensor.rows}};
}

std::vector<Family> llama_families() {
  const std::vector<std::string> buffers = {".rotary_emb.inv_freq"};
  const auto family = [&](const char* architecture, const char* type, auto read, auto write) {
    return Family{architecture,     type,   read, write, place_as_llama, "model.",
                  "lm_head.weight", buffers};
  };
  return {family("LlamaForCausalLM", "llama", read_llama, write_llama),
          family("MistralForCausalLM", "mistral", read_mistral, write_mistral),
          family("Qwen2ForCausalLM", "qwen2", read_qwen2, write_qwen2),
          family("Qwen3ForCausalLM", "qwen3", read_qwen3, write_qwen3)};
}

}  // namespace stablemask::interop
