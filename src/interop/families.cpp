#include "src/interop/families.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "src/interop/gpt_families.h"
#include "src/interop/llama_families.h"
#include "src/interop/stable_mask_family.h"
#include "stablemask/base/error.h"
#include "stablemask/base/text.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;

/// Fields of every family: notes, and settings of training, memory and generation. They do not
/// change the logits of a forward pass.
void skip_common_fields(FieldReader& fields) {
  fields.skip({"architectures",
               "model_type",
               "transformers_version",
               "_name_or_path",
               "dtype",
               "torch_dtype",
               "use_cache",
               "use_return_dict",
               "return_dict",
               "torchscript",
               "output_attentions",
               "output_hidden_states",
               "output_scores",
               "problem_type",
               "id2label",
               "label2id",
               "tokenizer_class",
               "task_specific_params",
               "finetuning_task",
               "keys_to_ignore_at_inference",
               "gradient_checkpointing"});
  fields.skip({"attention_dropout", "hidden_dropout", "classifier_dropout", "pretraining_tp",
               "_attn_implementation", "attn_implementation", "_flash_attn_2_enabled",
               "chunk_size_feed_forward", "use_bfloat16", "tf_legacy_loss"});
  fields.skip({"bos_token_id",
               "eos_token_id",
               "pad_token_id",
               "sep_token_id",
               "prefix",
               "decoder_start_token_id",
               "max_length",
               "min_length",
               "do_sample",
               "num_beams",
               "early_stopping",
               "num_beam_groups",
               "diversity_penalty",
               "temperature",
               "top_k",
               "top_p",
               "typical_p",
               "repetition_penalty",
               "length_penalty",
               "no_repeat_ngram_size",
               "encoder_no_repeat_ngram_size",
               "bad_words_ids",
               "num_return_sequences",
               "return_dict_in_generate",
               "forced_bos_token_id",
               "forced_eos_token_id",
               "remove_invalid_values",
               "suppress_tokens",
               "begin_suppress_tokens",
               "exponential_decay_length_penalty"});
  fields.require_flag("is_encoder_decoder", false, "encoder-decoder models are not supported");
  fields.require_flag("add_cross_attention", false, "cross-attention is not supported");
  fields.require_flag("tie_encoder_decoder", false, "encoder-decoder models are not supported");
  fields.skip({"is_decoder"});
  fields.require_absent("pruned_heads", "pruned heads are not supported");
  fields.require_absent("quantization_config",
                        "quantised weights are not supported; save the model in bf16 or fp32");
  fields.require_absent("compression_config",
                        "compressed weights are not supported; save the model in bf16 or fp32");
}

std::string known_architectures() {
  std::vector<std::string> names;
  for (const Family& family : families()) names.emplace_back(family.architecture);
  return join(names, ", ");
}

/// The model with every field that follows from others written out, and those without a meaning
/// for what it computes at their defaults.
std::string normal_form(const ExternalModel& external) {
  Config config;
  config.model = external.model;
  config.train.context = external.context;
  ModelConfig& model = config.model;
  model.preset.clear();
  model.kv_heads = model.resolved_kv_heads();
  model.head_dim = model.resolved_head_dim();
  model.rope_dims = model.resolved_rope_dims();
  model.attention = AttentionBackend::kAuto;
  if (!model.stable_mask.enabled) {
    model.stable_mask = {};
    model.stable_mask.enabled = false;
  }
  if (model.position != Position::kRope) {
    model.rope_theta = ModelConfig{}.rope_theta;
    model.rope_scaling = ModelConfig{}.rope_scaling;
    model.rope_dims = 0;
  }
  resolve(config);
  return dump_config(config);
}

}  // namespace

void read_sizes(FieldReader& fields, ModelConfig& model) {
  model.vocab_size = fields.size("vocab_size");
  model.layers = fields.size("num_hidden_layers");
  model.channels = fields.size("hidden_size");
  model.heads = fields.size("num_attention_heads");
  model.ffn_hidden = fields.size("intermediate_size");
}

void write_sizes(const ModelConfig& model, nlohmann::ordered_json& json) {
  json["vocab_size"] = model.vocab_size;
  json["hidden_size"] = model.channels;
  json["intermediate_size"] = model.ffn_hidden;
  json["num_hidden_layers"] = model.layers;
  json["num_attention_heads"] = model.heads;
}

const std::vector<Family>& families() {
  static const std::vector<Family> all = [] {
    std::vector<Family> list = llama_families();
    for (const Family& family : gpt_families()) list.push_back(family);
    list.push_back(stable_mask_family());
    return list;
  }();
  return all;
}

const Family& family_of(FieldReader& fields) {
  const std::vector<std::string> named = fields.texts("architectures");
  const std::string type = fields.text("model_type", "");
  for (const Family& family : families()) {
    const bool same_type = type.empty() || type == family.model_type;
    if (named.empty() ? type == family.model_type
                      : same_type && named == std::vector<std::string>{family.architecture}) {
      return family;
    }
  }
  fields.refuse(named.empty() ? "model_type" : "architectures",
                (named.empty() ? "" : "with model_type " + in_quotes(type) + " ") +
                    std::string("is not supported; supported are ") + known_architectures());
}

ExternalModel read_external_model(const Family& family, FieldReader fields,
                                  const std::vector<std::string>& ignored) {
  skip_common_fields(fields);
  ExternalModel external = family.read(fields);
  fields.finish(ignored);
  return external;
}

bool expresses(const Family& family, const ExternalModel& model) {
  const std::string text = family.write(model).dump();
  const JsonValue json = parse_json(text);
  try {
    return normal_form(read_external_model(family, FieldReader(json, "config.json"), {})) ==
           normal_form(model);
  } catch (const CheckpointError&) {  // a combination that the family does not have
    return false;
  }
}

bool same_model(const ExternalModel& one, const ExternalModel& other) {
  return normal_form(one) == normal_form(other);
}

const Family& family_for(const ExternalModel& external) {
  const auto& all = families();
  const auto fits = [&](const Family& family) { return expresses(family, external); };
  const auto found = std::ranges::find_if(all, fits);
  if (found == all.end()) throw std::logic_error("no family expresses the model");
  return *found;
}

}  // namespace stablemask::interop
