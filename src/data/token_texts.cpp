// Names of special tokens are in tokenizer_config.json or, of older tokenizers, in
// special_tokens_map.json: "eos_token", "bos_token", each a text or an object with "content", and
// "added_tokens_decoder", {ID: {"content": TEXT, "special": BOOL}}.
#include "src/data/token_texts.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "src/data/json_decoder.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostIds = int64_t{1} << 22;  // largest vocabularies have some 260,000
constexpr const char* kTokenizerConfig = "tokenizer_config.json";

/// The value without the members `dropped` of its outermost object.
Json parse_without(std::string_view bytes, const std::string& name, const char* dropped) {
  const auto keep = [&](int depth, Json::parse_event_t event, const Json& parsed) {
    return depth > 2 || event != Json::parse_event_t::key || parsed != dropped;
  };
  Json json = Json::parse(bytes, keep, /*allow_exceptions=*/false);
  if (json.is_discarded()) throw DataError(name + ": is not valid JSON, or is damaged");
  if (!json.is_object()) throw DataError(name + ": is not a JSON object");
  return json;
}

/// A member of an object; null where it is absent.
const Json& member(const Json& json, const char* key) {
  static const Json none;
  if (!json.is_object()) return none;
  const auto found = json.find(key);
  return found == json.end() ? none : *found;
}

struct AddedToken {
  std::string content;
  bool special = false;
};

/// What the vocabulary and the files beside it say of each id.
class Builder {
 public:
  explicit Builder(const std::string& name) : name_(name) {}

  void add(int64_t id, const std::string& token, std::string text) {
    if (id < 0 || id >= kMostIds) {
      throw DataError(format("%s: token id %lld is not within 0 to %lld", name_.c_str(),
                             static_cast<long long>(id), static_cast<long long>(kMostIds - 1)));
    }
    const auto index = static_cast<size_t>(id);
    if (index >= result.texts.size()) result.texts.resize(index + 1);
    result.texts[index] = std::move(text);
    ids_.insert_or_assign(token, static_cast<int32_t>(id));
  }

  /// The ids of bos_token and eos_token; `start` and `end` where the files name none.
  void set_special(const TokenizerFiles& companions, int32_t start, int32_t end) {
    for (const char* file : {"special_tokens_map.json", kTokenizerConfig}) {
      const auto found = companions.find(file);
      if (found == companions.end()) continue;
      const Json json = parse_without(found->second, name_ + ": " + file, "chat_template");
      take_special(json, "bos_token", file, start);
      take_special(json, "eos_token", file, end);
    }
    if (end < 0) end = find_first({"<|endoftext|>", "</s>", "<|end_of_text|>"});
    if (end < 0) {
      throw DataError(name_ +
                      ": has no end-of-text token; put a tokenizer_config.json with \"eos_token\" "
                      "beside it");
    }
    result.start_id = start;
    result.end_of_text_id = end;
  }

  int32_t find(const std::string& token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  }

  TokenTexts result;

 private:
  void take_special(const Json& json, const char* key, const char* file, int32_t& id) const {
    const Json& value = member(json, key);
    const Json& content = value.is_object() ? member(value, "content") : value;
    if (content.is_null()) return;
    if (!content.is_string()) {
      throw DataError(format("%s: %s: \"%s\" is not a text", name_.c_str(), file, key));
    }
    const std::string token = content.get<std::string>();
    const int32_t named = find(token);
    if (named < 0) {
      throw DataError(format("%s: %s: \"%s\", ", name_.c_str(), file, key) + in_quotes(token) +
                      ", is not in the vocabulary");
    }
    id = named;
  }

  int32_t find_first(const std::vector<std::string>& tokens) const {
    for (const std::string& token : tokens) {
      if (const int32_t id = find(token); id >= 0) return id;
    }
    return -1;
  }

  const std::string& name_;
  std::unordered_map<std::string, int32_t> ids_;
};

int64_t id_of(const Json& json, const std::string& name) {
  if (json.is_number_integer()) return json.get<int64_t>();
  throw DataError(name + ": a token's id is not an integer");
}

AddedToken added_token(const Json& json, const std::string& name) {
  const Json& content = member(json, "content");
  const Json& special = member(json, "special");
  if (!content.is_string() || (!special.is_null() && !special.is_boolean())) {
    throw DataError(name + ": an added token has no \"content\", or \"special\" is not a boolean");
  }
  return {content.get<std::string>(), special.is_boolean() && special.get<bool>()};
}

