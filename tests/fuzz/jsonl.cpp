// Input: JSONL to prepare. After a separator at the front, the field's name and another separator.
#include "stablemask/base/json_source.h"
#include "stablemask/base/utf8.h"
#include "tests/fuzz/harness.h"
#include "tests/fuzz/prepared.h"

namespace stablemask::fuzz {
namespace {

/// The documents of lines that were accepted, read by the other parser of the program.
std::string documents_of(std::string_view lines, const std::string& field) {
  std::string text;
  while (!lines.empty()) {
    std::string_view line = lines.substr(0, lines.find('\n'));
    lines.remove_prefix(std::min(line.size() + 1, lines.size()));
    if (line.find_first_not_of(" \t\r\v\f") == std::string_view::npos) continue;
    if (line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    const JsonValue value = parse_json(line);
    const JsonMember* found = nullptr;
    for (const JsonMember& member : value.members) {
      if (member.key != field) continue;
      require(found == nullptr, "a field is there once");
      found = &member;
    }
    require(found != nullptr, "a line has the field");
    text += found->value.text;
    if (!found->value.text.ends_with('\n')) text += '\n';
  }
  return text;
}

void run(std::string_view input) {
  std::string field = "text";
  if (input.starts_with(kSeparator)) {
    const std::vector<std::string_view> parts = split(input.substr(1), 2);
    field = parts[0];
    input = parts.size() > 1 ? parts[1] : "";
  }
  if (!is_utf8(field)) return;  // the command line refuses it
  accepted<DataError>([&] {
    const Prepared prepared = prepare(input, {.format = TextFormat::kJsonl, .jsonl_field = field});
    std::string expected;
    try {
      expected = documents_of(input, field);
    } catch (const JsonSyntaxError& error) {
      // The depth is limited in one parser at 32.
      require(std::string_view(error.what()).starts_with("nested deeper"), error.what());
      return;
    }
    require(prepared.text == expected, "no byte of a document is lost");
  });
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
