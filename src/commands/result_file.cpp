#include "src/commands/result_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

// The first line of a file of results begins so.
constexpr std::string_view kHead = "{\"stablemask_results\":1,\"facts\":";
constexpr size_t kHashSize = 16;
constexpr const char* kRemedy = "; call the command as it was, or remove the file to begin anew";

std::string header_of(const RunFacts& facts) {
  Json json = Json::array();
  for (const auto& [name, value] : facts) json.push_back({name, value});
  return std::string(kHead) + json_text(json) + "}\n";
}

/// Whether the path still names the open file.
bool names(const std::string& path, int fd) {
  struct stat named {};
  struct stat open {};
  return ::stat(path.c_str(), &named) == 0 && ::fstat(fd, &open) == 0 &&
         named.st_dev == open.st_dev && named.st_ino == open.st_ino;
}

/// The next line with its line end, if it has one; false at the end.
bool next_line(std::ifstream& file, std::string& line) {
  if (!std::getline(file, line)) return false;
  if (!file.eof()) line += '\n';
  return !line.empty();
}

}  // namespace

ResultFile::ResultFile(const std::string& path, const RunFacts& facts,
                       std::vector<ResultInput> inputs)
    : output_(path, OutputContent::kText, ExitCode::kConfig), inputs_(std::move(inputs)) {
  if (!output_.is_regular_file()) return;
  partial_ = path + ".partial";
  open_partial();
  try {
    resume(facts);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

ResultFile::~ResultFile() {
  if (fd_ < 0) return;
  if (complete_ == 0) ::unlink(partial_.c_str());
  ::close(fd_);
}

void ResultFile::open_partial() {
  while (true) {
    fd_ = retry_interrupted(
        [&] { return ::open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644); });
    if (fd_ < 0) throw_file_error(ExitCode::kConfig, partial_, "cannot be opened", errno);
    const bool locked = try_lock(fd_);
    if (locked && names(partial_, fd_)) return;
    ::close(fd_);
    if (!locked) throw ConfigError(partial_ + ": another process is writing it; wait for its end");
  }
}

/// Finds the results that are there, and removes what follows the last whole one.
void ResultFile::resume(const RunFacts& facts) {
  std::ifstream file(partial_, std::ios::binary);
  std::string line;
  if (!next_line(file, line)) line.clear();
  if (!std::string_view(line).starts_with(kHead.substr(0, line.size()))) {
    throw ConfigError(partial_ + ": is not a file of results that this command began; rename it");
  }
  const std::string header = line;
  bool more = header.ends_with('\n') && next_line(file, line) && is_result(line);
  if (!more) {
    begin_at(0);
    const std::string fresh = header_of(facts);
    return write_all(fd_, fresh.data(), fresh.size(), partial_, ExitCode::kConfig);
  }
  require_facts(header, facts);
  uint64_t size = header.size();
  for (; more; more = next_line(file, line) && is_result(line), ++complete_) {
    if (complete_ == inputs_.size()) {
      throw ConfigError(partial_ + ": has results of more prompts than there are now" + kRemedy);
    }
    const ResultInput& input = inputs_[complete_];
    if (std::string_view(line).substr(0, kHashSize) != input.hash) {
      throw ConfigError(input.name + " is not what " + partial_ + " was begun with" + kRemedy);
    }
    size += line.size();
  }
  if (file.bad()) throw_file_error(ExitCode::kConfig, partial_, "cannot be read", errno);
  begin_at(size);
}

void ResultFile::require_facts(const std::string& header, const RunFacts& facts) const {
  if (header == header_of(facts)) return;
  const Json json = Json::parse(header, /*cb=*/nullptr, /*allow_exceptions=*/false);
  const Json stored = json.is_object() ? json.value("facts", Json::array()) : Json::array();
  for (const auto& fact : facts) {
    for (const Json& before : stored) {
      const bool whole = before.is_array() && before.size() == 2 && before[1].is_string();
      if (!whole || before[0] != fact.first || before[1] == fact.second) continue;
      throw ConfigError(partial_ + ": was begun with " + fact.first + " " +
                        before[1].get<std::string>() + ", now it is " + fact.second + kRemedy);
    }
  }
  throw ConfigError(partial_ + ": was begun by another version of the program" + kRemedy);
}

/// After a power failure the end of the file may be anything.
bool ResultFile::is_result(std::string_view line) const {
  if (!line.ends_with('\n') || line.size() < kHashSize + 2 || line[kHashSize] != ' ') return false;
  return Json::accept(line.substr(kHashSize + 1));
}

void ResultFile::begin_at(uint64_t size) {
  const auto end = static_cast<off_t>(size);
  if (::ftruncate(fd_, end) != 0 || ::lseek(fd_, end, SEEK_SET) != end) {
    throw_file_error(ExitCode::kConfig, partial_, "cannot be written", errno);
  }
}

void ResultFile::write(std::string_view result) {
  if (fd_ < 0) {
    output_.write(std::string(result) + "\n");
    if (output_.is_standard_output()) std::fflush(stdout);
  } else {
    const std::string line = inputs_.at(complete_).hash + " " + std::string(result) + "\n";
    write_all(fd_, line.data(), line.size(), partial_, ExitCode::kConfig);
  }
  ++complete_;
}

void ResultFile::commit() {
  if (fd_ < 0) return output_.commit();
  std::ifstream file(partial_, std::ios::binary);
  std::string line;
  next_line(file, line);  // the facts
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (!next_line(file, line)) {
      throw_file_error(ExitCode::kConfig, partial_, "cannot be read", file.bad() ? errno : EIO);
    }
    output_.write(std::string_view(line).substr(kHashSize + 1));
  }
  output_.commit();
  ::unlink(partial_.c_str());
  sync_folder(parent_folder(partial_), ExitCode::kConfig);
}

}  // namespace stablemask::commands
