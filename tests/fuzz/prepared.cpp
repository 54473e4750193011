#include "tests/fuzz/prepared.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "stablemask/base/sha256.h"
#include "tests/fuzz/harness.h"
#include "tests/fuzz/tokenizer_model.h"

namespace stablemask::fuzz {

Prepared prepare(std::string_view input, PrepareOptions options) {
  static const Tokenizer tokenizer = Tokenizer::from_bytes(sound_model(), "tokenizer.model");
  static MemoryFile file;
  static const std::string output = scratch_folder() + "/x.shard";
  file.write(input);
  options.chunk_bytes = input.size() % 4 == 0 ? 16 : 4096;  // some in several chunks
  Prepared prepared;
  try {
    prepared.info = prepare_shard(file.path(), output, tokenizer, options);
  } catch (const DataError&) {
    require(std::filesystem::is_empty(scratch_folder()), "a refused text leaves no file");
    throw;
  }
  const Shard shard = Shard::open(output);
  shard.verify();
  std::vector<int64_t> tokens(static_cast<size_t>(shard.size()));
  shard.read(0, shard.size(), tokens.data());
  prepared.text = tokenizer.decode(std::vector<int32_t>(tokens.begin(), tokens.end()));
  require(::unlink(output.c_str()) == 0, "harness: cannot remove the shard");

  const std::string& text = prepared.text;
  require(shard.info().payload_sha256 == prepared.info.payload_sha256, "the header is returned");
  require(prepared.info.bytes == text.size(), "its bytes are counted");
  require(prepared.info.text_sha256 == sha256_hex(text.data(), text.size()), "its text is hashed");
  const auto lines = static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n'));
  require(prepared.info.lines == lines, "its lines are counted");
  return prepared;
}

}  // namespace stablemask::fuzz
