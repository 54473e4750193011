#include "tests/reliability/disk_model.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <utility>

#include "tests/io/scratch.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

/// The bytes of a text that strace prints as "\x41\x42".
std::string decoded(std::string_view hex) {
  std::string bytes;
  for (size_t k = 0; k + 3 < hex.size(); k += 4) {
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(k + 2, 2)), nullptr, 16));
  }
  return bytes;
}

/// Splits "3, \"\\x41\", 1" at its commas. Of a list of buffers remain the joined texts.
std::vector<std::string> split_arguments(std::string_view text) {
  std::vector<std::string> arguments(1);
  int depth = 0;
  bool has_text = false;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') {
      const size_t end = std::min(text.find('"', at + 1), text.size());
      if (!has_text) arguments.back().clear();
      arguments.back() += decoded(text.substr(at + 1, end - at - 1));
      has_text = true;
      at = end;
    } else if (c == ',' && depth == 0) {
      arguments.emplace_back();
      has_text = false;
    } else {
      depth += (c == '[' || c == '{') - (c == ']' || c == '}');
      if (!has_text && c != ' ') arguments.back() += c;
    }
  }
  return arguments;
}

std::optional<TracedCall> parse_call(std::string_view line) {
  const size_t open = line.find('(');
  const size_t close = line.rfind(") ");
  const size_t equals = line.rfind("= ");
  if (open == std::string_view::npos || close == std::string_view::npos ||
      equals == std::string_view::npos || close < open || equals < close) {
    return std::nullopt;
  }
  TracedCall call;
  call.name = line.substr(0, open);
  call.result = std::strtoll(std::string(line.substr(equals + 2)).c_str(), nullptr, 10);
  if (call.result < 0) return std::nullopt;
  call.arguments = split_arguments(line.substr(open + 1, close - open - 1));
  return call;
}

}  // namespace

const char* const kRecordCalls =
    "-f -qq -xx -s 100000000 -e trace=openat,write,writev,pwrite64,fsync,fdatasync,ftruncate,close,"
    "lseek,dup,fcntl,?rename,renameat2,?unlink,unlinkat,?rmdir,?mkdir,mkdirat -e signal=none";

std::vector<TracedCall> traced_calls(const std::string& log) {
  const std::string cut = " <unfinished ...>", resumed = " resumed>";
  std::map<std::string, std::string> heads;  // of calls under way, by thread
  std::vector<TracedCall> calls;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.find(' ');
    if (space == std::string::npos) continue;
    const std::string thread = line.substr(0, space);
    std::string text = line.substr(line.find_first_not_of(' ', space));
    if (text.ends_with(cut)) {
      heads[thread] = text.substr(0, text.size() - cut.size());
      continue;
    }
    if (text.starts_with("<... ")) {
      text = heads[thread] + text.substr(text.find(resumed) + resumed.size());
    }
    if (std::optional<TracedCall> call = parse_call(text)) calls.push_back(*std::move(call));
  }
  return calls;
}

DiskImage read_image(const std::string& root) {
  DiskImage image;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const std::string path = fs::relative(entry.path(), root);
    image[path] = entry.is_directory() ? std::optional<std::string>() : read_bytes(entry.path());
  }
  return image;
}

void write_image(const DiskImage& image, const std::string& root) {
  fs::remove_all(root);
  fs::create_directory(root);
  for (const auto& [path, bytes] : image) {  // folders come before their content
    if (bytes) {
      write_bytes(root + "/" + path, *bytes);
    } else {
      fs::create_directory(root + "/" + path);
    }
  }
}

DiskModel::DiskModel(const std::string& root) : root_(root) {
  new_node(true);
  for (const auto& [path, bytes] : read_image(root)) {
    const Place place = place_of("AT_FDCWD", root + "/" + path);
    const int node = new_node(!bytes);
    if (bytes) live_[node].bytes = *bytes;
    live_[place.folder].entries[place.name] = node;
  }
  durable_ = live_;
}

int DiskModel::new_node(bool is_folder) {
  live_.push_back({is_folder, "", {}});
  durable_.resize(live_.size());
  durable_.back().is_folder = is_folder;
  return static_cast<int>(live_.size()) - 1;
}

DiskModel::Place DiskModel::place_of(const std::string& folder_argument,
                                     const std::string& path) const {
  Place place;
  std::string rest = path;
  if (path.starts_with("/")) {
    if (path != root_ && !path.starts_with(root_ + "/")) return place;
    rest = path.substr(root_.size());
    place.folder = 0;
  } else {
    const auto found = open_.find(std::atoi(folder_argument.c_str()));
    if (folder_argument == "AT_FDCWD" || found == open_.end()) return place;
    place.folder = found->second.node;
  }
  std::istringstream names(rest);
  for (std::string name; std::getline(names, name, '/');) {
    if (name.empty() || name == ".") continue;
    if (!place.name.empty()) place.folder = node_at(place);
    if (place.folder < 0) return {};
    place.name = name;
  }
  return place;
}

int DiskModel::node_at(const Place& place) const {
  if (place.folder < 0) return -1;
  if (place.name.empty()) return place.folder;
  const auto& entries = live_[place.folder].entries;
  const auto found = entries.find(place.name);
  return found == entries.end() ? -1 : found->second;
}

DiskModel::OpenFile* DiskModel::open_file(const std::string& argument) {
  const auto found = open_.find(std::atoi(argument.c_str()));
  return found == open_.end() ? nullptr : &found->second;
}

bool DiskModel::change(Change change) {
  apply(change, Fate::kKept, live_);
  unconfirmed_.push_back(std::move(change));
  return true;
}

