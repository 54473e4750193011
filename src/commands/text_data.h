#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "stablemask/data/prepare.h"
#include "stablemask/data/shards.h"
#include "stablemask/data/tokenizer.h"

namespace stablemask::commands {

/// A new folder for temporary files, removed by the destructor. TMPDIR says where. Locked with
/// flock while the object lives: the constructor removes the folders that killed processes left.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  bool lock();

  std::string path_;
  int lock_ = -1;
};

/// Shard::verify and prepare_shard, or `prepare`, with progress on standard error.
void verify_shown(const Shard& shard);
ShardInfo prepare_shown(const std::string& input, const std::string& output,
                        const Tokenizer& tokenizer, PrepareOptions options,
                        decltype(&prepare_shard) prepare = &prepare_shard);

/// --format and --field: how a text or JSONL file is read.
void add_text_format(CLI::App& command, PrepareOptions& options);

/// The shard that --data names, after a check of its tokenizer and its payload; a text or JSONL
/// file, or "-" for standard input, is encoded into a shard in `folder` as `prepare` says, on
/// `threads` CPU threads, all without a number. Throws DataError.
Shard open_data(const std::string& path, const Tokenizer& tokenizer, const std::string& folder,
                PrepareOptions prepare = {}, std::optional<int64_t> threads = {});

}  // namespace stablemask::commands
