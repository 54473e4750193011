#include "src/commands/text_data.h"

#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>

#include "stablemask/base/error.h"
#include "stablemask/data/prepare.h"

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

Shard open_data(const std::string& path, const Tokenizer& tokenizer, const std::string& folder) {
  if (path != "-" && Shard::is_shard(path)) {
    Shard shard = Shard::open(path);
    shard.require_tokenizer(tokenizer.sha256());
    shard.verify();
    return shard;
  }
  PrepareOptions prepare;
  prepare.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  prepare_shard(path, folder + "/text.shard", tokenizer, prepare);
  return Shard::open(folder + "/text.shard");
}

}  // namespace stablemask::commands
