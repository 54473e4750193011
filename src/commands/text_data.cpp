#include "src/commands/text_data.h"

#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>

#include "stablemask/base/error.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {

TemporaryFolder::TemporaryFolder() {
  std::string pattern = std::filesystem::temp_directory_path() / "stablemask-text-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw DataError(pattern + ": cannot be created: " + std::strerror(errno) +
                    "; set TMPDIR to a folder with space");
  }
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void verify_shown(const Shard& shard) {
  WorkProgress progress("verifying", "B");
  int64_t done = 0;
  shard.verify([&](uint64_t bytes) {
    done += static_cast<int64_t>(bytes);
    progress.show(done, static_cast<int64_t>(shard.payload_bytes()));
  });
}

ShardInfo prepare_shown(const std::string& input, const std::string& output,
                        const Tokenizer& tokenizer, PrepareOptions options) {
  // 0: unknown, of a pipe for example.
  std::error_code error;
  const bool file = input != "-" && std::filesystem::is_regular_file(input, error);
  const uintmax_t size = file ? std::filesystem::file_size(input, error) : 0;
  const int64_t total = error ? 0 : static_cast<int64_t>(size);
  WorkProgress progress("preparing", "B");
  options.progress = [&](const TextCounts& counts) {
    progress.show(static_cast<int64_t>(counts.input_bytes), total);
  };
  return prepare_shard(input, output, tokenizer, options);
}

Shard open_data(const std::string& path, const Tokenizer& tokenizer, const std::string& folder) {
  if (path != "-" && Shard::is_shard(path)) {
    Shard shard = Shard::open(path);
    shard.require_tokenizer(tokenizer.sha256());
    verify_shown(shard);
    return shard;
  }
  PrepareOptions prepare;
  prepare.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  prepare_shown(path, folder + "/text.shard", tokenizer, prepare);
  return Shard::open(folder + "/text.shard");
}

}  // namespace stablemask::commands
