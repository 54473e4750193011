#include "stablemask/interop/hugging_face.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/config/config.h"
#include "stablemask/io/checkpoint.h"
#include "tests/io/scratch.h"

namespace stablemask::interop {
namespace {

using Json = nlohmann::json;

const std::string kTokenizer =
    std::string(STABLEMASK_SOURCE_DIR) + "/tests/fixtures/checkpoint-v0/tokenizer.model";

/// A folder with a LlamaForCausalLM of one layer: C = 8, H = 2, Hkv = 1, D = 4, V = 320.
class Llama {
 public:
  explicit Llama(const std::string& folder) : folder_(folder) {
    std::filesystem::create_directories(folder);
    config = {{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"vocab_size", 320},
              {"hidden_size", 8},
              {"intermediate_size", 6},
              {"num_hidden_layers", 1},
              {"num_attention_heads", 2},
              {"num_key_value_heads", 1},
              {"max_position_embeddings", 32},
              {"rope_theta", 5000.0}};
    const std::string layer = "model.layers.0.";
    add("model.embed_tokens.weight", {320, 8});
    add("lm_head.weight", {320, 8});
    add("model.norm.weight", {8});
    add(layer + "input_layernorm.weight", {8});
    add(layer + "post_attention_layernorm.weight", {8});
    add(layer + "self_attn.q_proj.weight", {8, 8});
    add(layer + "self_attn.k_proj.weight", {4, 8});
    add(layer + "self_attn.v_proj.weight", {4, 8});
    add(layer + "self_attn.o_proj.weight", {8, 8});
    add(layer + "mlp.gate_proj.weight", {6, 8});
    add(layer + "mlp.up_proj.weight", {6, 8});
    add(layer + "mlp.down_proj.weight", {8, 6});
  }

  void add(const std::string& name, const std::vector<int64_t>& shape) {
    const size_t count = TensorView{ElementType::kF32, shape, nullptr}.bytes() / sizeof(float);
    std::vector<float>& values = data[name];
    values.resize(count);
    for (float& value : values) value = std::sin(static_cast<float>(++counter_));
    tensors[name] = {ElementType::kF32, shape, values.data()};
  }

  void write_config() const { write_bytes(folder_ + "/config.json", config.dump(1)); }
  void write() const {
    write_config();
    std::filesystem::remove(folder_ + "/model.safetensors");
    write_safetensors(folder_ + "/model.safetensors", tensors);
  }
  const std::string& folder() const { return folder_; }

  Json config;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::vector<float>> data;

 private:
  std::string folder_;
  int counter_ = 0;
};

class HuggingFace : public testing::Test {
 protected:
  ImportOptions options() const {
    ImportOptions options;
    options.from = llama_.folder();
    options.to = scratch_ / "checkpoint";
    options.tokenizer = kTokenizer;
    return options;
  }
  /// The message of the error of an import; "" when there is none.
  template <typename Error = CheckpointError>
  std::string refusal(const ImportOptions& options) {
    std::string message = message_of<Error>([&] { import_model(options); });
    std::filesystem::remove_all(options.to);
    return message;
  }
  void expect_refusal(const std::string& part) {
    const std::string message = refusal(options());
    EXPECT_NE(message.find(part), std::string::npos) << part << "\n" << message;
  }

