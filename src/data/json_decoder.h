#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stablemask {

/// The "decoder" of a tokenizer.json: how the tokens of its vocabulary become text. Known are
/// ByteLevel, and Replace, Metaspace, ByteFallback, Fuse and Strip of a space before the text, each
/// alone or in a Sequence.
class JsonDecoder {
 public:
  /// Throws DataError, naming `name`, for a decoder that is not known.
  JsonDecoder(const nlohmann::json& decoder, const std::string& name);

  /// What a token adds to a text; bytes that may be part of a UTF-8 character.
  std::string text_of(const std::string& token) const;
  /// Whether a space before the text is left out.
  bool strips_space() const { return strips_space_; }

 private:
  /// Returns "" or what is wrong.
  std::string take(const nlohmann::json& decoder);
  std::string take_replace(const nlohmann::json& decoder);
  std::string take_strip(const nlohmann::json& decoder);

  bool byte_level_ = false, byte_fallback_ = false, fuse_ = false, strips_space_ = false;
  std::vector<std::pair<std::string, std::string>> replacements_;
};

}  // namespace stablemask
