// Input: "+" and bytes that are appended to a sound model (protobuf merges them: more pieces, other
// settings), or the bytes of a model or of a tokenizer.json.
#include "stablemask/data/tokenizer.h"

#include <algorithm>

#include "src/data/round_trip.h"
#include "tests/fuzz/harness.h"
#include "tests/fuzz/tokenizer_model.h"

namespace stablemask::fuzz {
namespace {

/// What a tokenizer that is not lossless promises.
void check_foreign(const Tokenizer& tokenizer) {
  const int32_t size = tokenizer.vocab_size();
  for (const int32_t id :
       {tokenizer.eos_id(), tokenizer.start_id(), tokenizer.end_of_text_id(), 0, size - 1}) {
    require(id >= 0 && id < size, "special ids are in the vocabulary");
    tokenizer.decode({id});
  }
  require_message(tokenizer.loss(), true);
  accepted<DataError>([&] {
    const std::vector<int32_t> ids =
        tokenizer.encode(" the other\xE2\x96\x81\tt\xC3\xA9 <unk>\n\n e");
    require(tokenizer.can_encode(), "a tokenizer.json does not encode");
    tokenizer.decode(ids);
  });
}

/// What a lossless tokenizer promises, on texts that its own pieces appear in.
void check(const Tokenizer& tokenizer) {
  require(tokenizer.vocab_size() > 256, "it has all byte pieces");
  require(tokenizer.text_of(tokenizer.eos_id()) == "\n", "the end of a sentence is the line end");
  std::string text = " the other\xE2\x96\x81\tt\xC3\xA9 <unk>e\r <0x0A></s>";
  for (int32_t id = tokenizer.vocab_size() - 1; id > 258 && text.size() < 256; id -= 7) {
    text += tokenizer.text_of(id);
  }
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    require(id == tokenizer.eos_id() || tokenizer.text_of(id) != "\n" || id < 260,
            "no other piece is a line end");
  }
  text.erase(std::remove(text.begin(), text.end(), '\n'), text.end());
  accepted<DataError>([&] {
    std::vector<int32_t> ids;
    tokenizer.encode_line(text, ids);
    const std::string difference = round_trip_difference(tokenizer, text, ids);
    require((tokenizer.decode(ids) == text) == difference.empty(), "a difference is noticed");
    if (!difference.empty()) require_message(difference, true);
  });
}

void run(std::string_view input) {
  std::string bytes(input);
  if (input.starts_with('+')) bytes = sound_model() + std::string(input.substr(1));
  accepted<DataError>([&] {
    const Tokenizer tokenizer = Tokenizer::from_bytes(bytes, "tokenizer.model");
    tokenizer.lossless() ? check(tokenizer) : check_foreign(tokenizer);
  });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
