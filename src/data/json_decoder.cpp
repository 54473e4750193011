#include "src/data/json_decoder.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "stablemask/base/error.h"
#include "stablemask/base/text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/data/sentencepiece_model.h"

namespace stablemask {
namespace {

using Json = nlohmann::json;

/// GPT-2 writes each byte as a character that prints: a byte of Latin-1 that prints as itself, the
/// others, in their order, as U+0100, U+0101, …
std::unordered_map<std::string, char> byte_characters() {
  std::unordered_map<std::string, char> bytes;
  const auto utf8 = [](uint32_t character) {  // of at most two bytes
    if (character < 0x80) return std::string(1, static_cast<char>(character));
    return std::string{static_cast<char>(0xC0 | character >> 6),
                       static_cast<char>(0x80 | (character & 0x3F))};
  };
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool prints = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    bytes[utf8(prints ? byte : next++)] = static_cast<char>(byte);
  }
  return bytes;
}

/// A token that has other characters too is the text of its own.
std::string byte_level_text(const std::string& token) {
  static const std::unordered_map<std::string, char> kBytes = byte_characters();
  std::string text;
  for (size_t at = 0; at < token.size();) {
    const size_t size = utf8_character_size(std::string_view(token).substr(at));
    const auto found = kBytes.find(token.substr(at, size));
    if (size == 0 || found == kBytes.end()) return token;
    text += found->second;
    at += size;
  }
  return text;
}

std::string text_member(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string replaced(const std::string& text, const std::string& from, const std::string& to) {
  std::string result;
  size_t at = 0;
  for (size_t found; (found = text.find(from, at)) != std::string::npos; at = found + from.size()) {
    result += text.substr(at, found - at) + to;
  }
  return result + text.substr(at);
}

}  // namespace

JsonDecoder::JsonDecoder(const Json& decoder, const std::string& name) {
  const std::string problem = decoder.is_object() ? take(decoder) : "is absent";
  if (!problem.empty()) {
    throw DataError(name + ": its decoder " + problem +
                    "; known are byte-level tokenizers and those with SentencePiece's pieces");
  }
  if (byte_level_ && (byte_fallback_ || !replacements_.empty())) {
    throw DataError(name + ": its decoder is byte-level and has other steps, which is not known");
  }
}

std::string JsonDecoder::take(const Json& decoder) {
  const std::string type = text_member(decoder, "type");
  if (type == "Sequence") {
    const auto steps = decoder.find("decoders");
    if (steps == decoder.end() || !steps->is_array()) return "has no list of steps";
    for (const Json& step : *steps) {
      if (!step.is_object() || text_member(step, "type") == "Sequence") return "is nested";
      if (const std::string problem = take(step); !problem.empty()) return problem;
    }
    return "";
  }
  if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fuse_ = true;
  } else if (type == "Replace") {
    return take_replace(decoder);
  } else if (type == "Metaspace") {
    replacements_.emplace_back(text_member(decoder, "replacement"), " ");
    if (replacements_.back().first.empty()) return "replaces no text";
    const auto prefix = decoder.find("add_prefix_space");
    strips_space_ = text_member(decoder, "prepend_scheme") != "never" &&
                    (prefix == decoder.end() || !prefix->is_boolean() || prefix->get<bool>());
  } else if (type == "Strip") {
    return take_strip(decoder);
  } else {
    return "is of type " + in_quotes(type);
  }
  return "";
}

std::string JsonDecoder::take_replace(const Json& decoder) {
  const auto pattern = decoder.find("pattern");
  std::string from =
      pattern == decoder.end() || !pattern->is_object() ? "" : text_member(*pattern, "String");
  if (from.empty()) return "replaces something else than a text";
  replacements_.emplace_back(std::move(from), text_member(decoder, "content"));
  return "";
}

std::string JsonDecoder::take_strip(const Json& decoder) {
  const auto count = [&](const char* key) {
    const auto found = decoder.find(key);
    return found == decoder.end() ? Json(0) : *found;
  };
  if (!fuse_ || text_member(decoder, "content") != " " || count("start") != 1 ||
      count("stop") != 0) {
    return "strips something else than one space before the text";
  }
  strips_space_ = true;
  return "";
}

std::string JsonDecoder::text_of(const std::string& token) const {
  if (byte_level_) return byte_level_text(token);
  if (byte_fallback_) {
    const int byte = byte_of({token, SentencePieceModel::PieceType::kByte, 0});
    if (byte >= 0) return {static_cast<char>(byte)};
  }
  std::string text = token;
  for (const auto& [from, to] : replacements_) text = replaced(text, from, to);
  return text;
}

}  // namespace stablemask