void add_vocabulary(const Json& model, const JsonDecoder& decoder, const std::string& name,
                    Builder& builder) {
  const Json& vocab = member(model, "vocab");
  if (vocab.is_object()) {
    for (const auto& [token, id] : vocab.items()) {
      builder.add(id_of(id, name), token, decoder.text_of(token));
    }
    return;
  }
  if (!vocab.is_array()) throw DataError(name + ": its model has no \"vocab\"");
  int64_t id = 0;
  for (const Json& entry : vocab) {
    if (!entry.is_array() || entry.empty() || !entry[0].is_string()) {
      throw DataError(name + ": an entry of its \"vocab\" is not a token and its score");
    }
    const std::string token = entry[0].get<std::string>();
    builder.add(id++, token, decoder.text_of(token));
  }
}

}  // namespace

std::string TokenTexts::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  bool at_start = strips_space;
  for (const int32_t id : ids) {
    std::string_view part = texts[static_cast<size_t>(id)];
    if (at_start && part.starts_with(' ')) {
      part.remove_prefix(1);
      at_start = strips_all_spaces && part.empty();
    } else if (!part.empty()) {
      at_start = false;
    }
    text += part;
  }
  return text;
}

TokenTexts read_tokenizer_json(std::string_view bytes, const std::string& name,
                               const TokenizerFiles& companions) {
  const Json json = parse_without(bytes, name, "merges");
  const Json& model = member(json, "model");
  const Json& type = member(model, "type");
  if (!type.is_null() && type != "BPE" && type != "Unigram") {
    throw DataError(name + ": its model is of type " +
                    (type.is_string() ? in_quotes(type.get<std::string>()) : type.type_name()) +
                    "; known are BPE and Unigram");
  }
  const JsonDecoder decoder(member(json, "decoder"), name);
  Builder builder(name);
  add_vocabulary(model, decoder, name, builder);
  const Json& added = member(json, "added_tokens");
  if (!added.is_null() && !added.is_array()) {
    throw DataError(name + ": \"added_tokens\" is not a list");
  }
  for (const Json& token : added) {
    const AddedToken one = added_token(token, name);
    builder.add(id_of(member(token, "id"), name), one.content,
                one.special ? "" : decoder.text_of(one.content));
  }
  if (builder.result.texts.empty()) throw DataError(name + ": its vocabulary is empty");
  builder.result.strips_space = decoder.strips_space();
  builder.set_special(companions, -1, -1);
  return std::move(builder.result);
}

TokenTexts read_foreign_pieces(const SentencePieceModel& model, const std::string& name,
                               const TokenizerFiles& companions) {
  using PieceType = SentencePieceModel::PieceType;
  Builder builder(name);
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SentencePieceModel::Piece& piece = model.pieces[i];
    std::string text = surface_of(piece.text);
    if (piece.type == PieceType::kControl) text = "";
    if (piece.type == PieceType::kUnknown) text = model.unk_surface;
    if (const int byte = byte_of(piece); byte >= 0) text = std::string(1, static_cast<char>(byte));
    builder.add(static_cast<int64_t>(i), piece.text, std::move(text));
  }
  // Of models that were finetuned to chat: tokens with ids beyond the pieces.
  if (const auto config = companions.find(kTokenizerConfig); config != companions.end()) {
    const std::string file = name + ": " + kTokenizerConfig;
    const Json json = parse_without(config->second, file, "chat_template");
    for (const auto& [key, token] : member(json, "added_tokens_decoder").items()) {
      int64_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size()) {
        throw DataError(file + ": " + in_quotes(key) + " is not a token id");
      }
      if (id < static_cast<int64_t>(model.pieces.size())) continue;
      AddedToken one = added_token(token, file);
      builder.add(id, one.content, one.special ? "" : one.content);
    }
  }
  builder.result.strips_space = model.add_dummy_prefix || model.remove_extra_whitespaces;
  builder.result.strips_all_spaces = model.remove_extra_whitespaces;
  const auto id_in_pieces = [&](int32_t id) {
    return id >= 0 && id < static_cast<int32_t>(model.pieces.size()) ? id : -1;
  };
  builder.set_special(companions, id_in_pieces(model.bos_id), id_in_pieces(model.eos_id));
  return std::move(builder.result);
}

}  // namespace stablemask
