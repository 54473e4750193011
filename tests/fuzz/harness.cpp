#include "tests/fuzz/harness.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "stablemask/base/log.h"
#include "stablemask/base/utf8.h"

namespace stablemask::fuzz {
namespace {

// As in a process other than the first of several: no warning of a refused input is printed.
const bool kQuiet = [] {
  share_terminal(1, /*warnings=*/false);
  return true;
}();

// Threads of a few microseconds: with a stack of 8 MiB each would take a millisecond under the
// address sanitizer.
const bool kSmallStacks = [] {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, size_t{512} << 10);
  return pthread_setattr_default_np(&attributes) == 0;
}();

void write_all(int fd, std::string_view content, const std::string& path) {
  while (!content.empty()) {
    const ssize_t count = ::write(fd, content.data(), content.size());
    require(count > 0, "harness: cannot write " + path);
    content.remove_prefix(static_cast<size_t>(count));
  }
}

struct Folder {
  Folder() {
    const char* parent = std::getenv("TMPDIR");
    path = std::string(parent ? parent : "/dev/shm") + "/fuzz-XXXXXX";
    require(::mkdtemp(path.data()) != nullptr, "harness: cannot make " + path);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

}  // namespace

void require(bool holds, std::string_view promise) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %.*s\n", static_cast<int>(promise.size()), promise.data());
  std::abort();
}

std::vector<std::string_view> split(std::string_view text, size_t most) {
  std::vector<std::string_view> parts;
  while (parts.size() + 1 < most) {
    const size_t end = text.find(kSeparator);
    if (end == std::string_view::npos) break;
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  parts.push_back(text);
  return parts;
}

void require_message(std::string_view message, bool one_line) {
  require(!message.empty(), "a refusal has a message");
  const auto is_control = [&](char c) {
    return (static_cast<unsigned char>(c) < 0x20 && (one_line || c != '\n')) || c == 0x7F;
  };
  bool printable = std::none_of(message.begin(), message.end(), is_control);
  for (size_t at = 0; (at = message.find('\xC2', at)) != std::string_view::npos; ++at) {
    printable = printable && static_cast<unsigned char>(message.substr(at)[1]) >= 0xA0;  // U+0080…
  }
  if (printable && is_utf8(message)) return;
  require(false, "a message can be printed: " + std::string(message));
}

uint8_t Numbers::byte() { return static_cast<uint8_t>(integer(1)); }

uint64_t Numbers::integer(int bytes) {
  uint64_t value = 0;
  int shift = 0;
  for (const char c : take(static_cast<size_t>(bytes))) {
    value |= uint64_t{static_cast<unsigned char>(c)} << shift;
    shift += 8;
  }
  return value;
}

std::string_view Numbers::take(size_t size) {
  const std::string_view taken = bytes_.substr(0, size);
  bytes_.remove_prefix(taken.size());
  return taken;
}

MemoryFile::MemoryFile() : fd_(::memfd_create("input", MFD_CLOEXEC)) {
  path_ = "/proc/self/fd/" + std::to_string(fd_);
  require(fd_ >= 0, "harness: no memory file");
}

MemoryFile::~MemoryFile() { ::close(fd_); }

void MemoryFile::write(std::string_view content) {
  shorten(0);
  require(::lseek(fd_, 0, SEEK_SET) == 0, "harness: cannot seek in a memory file");
  write_all(fd_, content, path_);
}

void MemoryFile::shorten(uint64_t size) {
  require(::ftruncate(fd_, static_cast<off_t>(size)) == 0, "harness: cannot shorten a memory file");
}

const std::string& scratch_folder() {
  static const Folder folder;
  return folder.path;
}

void write_file(const std::string& path, std::string_view content) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  require(fd >= 0, "harness: cannot open " + path);
  write_all(fd, content, path);
  ::close(fd);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace stablemask::fuzz
