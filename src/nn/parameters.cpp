#include "stablemask/nn/parameters.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>
#include <string_view>

#include "src/nn/declare.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask::nn {
namespace {

constexpr const char* kBiasSuffix = "_bias";

Parameter matrix(const std::string& name, int64_t rows, int64_t columns, Init init,
                 std::vector<ExternalTensor> external) {
  return {name, {rows, columns}, Role::kProjection, init, -1, std::move(external), true};
}

Parameter vector(const std::string& name, int64_t size, Init init, const std::string& external) {
  return {name, {size}, Role::kVector, init, -1, {{external, size}}, false};
}

/// The bias of `projection`, whose external tensors are called "….weight": "qkv" → "qkv_bias",
/// "q_proj.weight" → "q_proj.bias".
Parameter bias_of(const Parameter& projection) {
  std::vector<ExternalTensor> external = projection.external;
  for (ExternalTensor& tensor : external) {
    tensor.name = tensor.name.substr(0, tensor.name.rfind('.')) + ".bias";
  }
  return {projection.name + kBiasSuffix,
          {projection.shape[0]},
          Role::kVector,
          Init::kZeros,
          -1,
          std::move(external),
          false};
}

/// The projection and, if `biased`, its bias.
void add_projection(std::vector<Parameter>& list, Parameter projection, bool biased) {
  list.push_back(std::move(projection));
  if (biased) list.push_back(bias_of(list.back()));
}

/// The low-rank adapter of `base`, if config.lora asks for one: each external tensor of the base
/// has factors of its own, A [r, in] and B [its rows, r]; those of all are stacked in the order of
/// the rows. PEFT's initialisation: A Kaiming-uniform with a = √5, B zero.
std::vector<Parameter> adapter_parameters(const ModelConfig& config, const Parameter& base) {
  if (!config.lora.adapts(base.name)) return {};
  const int64_t rank = config.lora.rank;
  Parameter a = base, b = base;
  a.name += kAdapterA;
  b.name += kAdapterB;
  a.shape = {static_cast<int64_t>(base.external.size()) * rank, base.shape[1]};
  b.shape = {base.shape[0], rank};
  a.role = b.role = Role::kAdapter;
  a.init = Init::kFanInUniform;
  b.init = Init::kZeros;
  for (size_t i = 0; i < base.external.size(); ++i) {
    const std::string& name = base.external[i].name;
    const std::string stem = name.substr(0, name.rfind('.'));  // without ".weight"
    a.external[i] = {stem + ".lora_A.weight", rank};
    b.external[i].name = stem + ".lora_B.weight";
  }
  return {a, b};
}

/// The adapters follow the projections that they belong to.
std::vector<Parameter> with_adapters(const ModelConfig& config, std::vector<Parameter> list) {
  std::vector<Parameter> all;
  for (Parameter& parameter : list) {
    const std::vector<Parameter> adapter = adapter_parameters(config, parameter);
    all.push_back(std::move(parameter));
    all.insert(all.end(), adapter.begin(), adapter.end());
  }
  return all;
}

/// The projections of a block; their places tell their adapters' dropouts apart.
constexpr std::string_view kProjections[] = {"qkv", "proj", "up", "down"};

/// Appends a module's parameters with the module's prefix and the prefix of Llama's names.
void append(std::vector<Parameter>& all, const std::vector<Parameter>& module,
            const std::string& prefix, const std::string& external, int64_t block) {
  for (Parameter parameter : module) {
    parameter.name = prefix + parameter.name;
    for (ExternalTensor& tensor : parameter.external) tensor.name = external + tensor.name;
    parameter.block = block;
    all.push_back(std::move(parameter));
  }
}

std::vector<Parameter>::const_iterator find_declared(const std::vector<Parameter>& declared,
                                                     const std::string& name) {
  return std::find_if(declared.begin(), declared.end(),
                      [&](const Parameter& one) { return one.name == name; });
}

}  // namespace

std::vector<Parameter> mask_parameters(const ModelConfig& config) {
  const StableMaskConfig& mask = config.stable_mask;
  if (!mask.enabled || !mask.learnable) return {};
  const Parameter gamma{"gamma_raw", {config.heads}, Role::kMask, Init::kConfig, -1, {}, false};
  Parameter p_base = gamma;
  p_base.name = "p_base";
  return {gamma, p_base};
}

