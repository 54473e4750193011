#include "src/interop/gpt_families.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

#include "src/interop/rope_fields.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;

constexpr RopeNames kNeoxRope = {
    .theta = "rotary_emb_base", .partial = "rotary_pct", .default_partial = 0.25};

FfnKind read_activation(FieldReader& fields, const char* key, const char* fallback) {
  const std::string name = fields.text(key, fallback);
  if (name == "gelu") return FfnKind::kGelu;
  // Three spellings of one formula.
  for (const char* tanh : {"gelu_new", "gelu_fast", "gelu_pytorch_tanh"}) {
    if (name == tanh) return FfnKind::kGeluTanh;
  }
  fields.refuse(key,
                "is not supported in this family; supported are gelu, gelu_new, gelu_fast and "
                "gelu_pytorch_tanh");
}

const char* activation(const ModelConfig& model) {
  return model.ffn == FfnKind::kGeluTanh ? "gelu_new" : "gelu";
}

ExternalModel read_neox(FieldReader& fields) {
  ExternalModel external;
  ModelConfig& model = external.model;
  read_sizes(fields, model);
  if (model.channels % model.heads != 0) {
    fields.refuse("num_attention_heads", "must divide hidden_size");
  }
  model.ffn = read_activation(fields, "hidden_act", "gelu");
  model.norm = NormKind::kLayer;
  model.norm_eps = fields.number("layer_norm_eps", 1e-5);
  model.bias = BiasKind::kAll;
  fields.require_flag("attention_bias", true,
                      "biases in the feed-forward layer alone are not supported");
  model.parallel_residual = fields.flag("use_parallel_residual", true);
  model.tied_head = fields.flag("tie_word_embeddings", false);
  model.init_std = fields.number("initializer_range", model.init_std);
  external.context = fields.size("max_position_embeddings", 2048);
  read_rope(fields, external, kNeoxRope);
  model.stable_mask.enabled = false;
  return external;
}

Json write_neox(const ExternalModel& external) {
  const ModelConfig& model = external.model;
  Json json;
  write_sizes(model, json);
  json["hidden_act"] = activation(model);
  json["max_position_embeddings"] = external.context;
  json["initializer_range"] = model.init_std;
  json["layer_norm_eps"] = model.norm_eps;
  json["use_parallel_residual"] = model.parallel_residual;
  json["attention_bias"] = true;
  json["tie_word_embeddings"] = model.tied_head;
  json["attention_dropout"] = 0.0;
  json["hidden_dropout"] = 0.0;
  write_rope(external, json, kNeoxRope);
  return json;
}

ExternalModel read_gpt2(FieldReader& fields) {
  ExternalModel external;
  ModelConfig& model = external.model;
  model.vocab_size = fields.size("vocab_size");
  model.layers = fields.size("n_layer");
  model.channels = fields.size("n_embd");
  model.heads = fields.size("n_head");
  model.ffn_hidden = fields.size("n_inner", 4 * model.channels);
  if (model.channels % model.heads != 0) fields.refuse("n_head", "must divide n_embd");
  model.ffn = read_activation(fields, "activation_function", "gelu_new");
  model.norm = NormKind::kLayer;
  model.norm_eps = fields.number("layer_norm_epsilon", 1e-5);
  model.bias = BiasKind::kAll;
  model.tied_head = fields.flag("tie_word_embeddings", true);
  model.init_std = fields.number("initializer_range", model.init_std);
  model.position = Position::kLearned;
  model.learned_positions = external.context = fields.size("n_positions", 1024);
  fields.require_flag("scale_attn_weights", true, "scores without a scale are not supported");
  fields.require_flag("scale_attn_by_inverse_layer_idx", false,
                      "a scale by layer is not supported");
  // Dropout, precision of eager attention, and heads for classification.
  fields.skip({"resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn", "n_ctx",
               "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
               "summary_type", "summary_use_proj"});
  model.stable_mask.enabled = false;
  return external;
}

Json write_gpt2(const ExternalModel& external) {
  const ModelConfig& model = external.model;
  Json json;
  json["vocab_size"] = model.vocab_size;
  json["n_positions"] = external.context;
  json["n_embd"] = model.channels;
  json["n_layer"] = model.layers;
  json["n_head"] = model.heads;
  json["n_inner"] = model.ffn_hidden;
  json["activation_function"] = activation(model);
  json["layer_norm_epsilon"] = model.norm_eps;
  json["initializer_range"] = model.init_std;
  json["tie_word_embeddings"] = model.tied_head;
  for (const char* dropout : {"resid_pdrop", "embd_pdrop", "attn_pdrop"}) json[dropout] = 0.0;
  return json;
}

/// Llama's "model.layers.3.self_attn.q_proj.weight" in parts: "3", "self_attn.q_proj", "weight".
struct LlamaName {
  std::string layer;  ///< "": outside the layers
  std::string module, kind;
};

