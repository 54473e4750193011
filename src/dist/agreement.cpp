#include "stablemask/dist/agreement.h"

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "src/dist/host_name.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask::dist {
namespace {

/// Of a text that begins with the line of its process's host: the host and the rest.
std::pair<std::string, std::string> split_host(const std::string& text) {
  const size_t end = text.find('\n');
  return {text.substr(0, end), text.substr(end + 1)};
}

std::string without_breaks(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

/// "process 2 (gpu007)".
std::string process_name(size_t rank, const std::string& host) {
  return format("process %zu (%s)", rank, host.c_str());
}

/// One name or value a line.
std::string lines_of(const std::vector<Fact>& facts) {
  std::string lines;
  for (const auto& [name, value] : facts)
    lines += without_breaks(name) + "\n" + without_breaks(value) + "\n";
  return lines;
}

std::vector<Fact> facts_of(const std::string& lines) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin);
    parts.push_back(lines.substr(begin, end - begin));
    begin = end + 1;
  }
  std::vector<Fact> facts;
  for (size_t i = 0; i + 1 < parts.size(); i += 2) facts.emplace_back(parts[i], parts[i + 1]);
  return facts;
}

/// "GPU A instead of B", in the order of `expected`.
std::vector<std::string> differences(const std::vector<Fact>& expected,
                                     const std::vector<Fact>& found) {
  std::map<std::string, std::string> left(found.begin(), found.end());
  std::vector<std::string> all;
  for (const auto& [name, value] : expected) {
    const auto other = left.find(name);
    const std::string here = other == left.end() ? "nothing" : other->second;
    if (here != value) all.push_back(name + " " + here + " instead of " + value);
    if (other != left.end()) left.erase(other);
  }
  for (const auto& [name, value] : left) all.push_back(name + " " + value + " instead of nothing");
  return all;
}

/// The GNU build id in the notes [begin, end) of a loaded file, as hex digits; "": none.
std::string build_id_in(const char* begin, const char* end) {
  const auto padded = [](size_t size) { return (size + 3) / 4 * 4; };
  while (static_cast<size_t>(end - begin) >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) note;
    std::memcpy(&note, begin, sizeof(note));
    const char* const name = begin + sizeof(note);
    const char* const value = name + padded(note.n_namesz);
    if (value + note.n_descsz > end) return "";
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0) {
      std::string hex;
      for (size_t i = 0; i < note.n_descsz; ++i) {
        hex += format("%02x", static_cast<unsigned>(static_cast<unsigned char>(value[i])));
      }
      return hex;
    }
    begin = value + padded(note.n_descsz);
  }
  return "";
}

std::string program_id() {
  std::string id;
  const auto visit = [](dl_phdr_info* file, size_t, void* result) {
    for (int i = 0; i < file->dlpi_phnum; ++i) {
      const ElfW(Phdr)& part = file->dlpi_phdr[i];
      if (part.p_type != PT_NOTE) continue;
      const auto* const notes = reinterpret_cast<const char*>(file->dlpi_addr + part.p_vaddr);
      const std::string found = build_id_in(notes, notes + part.p_memsz);
      if (!found.empty()) *static_cast<std::string*>(result) = found;
    }
    return 1;  // the first file is the program itself
  };
  ::dl_iterate_phdr(visit, &id);
  return id;
}

}  // namespace

Fact program_fact() { return {"program (build id)", program_id()}; }

void require_equal(Group& group, const std::vector<Fact>& facts) {
  const std::vector<std::string> texts = group.share(host_name() + "\n" + lines_of(facts));
  const auto [first_host, first_lines] = split_host(texts[0]);
  for (size_t rank = 1; rank < texts.size(); ++rank) {
    const auto [other_host, lines] = split_host(texts[rank]);
    if (lines == first_lines) continue;
    throw ConfigError(process_name(rank, other_host) + " differs from " +
                      process_name(0, first_host) + ": " +
                      join(differences(facts_of(first_lines), facts_of(lines))) +
                      "; start all processes with the same command, files and program");
  }
}

std::string text_of_first(Group& group, const std::string& text) {
  return group.share(">" + text)[0].substr(1);
}

bool any_failed(Group& group, const std::string& problem) {
  const std::vector<std::string> texts = group.share(host_name() + "\n" + problem);
  if (!problem.empty()) return true;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    const auto [host, other_problem] = split_host(texts[rank]);
    if (other_problem.empty()) continue;
    throw PeerLostError(process_name(rank, host) + " ended: " + without_breaks(other_problem));
  }
  return false;
}

}  // namespace stablemask::dist