std::vector<Parameter> attention_parameters(const ModelConfig& config) {
  const int64_t head_dim = config.resolved_head_dim();
  const int64_t queries = config.heads * head_dim;
  const int64_t keys = config.resolved_kv_heads() * head_dim;
  std::vector<Parameter> list;
  add_projection(
      list,
      matrix("qkv", queries + 2 * keys, config.channels, Init::kNormal,
             {{"q_proj.weight", queries}, {"k_proj.weight", keys}, {"v_proj.weight", keys}}),
      config.bias != BiasKind::kNone);
  add_projection(list,
                 matrix("proj", config.channels, queries, Init::kResidualNormal,
                        {{"o_proj.weight", config.channels}}),
                 config.bias == BiasKind::kAll);
  if (config.qk_norm) {
    list.push_back(vector("q_norm", head_dim, Init::kOnes, "q_norm.weight"));
    list.push_back(vector("k_norm", head_dim, Init::kOnes, "k_norm.weight"));
  }
  append(list, mask_parameters(config), "stable_mask.", "", -1);
  return with_adapters(config, std::move(list));
}

std::vector<Parameter> feed_forward_parameters(const ModelConfig& config) {
  const int64_t hidden = config.ffn_hidden, channels = config.channels;
  const bool gated = config.ffn == FfnKind::kSwiglu;
  std::vector<ExternalTensor> up = {{"up_proj.weight", hidden}};
  if (gated) up.insert(up.begin(), {"gate_proj.weight", hidden});
  const bool biased = config.bias == BiasKind::kAll;
  std::vector<Parameter> list;
  add_projection(list,
                 matrix("up", gated ? 2 * hidden : hidden, channels, Init::kNormal, std::move(up)),
                 biased);
  add_projection(
      list,
      matrix("down", channels, hidden, Init::kResidualNormal, {{"down_proj.weight", channels}}),
      biased);
  return with_adapters(config, std::move(list));
}

std::vector<Parameter> norm_parameters(const ModelConfig& config) {
  std::vector<Parameter> list = {vector("weight", config.channels, Init::kOnes, "weight")};
  if (config.norm == NormKind::kLayer) {
    list.push_back(vector("bias", config.channels, Init::kZeros, "bias"));
  }
  return list;
}

std::vector<Parameter> parameters(const ModelConfig& config) {
  const auto table = [&](const char* name, Role role, const char* external) {
    return Parameter{name, {config.vocab_size, config.channels}, role, Init::kNormal,
                     -1,   {{external, config.vocab_size}},      true};
  };
  std::vector<Parameter> all = {table("embedding", Role::kEmbedding, "model.embed_tokens.weight")};
  all[0].multiplies = config.tied_head;
  if (config.position == Position::kLearned) {
    all.push_back({"position_embedding",
                   {config.learned_positions, config.channels},
                   Role::kPositions,
                   Init::kNormal,
                   -1,
                   {},
                   false});
  }
  if (!config.tied_head) all.push_back(table("head", Role::kHead, "lm_head.weight"));
  for (int64_t block = 0; block < config.layers; ++block) {
    const std::string ours = "blocks." + std::to_string(block) + ".";
    const std::string llama = "model.layers." + std::to_string(block) + ".";
    append(all, norm_parameters(config), ours + "attention_norm.", llama + "input_layernorm.",
           block);
    append(all, attention_parameters(config), ours + "attention.", llama + "self_attn.", block);
    append(all, norm_parameters(config), ours + "ffn_norm.", llama + "post_attention_layernorm.",
           block);
    append(all, feed_forward_parameters(config), ours + "ffn.", llama + "mlp.", block);
  }
  append(all, norm_parameters(config), "norm.", "model.norm.", -1);
  if (config.lora.rank > 0) {
    for (Parameter& parameter : all) parameter.trainable = parameter.role == Role::kAdapter;
  }
  return all;
}

int64_t Parameter::numel() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::vector<int64_t> Parameter::matrix_rows() const {
  std::vector<int64_t> rows;
  if (role != Role::kProjection) return rows;
  for (const ExternalTensor& tensor : external) rows.push_back(tensor.rows);
  return rows;
}

bool Parameter::is_frozen(int64_t freeze_layers) const {
  if (!trainable) return true;
  if (freeze_layers == 0) return false;
  return role == Role::kEmbedding || role == Role::kPositions ||
         (block >= 0 && block < freeze_layers);
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const Parameter& parameter : parameters(config)) count += parameter.numel();
  return count;
}

double flops_per_token(const ModelConfig& config, int64_t context) {
  double products = 0;
  for (const Parameter& parameter : parameters(config)) {
    const bool looked_up = parameter.role == Role::kPositions ||
                           (parameter.role == Role::kEmbedding && !config.tied_head);
    if (looked_up) continue;
    products += (parameter.trainable ? 6.0 : 4.0) * static_cast<double>(parameter.numel());
  }
  const auto attention =
      static_cast<double>(config.layers * config.heads * config.resolved_head_dim() * context);
  return products + 6.0 * attention;
}