LlamaName parts_of(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  LlamaName parts;
  const size_t last = name.rfind('.');
  size_t begin = 0;
  if (name.starts_with(kLayers)) {
    const size_t dot = name.find('.', kLayers.size());
    parts.layer = name.substr(kLayers.size(), dot - kLayers.size());
    begin = dot + 1;
  }
  parts.module = name.substr(begin, last - begin);
  parts.kind = name.substr(last + 1);
  return parts;
}

struct ModuleName {
  std::string_view llama;
  const char* family;
};

std::string renamed(const LlamaName& name, const std::string& layers, const auto& modules) {
  for (const ModuleName& module : modules) {
    if (name.module != module.llama) continue;
    const std::string layer = name.layer.empty() ? "" : layers + name.layer + ".";
    return layer + module.family + "." + name.kind;
  }
  return "";
}

/// The number of a query, key or value projection, 0 to 2; -1: none of them.
int64_t qkv_part(const LlamaName& name) {
  constexpr std::array<std::string_view, 3> kParts = {"self_attn.q_proj", "self_attn.k_proj",
                                                      "self_attn.v_proj"};
  for (size_t part = 0; part < kParts.size(); ++part) {
    if (name.module == kParts[part]) return static_cast<int64_t>(part);
  }
  return -1;
}

/// For a tensor that the family lacks, which only a model that it cannot express has.
[[noreturn]] void no_place(const nn::ExternalTensor& tensor) {
  throw std::logic_error("no tensor of the family for " + tensor.name);
}

std::vector<TensorRows> place_as_neox(const ModelConfig& model, const nn::ExternalTensor& tensor) {
  static const std::vector<ModuleName> modules = {
      {"model.embed_tokens", "gpt_neox.embed_in"},
      {"model.norm", "gpt_neox.final_layer_norm"},
      {"lm_head", "embed_out"},
      {"input_layernorm", "input_layernorm"},
      {"post_attention_layernorm", "post_attention_layernorm"},
      {"self_attn.o_proj", "attention.dense"},
      {"mlp.up_proj", "mlp.dense_h_to_4h"},
      {"mlp.down_proj", "mlp.dense_4h_to_h"}};
  const LlamaName name = parts_of(tensor.name);
  if (const int64_t part = qkv_part(name); part >= 0) {
    // Head by head: its query rows, its key rows, its value rows.
    const int64_t size = model.resolved_head_dim();
    const std::string packed =
        "gpt_neox.layers." + name.layer + ".attention.query_key_value." + name.kind;
    std::vector<TensorRows> rows;
    for (int64_t head = 0; head < model.heads; ++head) {
      rows.push_back({packed, (3 * head + part) * size, size});
    }
    return rows;
  }
  const std::string found = renamed(name, "gpt_neox.layers.", modules);
  if (found.empty()) no_place(tensor);
  return {{found, 0, tensor.rows}};
}

std::vector<TensorRows> place_as_gpt2(const ModelConfig&, const nn::ExternalTensor& tensor) {
  static const std::vector<ModuleName> modules = {{"model.embed_tokens", "transformer.wte"},
                                                  {"model.embed_positions", "transformer.wpe"},
                                                  {"model.norm", "transformer.ln_f"},
                                                  {"lm_head", "lm_head"},
                                                  {"input_layernorm", "ln_1"},
                                                  {"post_attention_layernorm", "ln_2"}};
  // Stored as [in, out].
  static const std::vector<ModuleName> transposed = {
      {"self_attn.q_proj", "attn.c_attn"}, {"self_attn.k_proj", "attn.c_attn"},
      {"self_attn.v_proj", "attn.c_attn"}, {"self_attn.o_proj", "attn.c_proj"},
      {"mlp.up_proj", "mlp.c_fc"},         {"mlp.down_proj", "mlp.c_proj"}};
  const std::string layers = "transformer.h.";
  const LlamaName name = parts_of(tensor.name);
  if (const std::string found = renamed(name, layers, transposed); !found.empty()) {
    const int64_t part = std::max<int64_t>(qkv_part(name), 0);
    return {{found, part * tensor.rows, tensor.rows, name.kind == "weight"}};
  }
  const std::string found = renamed(name, layers, modules);
  if (found.empty()) no_place(tensor);
  return {{found, 0, tensor.rows}};
}

}  // namespace

std::vector<Family> gpt_families() {
  return {{"GPTNeoXForCausalLM",
           "gpt_neox",
           read_neox,
           write_neox,
           place_as_neox,
           "gpt_neox.",
           "embed_out.weight",
           {".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"}},
          {"GPT2LMHeadModel",
           "gpt2",
           read_gpt2,
           write_gpt2,
           place_as_gpt2,
           "transformer.",
           "lm_head.weight",
           {".attn.bias", ".attn.masked_bias"}}};
}

}  // namespace stablemask::interop
