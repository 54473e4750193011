#include "src/commands/text_data.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <thread>

#include "src/commands/validators.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "stablemask-text-", kPattern = "XXXXXX";

/// A descriptor of a folder, whose symbolic link is not followed, with its lock; -1 when another
/// process holds it or this one may not open it.
int open_locked(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0 || ::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  ::close(fd);
  return -1;
}

/// Removes this user's temporary folders that no process holds. Each is locked meanwhile: a process
/// that has just created one finds out (TemporaryFolder::lock).
void remove_leftovers(const fs::path& place) {
  std::error_code error;  // a place that cannot be listed may still take a folder
  fs::directory_iterator entry(place, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (!name.starts_with(kPrefix) || name.size() != kPrefix.size() + kPattern.size()) continue;
    const int fd = open_locked(entry->path());
    if (fd < 0) continue;
    struct stat status {};
    std::error_code ignored;
    if (::fstat(fd, &status) == 0 && status.st_uid == ::geteuid()) {
      fs::remove_all(entry->path(), ignored);
    }
    ::close(fd);
  }
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  const fs::path place = fs::temp_directory_path();
  remove_leftovers(place);
  constexpr int kMostAttempts = 16;
  for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
    path_ = place / (std::string(kPrefix) + std::string(kPattern));
    if (::mkdtemp(path_.data()) == nullptr) break;
    if (lock()) return;
  }
  throw DataError(path_ + ": cannot be created: " + std::strerror(errno) +
                  "; set TMPDIR to a folder with space");
}

/// False when a process that looked for leftovers removed the folder before it was locked.
bool TemporaryFolder::lock() {
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) return false;
  struct stat held {};
  struct stat named {};
  if (try_lock(lock_) && ::fstat(lock_, &held) == 0 && ::stat(path_.c_str(), &named) == 0 &&
      held.st_dev == named.st_dev && held.st_ino == named.st_ino) {
    return true;
  }
  ::close(lock_);
  return false;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  ::close(lock_);
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
                        const Tokenizer& tokenizer, PrepareOptions options,
                        decltype(&prepare_shard) prepare) {
  // 0: unknown, of a pipe for example.
  std::error_code error;
  const bool file = input != "-" && std::filesystem::is_regular_file(input, error);
  const uintmax_t size = file ? std::filesystem::file_size(input, error) : 0;
  const int64_t total = error ? 0 : static_cast<int64_t>(size);
  WorkProgress progress("preparing", "B");
  options.progress = [&](const TextCounts& counts) {
    progress.show(static_cast<int64_t>(counts.input_bytes), total);
  };
  return prepare(input, output, tokenizer, options);
}

void add_text_format(CLI::App& command, PrepareOptions& options) {
  command
      .add_option("--format", options.format,
                  "text, jsonl, samples (of instruction data) or auto: JSONL by the names .jsonl, "
                  ".ndjson and .json, on standard input by its first bytes, {\"; samples by the "
                  "fields of the first object, prompt and completion, or messages")
      ->transform(one_of<TextFormat>({{"auto", TextFormat::kAuto},
                                      {"text", TextFormat::kText},
                                      {"jsonl", TextFormat::kJsonl},
                                      {"samples", TextFormat::kSamples}}));
  command.add_option("--field", options.jsonl_field, "JSONL: the field with the text")
      ->capture_default_str();
}

Shard open_data(const std::string& path, const Tokenizer& tokenizer, const std::string& folder,
                PrepareOptions prepare, std::optional<int64_t> threads) {
  if (path != "-" && Shard::is_shard(path)) {
    Shard shard = Shard::open(path);
    shard.require_tokenizer(tokenizer.sha256());
    verify_shown(shard);
    return shard;
  }
  prepare.threads = threads ? static_cast<int>(*threads)
                            : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  prepare_shown(path, folder + "/text.shard", tokenizer, prepare);
  return Shard::open(folder + "/text.shard");
}

}  // namespace stablemask::commands