int64_t kept_per_token(const ModelConfig& config) {
  const LoraConfig& lora = config.lora;
  const int64_t query = config.heads * config.resolved_head_dim();
  const int64_t packed = query + 2 * config.resolved_kv_heads() * config.resolved_head_dim();
  const bool rms = config.norm == NormKind::kRms, swiglu = config.ffn == FfnKind::kSwiglu;
  const auto kept = [&](const char* reader, bool computed_again) {
    return lora.rank == 0 || (lora.adapts(reader) && !computed_again) ? 1 : 0;
  };
  const int64_t norms = kept("qkv", rms) + kept("up", rms),
                hidden = (swiglu ? 2 : 1) + kept("down", swiglu && lora.adapts("up"));
  return (2 + norms) * config.channels + packed + query + hidden * config.ffn_hidden;
}

void check_model(const ModelConfig& config) {
  const auto ll = [](int64_t value) { return static_cast<long long>(value); };
  const auto refuse = [](const std::string& message) { throw ConfigError("/model" + message); };
  if (config.layers < 1 || config.channels < 1 || config.heads < 1 || config.ffn_hidden < 1) {
    refuse(": layers, channels, heads and ffn_hidden must be at least 1");
  }
  if (config.head_dim == 0 && config.channels % config.heads != 0) {
    refuse(format("/heads: %lld does not divide channels, %lld; set head_dim or change heads",
                  ll(config.heads), ll(config.channels)));
  }
  if (config.resolved_kv_heads() < 1 || config.heads % config.resolved_kv_heads() != 0) {
    refuse(format("/kv_heads: %lld does not divide heads, %lld", ll(config.kv_heads),
                  ll(config.heads)));
  }
  if (config.position == Position::kLearned && config.learned_positions < 1) {
    refuse("/learned_positions: must be at least 1; set it to the training context");
  }
  const int64_t dims = config.resolved_rope_dims();
  if (config.position == Position::kRope &&
      (dims < 0 || dims % 2 != 0 || dims > config.resolved_head_dim())) {
    refuse(format("/rope_dims: %lld must be even and at most head_dim (%lld)", ll(dims),
                  ll(config.resolved_head_dim())));
  }
}

void require_positions(const ModelConfig& config, int64_t tokens) {
  if (config.position != Position::kLearned || tokens <= config.learned_positions) return;
  throw ConfigError(
      format("%lld tokens are more than the %lld positions that the model has learned "
             "(model.learned_positions); use a shorter window or text, or fewer new tokens",
             static_cast<long long>(tokens), static_cast<long long>(config.learned_positions)));
}

Linear register_linear(torch::nn::Module& module, const std::vector<Parameter>& declared,
                       const std::string& name, int64_t layer, const ModelConfig& config,
                       Fill fill) {
  const auto add = [&](const std::string& parameter) {
    return find_declared(declared, parameter) == declared.end()
               ? at::Tensor()
               : register_declared(module, declared, parameter, config, fill);
  };
  const at::Tensor weight = register_declared(module, declared, name, config, fill);
  const at::Tensor a = add(name + kAdapterA), b = add(name + kAdapterB);
  Linear linear(weight, add(name + kBiasSuffix));
  if (!a.defined()) return linear;
  ops::Adapter adapter{ops::Weight::tracked(a), ops::Weight::tracked(b), {}, 1};
  adapter.scale = config.lora.alpha / static_cast<double>(config.lora.rank);
  for (const ExternalTensor& tensor : find_declared(declared, name)->external) {
    adapter.rows.push_back(tensor.rows);
  }
  ops::Dropout dropout;
  dropout.share = config.lora.dropout;
  const auto place = std::find(std::begin(kProjections), std::end(kProjections), name);
  dropout.stream = layer * static_cast<int64_t>(std::size(kProjections)) +
                   std::distance(std::begin(kProjections), place);
  linear.adapt(std::move(adapter), dropout);
  return linear;
}

at::Tensor register_declared(torch::nn::Module& module, const std::vector<Parameter>& declared,
                             const std::string& name, const ModelConfig& config, Fill fill) {
  const auto found = find_declared(declared, name);
  TORCH_INTERNAL_ASSERT(found != declared.end(), "no parameter ", name, " is declared");
  at::Tensor value = at::empty(found->shape);
  if (fill == Fill::kInitial) initialise(value, *found, config, 0);
  const bool trains = config.lora.rank == 0 || found->role == Role::kAdapter;
  return module.register_parameter(name, value, trains);
}

}  // namespace stablemask::nn
