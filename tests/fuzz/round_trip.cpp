// Input: a text, perhaps a separator and changes of its token ids, three bytes each: where, and the
// id that takes the place of the one there.
#include "src/data/round_trip.h"

#include "stablemask/base/utf8.h"
#include "tests/fuzz/harness.h"
#include "tests/fuzz/tokenizer_model.h"

namespace stablemask::fuzz {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer one = Tokenizer::from_bytes(sound_model(), "tokenizer.model");
  return one;
}

/// Ids decoded one at a time give the same text, and no character is divided.
void check_stream(const std::vector<int32_t>& ids) {
  StreamDecoder decoder(tokenizer());
  const std::string whole = tokenizer().decode(ids);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = decoder.push(id);
    require(!is_utf8(whole) || is_utf8(part), "no character is divided");
    text += part;
  }
  require(text + decoder.finish() == whole, "a stream is the text");
}

void check_changed(std::string_view line, std::vector<int32_t> ids, Numbers changes) {
  while (!changes.empty() && !ids.empty()) {
    const size_t at = changes.byte() % ids.size();
    ids[at] = static_cast<int32_t>(changes.integer(2)) % tokenizer().vocab_size();
  }
  check_stream(ids);
  const std::string difference = round_trip_difference(tokenizer(), line, ids);
  require(difference.empty() == (tokenizer().decode(ids) == line), "a difference is noticed");
  if (!difference.empty()) require_message(difference, true);
}

void run(std::string_view input) {
  const std::vector<std::string_view> parts = split(input, 2);
  const std::string_view text = parts[0];
  std::vector<int32_t> ids;
  const bool taken = accepted<DataError>([&] { ids = tokenizer().encode(text); });
  require(taken == is_utf8(text), "every UTF-8 text has ids");
  if (!taken) return;
  require(tokenizer().decode(ids) == text, "decoding inverts encoding");
  check_stream(ids);
  const std::string_view line = text.substr(0, text.find('\n'));
  ids.clear();
  tokenizer().encode_line(line, ids);
  require(round_trip_difference(tokenizer(), line, ids).empty(), "a line comes back");
  if (parts.size() > 1) check_changed(line, ids, Numbers(parts[1]));
  require(accepted<DataError>([&] { tokenizer().encode_line(text, ids); }) ==
              (text.find('\n') == std::string_view::npos),
          "a line has no line end");
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