bool DiskModel::replay(const TracedCall& call) {
  const std::string& name = call.name;
  const std::vector<std::string>& arguments = call.arguments;
  const auto place = [&](size_t k) { return place_of(arguments[k], arguments[k + 1]); };
  if (name == "openat") return open(call);
  if (name == "write" || name == "writev" || name == "pwrite64") return write(call);
  if (name == "rename") {
    return rename(place_of("AT_FDCWD", arguments[0]), place_of("AT_FDCWD", arguments[1]), false);
  }
  if (name == "renameat2") {
    return rename(place(0), place(2), arguments[4].find("EXCHANGE") != std::string::npos);
  }
  if (name == "unlinkat") return remove(place(0));
  if (name == "unlink" || name == "rmdir") return remove(place_of("AT_FDCWD", arguments[0]));
  if (name == "mkdirat") return make_folder(place(0));
  if (name == "mkdir") return make_folder(place_of("AT_FDCWD", arguments[0]));
  OpenFile* const file = open_file(arguments[0]);
  if (file == nullptr) return false;
  if (name == "ftruncate") {
    return change({{}, file->node, std::stoull(arguments[1]), "", true});
  }
  if (name == "fsync" || name == "fdatasync") {
    confirm(file->node);
    return true;
  }
  if (name == "lseek") file->offset = static_cast<uint64_t>(call.result);
  if (name == "close") open_.erase(std::atoi(arguments[0].c_str()));
  const bool copies = name == "dup" || (name == "fcntl" && arguments[1].starts_with("F_DUPFD"));
  if (copies) open_[static_cast<int>(call.result)] = OpenFile(*file);
  return false;
}

bool DiskModel::open(const TracedCall& call) {
  const Place place = place_of(call.arguments[0], call.arguments[1]);
  const std::string& flags = call.arguments[2];
  const auto has = [&](const char* flag) { return flags.find(flag) != std::string::npos; };
  open_.erase(static_cast<int>(call.result));
  if (place.folder < 0) return false;
  const bool creates = node_at(place) < 0;
  if (creates) change({{{place.folder, place.name, new_node(false)}}, -1, 0, "", false});
  const int node = node_at(place);
  open_[static_cast<int>(call.result)] = {node, 0, has("O_APPEND")};
  const bool empties = has("O_TRUNC") && !live_[node].bytes.empty();
  if (empties) change({{}, node, 0, "", true});
  return creates || empties;
}

bool DiskModel::write(const TracedCall& call) {
  const std::string bytes = call.arguments[1].substr(0, static_cast<size_t>(call.result));
  const int descriptor = std::atoi(call.arguments[0].c_str());
  OpenFile* const file = open_file(call.arguments[0]);
  if (file == nullptr) {
    if (descriptor == 1 || descriptor == 2) said_ += bytes;
    return descriptor == 1 || descriptor == 2;
  }
  if (file->appends) file->offset = live_[file->node].bytes.size();
  if (call.name == "pwrite64") {
    return change({{}, file->node, std::stoull(call.arguments[3]), bytes, false});
  }
  const uint64_t offset = std::exchange(file->offset, file->offset + bytes.size());
  return change({{}, file->node, offset, bytes, false});
}

bool DiskModel::rename(const Place& from, const Place& to, bool exchanges) {
  const int node = node_at(from);
  if (node < 0 || to.folder < 0) return false;
  const int left = exchanges ? node_at(to) : -1;
  return change({{{from.folder, from.name, left}, {to.folder, to.name, node}}, -1, 0, "", false});
}

bool DiskModel::remove(const Place& place) {
  if (node_at(place) < 0) return false;
  return change({{{place.folder, place.name, -1}}, -1, 0, "", false});
}

bool DiskModel::make_folder(const Place& place) {
  if (place.folder < 0) return false;
  return change({{{place.folder, place.name, new_node(true)}}, -1, 0, "", false});
}

void DiskModel::confirm(int node) {
  std::erase_if(unconfirmed_, [&](const Change& change) {
    const bool covered =
        change.file == node || std::any_of(change.entries.begin(), change.entries.end(),
                                           [&](const auto& entry) { return entry.folder == node; });
    if (covered) apply(change, Fate::kKept, durable_);
    return covered;
  });
}

void DiskModel::apply(const Change& change, Fate fate, Nodes& nodes) {
  if (fate == Fate::kLost) return;
  for (const Change::Entry& entry : change.entries) {
    auto& entries = nodes[entry.folder].entries;
    if (entry.node < 0) {
      entries.erase(entry.name);
    } else {
      entries[entry.name] = entry.node;
    }
  }
  if (change.file < 0) return;
  std::string& bytes = nodes[change.file].bytes;
  if (change.truncates) return bytes.resize(change.offset);
  std::string written = change.bytes;
  if (fate == Fate::kSizeOnly) std::fill(written.begin(), written.end(), '\0');
  if (fate == Fate::kHalf) written.resize(written.size() / 2);
  bytes.resize(std::max(bytes.size(), change.offset + written.size()));
  bytes.replace(change.offset, written.size(), written);
}

DiskImage DiskModel::after_failure(const std::function<Fate(const Change&)>& fate) const {
  Nodes nodes = durable_;
  for (const Change& change : unconfirmed_) apply(change, fate(change), nodes);
  return image_of(nodes);
}

DiskImage DiskModel::image_of(const Nodes& nodes) {
  DiskImage image;
  std::vector<std::pair<int, std::string>> folders = {{0, ""}};
  while (!folders.empty()) {
    const auto [folder, path] = folders.back();
    folders.pop_back();
    for (const auto& [name, node] : nodes[folder].entries) {
      if (nodes[node].is_folder) {
        image[path + name] = std::nullopt;
        folders.push_back({node, path + name + "/"});
      } else {
        image[path + name] = nodes[node].bytes;
      }
    }
  }
  return image;
}

}  // namespace stablemask
