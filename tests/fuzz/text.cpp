// Input: a text to prepare.
#include "stablemask/base/utf8.h"
#include "tests/fuzz/harness.h"
#include "tests/fuzz/prepared.h"

namespace stablemask::fuzz {
namespace {

void check_counts(std::string_view input, const ShardInfo& info) {
  static MemoryFile file;
  file.write(input);
  const TextCounts counts = count_text(file.path());
  require(counts.bytes == info.bytes && counts.lines == info.lines && counts.words == info.words &&
              counts.documents == info.documents,
          "text and shard have the same counts");
}

void run(std::string_view input) {
  const bool taken = accepted<DataError>([&] {
    const Prepared prepared = prepare(input, {.format = TextFormat::kText});
    require(prepared.text == input, "no byte is lost");
    // Its buffer is large, and most of the time would go into it.
    if (input.size() % 8 == 0) check_counts(input, prepared.info);
  });
  // Magic numbers that are UTF-8: of zip, bzip2 and lz4.
  for (const char* magic : {"PK", "BZh", "\x04\"M\x18"}) {
    if (input.starts_with(magic)) return;
  }
  require(taken == (is_utf8(input) && !input.empty()), "every UTF-8 text is taken");
}

}  // namespace
}  // namespace stablemask::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stablemask::fuzz::run(stablemask::fuzz::text_of(data, size));
  return 0;
}