  Scratch scratch_;
  Llama llama_{scratch_ / "llama"};
};

std::vector<float> joined(const Llama& llama, const std::vector<std::string>& names) {
  std::vector<float> all;
  for (const std::string& name : names) {
    const std::vector<float>& part = llama.data.at("model.layers.0." + name + ".weight");
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

std::vector<float> values(const Checkpoint& checkpoint, const std::string& name) {
  const TensorView& view = checkpoint.model.tensors().at(name);
  std::vector<float> values(view.bytes() / sizeof(float));
  std::memcpy(values.data(), view.data, view.bytes());
  return values;
}

TEST_F(HuggingFace, AnImportPacksTheWeights) {
  llama_.write();
  const ImportSummary summary = import_model(options());
  EXPECT_EQ(summary.architecture, "LlamaForCausalLM");
  const Checkpoint checkpoint = load_checkpoint(scratch_ / "checkpoint");
  EXPECT_EQ(values(checkpoint, "blocks.0.attention.qkv"),
            joined(llama_, {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}));
  EXPECT_EQ(values(checkpoint, "blocks.0.ffn.up"),
            joined(llama_, {"mlp.gate_proj", "mlp.up_proj"}));
  EXPECT_EQ(checkpoint.step, 0);
  EXPECT_FALSE(checkpoint.tokenizer_model.empty());
  const Config config = parse_saved_config(checkpoint.config_json, "config.json");
  EXPECT_EQ(config.model.kv_heads, 1);
  EXPECT_EQ(config.model.rope_theta, 5000.0);
  EXPECT_EQ(config.model.norm_eps, 1e-6);
  EXPECT_EQ(config.train.context, 32);
  EXPECT_FALSE(config.model.stable_mask.enabled);
  int64_t parameters = 0;
  for (const auto& [name, view] : checkpoint.model.tensors()) {
    parameters += static_cast<int64_t>(view.bytes() / sizeof(float));
  }
  EXPECT_EQ(summary.parameters, parameters);
}

TEST_F(HuggingFace, AStableMaskModelComesBackWithTheSameBytes) {
  llama_.write();
  ImportOptions first = options();
  first.overrides = {"model.stable_mask.enabled=true", "model.stable_mask.p_base=-1.5"};
  import_model(first);
  ExportOptions out;
  out.from = first.to;
  out.to = scratch_ / "exported";
  EXPECT_EQ(export_model(out).architecture, "StableMaskForCausalLM");
  const Json config = Json::parse(read_bytes(out.to + "/config.json"));
  EXPECT_EQ(config["stablemask"]["model"]["stable_mask"]["mask_length"], 32);
  EXPECT_EQ(config["stablemask"]["model"]["stable_mask"]["gamma"], 1.0);
  for (const char* file : {"configuration_stablemask.py", "modeling_stablemask.py",
                           "tokenizer.model", "tokenizer.json", "generation_config.json"}) {
    EXPECT_TRUE(std::filesystem::exists(out.to + "/" + file)) << file;
  }
  EXPECT_EQ(read_bytes(out.to + "/modeling_stablemask.py"),
            read_bytes(std::string(STABLEMASK_SOURCE_DIR) +
                       "/src/interop/python/modeling_stablemask.py"));
  ImportOptions second;
  second.from = out.to;
  second.to = scratch_ / "again";
  import_model(second);
  for (const char* file : {"model.safetensors", "config.json", "tokenizer.model"}) {
    EXPECT_EQ(read_bytes(second.to + "/" + file), read_bytes(first.to + "/" + file)) << file;
  }
}

TEST_F(HuggingFace, ShardsHoldTheSameModel) {
  llama_.write();
  import_model(options());
  ExportOptions out;
  out.from = scratch_ / "checkpoint";
  out.to = scratch_ / "exported";
  out.shard_bytes = 11'000;  // of about 22 kB, with a table of 10 kB alone in its file
  const ExportSummary summary = export_model(out);
  EXPECT_EQ(summary.architecture, "LlamaForCausalLM");
  EXPECT_EQ(summary.files, 3);
  const auto files = open_safetensors_index(out.to + "/model.safetensors.index.json");
  ASSERT_EQ(files.size(), 3U);
  size_t found = 0;
  for (const auto& [name, file] : files) {
    for (const auto& [tensor, view] : file.tensors()) {
      ++found;
      const TensorView& original = llama_.tensors.at(tensor);
      EXPECT_EQ(view.shape, original.shape);
      EXPECT_EQ(std::memcmp(view.data, original.data, original.bytes()), 0) << tensor;
    }
  }
  EXPECT_EQ(found, llama_.tensors.size());
  ImportOptions again = options();
  again.from = out.to;
  again.tokenizer = "";
  again.to = scratch_ / "again";
  import_model(again);
  EXPECT_EQ(read_bytes(again.to + "/model.safetensors"),
            read_bytes(scratch_ / "checkpoint/model.safetensors"));

  std::filesystem::remove(out.to + "/model-00002-of-00003.safetensors");
  again.to = scratch_ / "third";
  EXPECT_NE(refusal(again).find("model-00002-of-00003.safetensors: "), std::string::npos);
}

TEST_F(HuggingFace, AnExportIsNewAndWhole) {
  llama_.write();
  import_model(options());
  ExportOptions out;
  out.from = scratch_ / "checkpoint";
  out.to = scratch_ / "llama";
  const auto problem = [&] { return message_of<CheckpointError>([&] { export_model(out); }); };
  EXPECT_EQ(problem(), out.to + ": exists already; name a new folder");
  llama_.data.at("model.norm.weight")[3] = 1e5F;
  llama_.write();
  ImportOptions large = options();
  large.to = scratch_ / "large";
  import_model(large);
  out.from = large.to;
  out.to = scratch_ / "half";
  out.type = ElementType::kF16;
  EXPECT_NE(problem().find("model.norm.weight has values beyond the range of F16"),
            std::string::npos);
  for (const auto& entry : std::filesystem::directory_iterator(scratch_.path())) {
    EXPECT_EQ(entry.path().filename().string().find("half"), std::string::npos) << entry.path();
  }
}

TEST_F(HuggingFace, FieldsThatCannotBeHonouredAreNamedWithTheirValue) {
  llama_.write();
  const Json good = llama_.config;
  const auto with = [&](const Json& patch, const std::string& part) {
    llama_.config = good;
    llama_.config.merge_patch(patch);
    llama_.write_config();
    expect_refusal(part);
  };
  with({{"hidden_act", "gelu"}}, "hidden_act: \"gelu\": is not supported");
  with({{"architectures", {"FalconForCausalLM"}}}, "architectures: a list: with model_type");
  with({{"attention_bias", true}}, "mlp_bias: ");
  with({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}},
       "rope_scaling.type: \"dynamic\": is not supported");
  with({{"rope_scaling", {{"rope_type", "linear"}}}}, "rope_scaling.factor: is missing");
  with({{"rope_parameters", {{"rope_theta", 1.0}}}}, "rope_parameters: an object: differs from");
  with({{"partial_rotary_factor", 0.5}}, "partial_rotary_factor: 0.5: must rotate all");
  with({{"quantization_config", {{"bits", 4}}}}, "quantization_config: an object: quantised");
  with({{"attention_multiplier", 0.1}}, "attention_multiplier: 0.1: is not known");
  with({{"num_attention_heads", 3}}, "num_attention_heads: 3: must divide hidden_size");
  with({{"vocab_size", nullptr}}, "vocab_size: is missing");
  with({{"num_hidden_layers", 1.5}}, "num_hidden_layers: 1.5: must be an integer");
  with({{"tie_word_embeddings", 1}}, "tie_word_embeddings: 1: must be true or false");
  with({{"auto_map", {{"AutoModel", "x.Y"}}}}, "auto_map: an object: is not known");
  llama_.config = good;
  llama_.config["new"] = 1;
  llama_.write_config();
  expect_refusal("config.json:");
  ImportOptions ignoring = options();
  ignoring.ignored_fields = {"new"};
  EXPECT_EQ(refusal(ignoring), "");
}

TEST_F(HuggingFace, WindowsOfQwenAreOfAllLayersOrNone) {
  llama_.config["architectures"] = {"Qwen3ForCausalLM"};
  llama_.config["model_type"] = "qwen3";
  llama_.config["head_dim"] = 4;
  llama_.config["num_hidden_layers"] = 2;
  const Json good = llama_.config;
  const auto with = [&](const Json& patch, const std::string& part) {
    llama_.config = good;
    llama_.config.merge_patch(patch);
    llama_.write();
    expect_refusal(part);
  };
  with({{"use_sliding_window", true}, {"sliding_window", 4}, {"max_window_layers", 1}},
       "max_window_layers: 1: a window in some of the layers");
  with({{"use_sliding_window", true},
        {"sliding_window", 4},
        {"layer_types", {"full_attention", "sliding_attention"}}},
       "layer_types: a list: a window in some of the layers");
  with({{"layer_types", {"full_attention"}}}, "layer_types: a list: must state");
  // Accepted, so that the weights are looked at.
  with({{"use_sliding_window", true}, {"sliding_window", 4}, {"max_window_layers", 0}},
       "q_norm.weight is missing");
}

TEST_F(HuggingFace, WeightsThatDoNotFitAreListed) {
  const std::map<std::string, TensorView> good = llama_.tensors;
  const auto without = [&](const std::string& name) {
    llama_.tensors = good;
    llama_.tensors.erase(name);
  };
  without("model.norm.weight");
  llama_.write();
  expect_refusal("a LlamaForCausalLM: model.norm.weight is missing");
  llama_.tensors = good;
  llama_.tensors["extra"] = good.at("model.norm.weight");
  llama_.write();
  expect_refusal("extra is not part of the model");
  llama_.tensors = good;
  llama_.tensors.at("model.layers.0.self_attn.k_proj.weight").shape = {8, 4};
  llama_.write();
  expect_refusal("k_proj.weight is [8, 4] instead of [4, 8]");
  llama_.tensors = good;
  llama_.tensors.at("model.norm.weight").type = ElementType::kI32;
  llama_.write();
  expect_refusal("model.norm.weight is I32 instead of F32, BF16 or F16");
  llama_.tensors = good;
  llama_.data.at("model.norm.weight")[2] = std::numeric_limits<float>::infinity();
  llama_.write();
  EXPECT_NE(refusal<NonFiniteError>(options()).find("model.norm.weight holds values"),
            std::string::npos);
}

TEST_F(HuggingFace, ATiedHeadMustBeTheEmbedding) {
  llama_.config["tie_word_embeddings"] = true;
  llama_.write();
  expect_refusal("lm_head.weight is not equal to model.embed_tokens.weight");
  llama_.tensors.at("lm_head.weight") = llama_.tensors.at("model.embed_tokens.weight");
  llama_.write();
  EXPECT_EQ(refusal(options()), "");
  llama_.tensors.erase("lm_head.weight");
  llama_.write();
  EXPECT_EQ(refusal(options()), "");
  // As saved from the class without a head.
  std::map<std::string, TensorView> base;
  for (const auto& [name, view] : llama_.tensors) base[name.substr(std::strlen("model."))] = view;
  llama_.tensors = base;
  llama_.write();
  EXPECT_EQ(refusal(options()), "");
}

TEST_F(HuggingFace, OtherFilesAreRefusedWithAReason) {
  llama_.write_config();
  expect_refusal("has neither model.safetensors nor model.safetensors.index.json");
  write_bytes(llama_.folder() + "/pytorch_model.bin", "x");
  expect_refusal("pytorch_model.bin: is a pickle");
  llama_.write();
  write_bytes(llama_.folder() + "/config.json", "{\"a\": 1,}");
  expect_refusal("config.json:1:");
  write_bytes(llama_.folder() + "/config.json", R"({"vocab_size": 1, "vocab_size": 2})");
  expect_refusal("vocab_size: 1: is stated twice");
  std::filesystem::remove(llama_.folder() + "/config.json");
  expect_refusal("config.json: cannot be opened");
}

TEST_F(HuggingFace, TokenizersFitOrAreLeftOut) {
  llama_.write();
  ImportOptions none = options();
  none.tokenizer = "";
  EXPECT_NE(refusal<DataError>(none).find("has neither tokenizer.model nor tokenizer.json"),
            std::string::npos);
  none.without_tokenizer = true;
  import_model(none);
  EXPECT_TRUE(load_checkpoint(none.to).tokenizer_model.empty());
  std::filesystem::remove_all(none.to);
  none.tokenizer = kTokenizer;
  EXPECT_NE(refusal<ConfigError>(none).find("contradicts"), std::string::npos);
  write_bytes(llama_.folder() + "/tokenizer.model", "no model");
  none = options();
  none.tokenizer = "";
  EXPECT_NE(refusal<DataError>(none).find("--no-tokenizer"), std::string::npos);
  llama_.config["vocab_size"] = 319;
  llama_.write();
  EXPECT_NE(refusal<DataError>(options()).find("has 320 ids, the model only 319"),
            std::string::npos);
}

TEST_F(HuggingFace, TokenizersOfOtherModelsComeBackByteForByte) {
  using Files = std::map<std::string, std::string>;
  // The fixture's pieces with add_dummy_prefix: field 3 of a second normalizer_spec.
  const Files llama = {{"tokenizer.model", read_bytes(kTokenizer) + "\x1a\x02\x18\x01"},
                       {"tokenizer.json", "{\"not\": \"read\"}"},
                       {"tokenizer_config.json", "{\"bos_token\": null}\n"}};
  const Files byte_level = {
      {"tokenizer.json",
       R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<|im_end|>": 2}, "merges": []},
           "decoder": {"type": "ByteLevel"}})"},
      {"tokenizer_config.json", R"({"eos_token": {"content": "<|im_end|>"}, "chat_template": ""})"},
      {"chat_template.jinja", "{{ messages }}"}};
  llama_.write();
  for (const Files& files : {llama, byte_level}) {
    for (const auto& [name, text] : files) write_bytes(llama_.folder() + "/" + name, text);
    ImportOptions in = options();
    in.tokenizer = "";
    import_model(in);
    ExportOptions out;
    out.from = in.to;
    out.to = scratch_ / "exported";
    export_model(out);
    for (const auto& [name, text] : files) {
      EXPECT_EQ(read_bytes(in.to + "/" + name), text) << name;
      EXPECT_EQ(read_bytes(out.to + "/" + name), text) << name;
      std::filesystem::remove(llama_.folder() + "/" + name);
    }
    const Json special = Json::parse(read_bytes(out.to + "/generation_config.json"));
    EXPECT_EQ(special["eos_token_id"], files.contains("tokenizer.model") ? 1 : 2);
    EXPECT_EQ(special["bos_token_id"], special["eos_token_id"]) << "neither has one";
    std::filesystem::remove_all(in.to);
    std::filesystem::remove_all(out.to);
  }
}

TEST_F(HuggingFace, OverridesChangeNoWeights) {
  llama_.write();
  ImportOptions changed = options();
  changed.overrides = {"model.layers=2"};
  EXPECT_NE(refusal<ConfigError>(changed).find("--set model.layers: cannot be set"),
            std::string::npos);
  changed.overrides = {"model.stable_mask=true", "model.stable_mask.learnable=true"};
  EXPECT_NE(refusal<ConfigError>(changed).find("has no weights for it"), std::string::npos);
  changed.overrides = {"train.context=16", "model.stable_mask=true"};
  import_model(changed);
  const Config config = parse_saved_config(load_checkpoint(changed.to).config_json, "");
  EXPECT_EQ(config.model.stable_mask.mask_length.length, 16);
}

/// Peak of the memory that this process has used since reset_peak, bytes.
uint64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return file.good();
}

TEST_F(HuggingFace, AModelIsNeverInMemoryAsAWhole) {
  constexpr int64_t kVocabulary = 200'000;
  llama_.config["vocab_size"] = kVocabulary;
  llama_.config["tie_word_embeddings"] = true;
  llama_.config["hidden_size"] = 128;
  llama_.config["head_dim"] = 4;
  const std::vector<uint16_t> ones(1 << 20, 0x3f80);  // bf16
  std::map<std::string, StreamedTensor> tensors;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    StreamedTensor tensor{ElementType::kBf16, shape, {}};
    tensor.produce = [&ones, bytes = tensor.bytes()](const ByteSink& write) {
      for (size_t left = bytes; left > 0;) {
        const size_t piece = std::min(left, ones.size() * 2);
        write(ones.data(), piece);
        left -= piece;
      }
    };
    tensors[name] = tensor;
  };
  const std::string layer = "model.layers.0.";
  add("model.embed_tokens.weight", {kVocabulary, 128});  // 51 MB of bf16, 102 MB of fp32
  add("model.norm.weight", {128});
  add(layer + "input_layernorm.weight", {128});
  add(layer + "post_attention_layernorm.weight", {128});
  add(layer + "self_attn.q_proj.weight", {8, 128});
  add(layer + "self_attn.k_proj.weight", {4, 128});
  add(layer + "self_attn.v_proj.weight", {4, 128});
  add(layer + "self_attn.o_proj.weight", {128, 8});
  add(layer + "mlp.gate_proj.weight", {6, 128});
  add(layer + "mlp.up_proj.weight", {6, 128});
  add(layer + "mlp.down_proj.weight", {128, 6});
  llama_.write_config();
  write_streamed_safetensors(llama_.folder() + "/model.safetensors", tensors);
  if (!reset_peak()) GTEST_SKIP() << "/proc/self/clear_refs cannot be written";
  const uint64_t before = peak_memory();
  import_model(options());
  EXPECT_LT(peak_memory() - before, 40'000'000U);
}

}  // namespace
}  // namespace stablemask::interop
