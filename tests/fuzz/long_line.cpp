// Input: a byte for the kind of model and the size of the parts, protobuf that is appended to a
// sound model, a separator, and a line. A line encoded in parts, and by words, against
// SentencePiece's own encoding.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <memory>

#include "src/data/long_text.h"
#include "stablemask/base/utf8.h"
#include "stablemask/data/tokenizer.h"
#include "tests/fuzz/harness.h"
#include "tests/fuzz/tokenizer_model.h"

namespace stablemask::fuzz {
namespace {

using Ids = std::vector<int32_t>;

struct Model {
  explicit Model(const std::string& bytes)
      : proto(read_sentencepiece_model(bytes, "model")),
        tokenizer(Tokenizer::from_bytes(bytes, "model")) {
    require(processor.LoadFromSerializedProto(bytes).ok(), "an accepted model loads");
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      surfaces.push_back(tokenizer.text_of(id));
    }
  }

  Ids encode(std::string_view text) const {
    Ids ids;
    require(processor.Encode(text, &ids).ok(), "SentencePiece encodes UTF-8");
    return ids;
  }

  SentencePieceModel proto;
  Tokenizer tokenizer;
  LineEncoder lines{tokenizer};  // knows the words of the lines before
  sentencepiece::SentencePieceProcessor processor;
  std::vector<std::string> surfaces;
};

/// Kept from one input to the next: most changes are of the line, and a model takes longer to load.
Model& model_of(const std::string& bytes) {
  static std::string loaded;
  static std::unique_ptr<Model> model;
  if (!model || loaded != bytes) {
    model.reset();
    model = std::make_unique<Model>(bytes);
    loaded = bytes;
  }
  return *model;
}

bool has_unused(const SentencePieceModel& model) {
  return std::any_of(model.pieces.begin(), model.pieces.end(), [](const auto& piece) {
    return piece.type == SentencePieceModel::PieceType::kUnused;
  });
}

void check(Model& model, std::string_view line, size_t part_bytes) {
  if (!model.tokenizer.lossless()) return;  // parts of a text would not be encoded as within it
  Ids by_line;
  Ids by_words;
  model.tokenizer.encode_line(line, by_line);
  model.lines.append(line, by_words);
  require(by_words == by_line, "words have the ids of the whole line");
  const Ids whole = model.encode(line);
  Ids ids;
  if (model.proto.model_type == 1) {
    float score = 0;
    UnigramEncoder(model.proto).encode(line, part_bytes, ids, score);
  } else {
    if (has_unused(model.proto)) return;
    const auto encode = [&](std::string_view text) { return model.encode(text); };
    encode_bpe_in_parts(line, part_bytes, encode, model.surfaces, ids);
  }
  require(ids == whole, "parts have the ids of the whole line");
}

void run(std::string_view input) {
  Numbers numbers(input);
  const uint8_t kind = numbers.byte();
  const std::vector<std::string_view> parts = split(numbers.rest(), 2);
  if (parts.size() < 2 || parts[1].empty() || !is_utf8(parts[1])) return;
  // The tokenizer gives it no line end, no U+2581, and no NUL in a piece.
  if (parts[1].find('\n') != std::string_view::npos ||
      parts[1].find("\xE2\x96\x81") != std::string_view::npos) {
    return;
  }
  std::string bytes = sound_model();
  if (kind & 1) bytes += std::string("\x12\x02\x18\x01", 4);  // unigram
  bytes += parts[0];
  accepted<DataError>([&] { check(model_of(bytes), parts[1], 8 + kind / 2); });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
