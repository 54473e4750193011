#include "src/data/text_kind.h"

#include <algorithm>
#include <iterator>

#include "stablemask/base/error.h"

namespace stablemask {
namespace {

using namespace std::string_view_literals;

struct ForeignKind {
  std::string_view magic;
  const char* what;
  const char* command;  // reads the file named after it, or standard input
};

// UTF-32 before UTF-16: the shorter mark begins the longer one.
constexpr ForeignKind kForeignKinds[] = {
    {"\x1F\x8B"sv, "compressed with gzip", "gzip -dc"},
    {"\xFD"
     "7zXZ\0"sv,
     "compressed with xz", "xz -dc"},
    {"\x28\xB5\x2F\xFD"sv, "compressed with zstd", "zstd -dc"},
    {"\x04\x22\x4D\x18"sv, "compressed with lz4", "lz4 -dc"},
    {"PK\x03\x04"sv, "a zip archive", "unzip -p"},
    {"\xFF\xFE\0\0"sv, "UTF-32", "iconv -f UTF-32 -t UTF-8"},
    {"\0\0\xFE\xFF"sv, "UTF-32", "iconv -f UTF-32 -t UTF-8"},
    {"\xFF\xFE"sv, "UTF-16", "iconv -f UTF-16 -t UTF-8"},
    {"\xFE\xFF"sv, "UTF-16", "iconv -f UTF-16 -t UTF-8"},
};

[[noreturn]] void fail(const std::string& name, const char* what, const std::string& command) {
  const bool file = name != "standard input";
  throw DataError(name + ": is " + what + ", not UTF-8 text; " +
                  (file ? "pipe it in: " + command + " " + name +
                              " | stablemask …, with - for the name of the file"
                        : "pass it through " + command + " first"));
}

}  // namespace

void require_plain_text(std::string_view head, const std::string& name) {
  for (const ForeignKind& kind : kForeignKinds) {
    if (head.starts_with(kind.magic)) fail(name, kind.what, kind.command);
  }
  // "BZh", the block size, and the number that begins a block: three letters could be text.
  if (head.starts_with("BZh") &&
      head.substr(std::min<size_t>(4, head.size())).starts_with("1AY&SY")) {
    fail(name, "compressed with bzip2", "bzip2 -dc");
  }
}

bool begins_like_jsonl(std::string_view head) {
  const auto skip_space = [&] {
    head.remove_prefix(std::min(head.find_first_not_of(" \t\r\n"), head.size()));
  };
  if (head.starts_with("\xEF\xBB\xBF")) head.remove_prefix(3);
  skip_space();
  if (!head.starts_with('{')) return false;
  head.remove_prefix(1);
  skip_space();
  return head.starts_with('"') || head.starts_with('}');
}

bool has_jsonl_name(std::string_view path) {
  std::string lower;
  std::transform(path.begin(), path.end(), std::back_inserter(lower),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 32) : c; });
  return lower.ends_with(".jsonl") || lower.ends_with(".ndjson") || lower.ends_with(".json");
}

}  // namespace stablemask
