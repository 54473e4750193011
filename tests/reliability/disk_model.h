#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace stablemask {

/// A successful system call in strace's output.
struct TracedCall {
  std::string name;
  std::vector<std::string> arguments;  ///< texts in quotes without these, their bytes decoded
  int64_t result = 0;
};

/// The options of strace for traced_calls, without `-o LOG`.
extern const char* const kRecordCalls;

/// The calls of strace's output in their order. A call of a thread that others interrupt is where
/// it returned.
std::vector<TracedCall> traced_calls(const std::string& log);

/// Files and folders by their path below a root; nullopt: a folder.
using DiskImage = std::map<std::string, std::optional<std::string>>;

DiskImage read_image(const std::string& root);
/// Makes `root` hold `image` and nothing else.
void write_image(const DiskImage& image, const std::string& root);

/// What a power failure makes of a change that no fsync has confirmed.
enum class Fate {
  kLost,
  kKept,
  kSizeOnly,  ///< of written bytes: zeros in their place
  kHalf,      ///< of written bytes: the first half
};

/// A disk with a cache that only fsync empties. POSIX promises no more than this model: fsync of a
/// file confirms its bytes and not its name, fsync of a folder confirms its entries and not the
/// content of what they name, and what is not confirmed may be lost in any combination. A rename is
/// one change.
class DiskModel {
 public:
  /// A change since the last fsync that covers it.
  struct Change {
    struct Entry {
      int folder = 0;
      std::string name;
      int node = -1;  ///< what the name stands for then; -1: nothing
    };
    std::vector<Entry> entries;  ///< of folders; empty: a change of a file's bytes
    int file = -1;
    uint64_t offset = 0;
    std::string bytes;
    bool truncates = false;  ///< to `offset` bytes
  };

  /// A disk that holds the content of `root`, a path without a "/" at its end.
  explicit DiskModel(const std::string& root);

  /// Carries out one call. False when it changed nothing under the root and said nothing.
  bool replay(const TracedCall& call);

  /// What the program has written to its standard output and standard error so far.
  const std::string& said() const { return said_; }
  const std::vector<Change>& unconfirmed() const { return unconfirmed_; }
  /// The files as the programs see them.
  DiskImage live() const { return image_of(live_); }
  /// The files after a power failure that makes of each unconfirmed change what `fate` says.
  DiskImage after_failure(const std::function<Fate(const Change&)>& fate) const;

 private:
  struct Node {
    bool is_folder = false;
    std::string bytes;
    std::map<std::string, int> entries;
  };
  using Nodes = std::vector<Node>;
  struct Place {
    int folder = -1;  ///< -1: not under the root
    std::string name;
  };
  struct OpenFile {
    int node = 0;
    uint64_t offset = 0;
    bool appends = false;
  };

  Place place_of(const std::string& folder_argument, const std::string& path) const;
  int node_at(const Place& place) const;
  int new_node(bool is_folder);
  OpenFile* open_file(const std::string& argument);
  bool change(Change change);
  bool open(const TracedCall& call);
  bool write(const TracedCall& call);
  bool rename(const Place& from, const Place& to, bool exchanges);
  bool remove(const Place& place);
  bool make_folder(const Place& place);
  void confirm(int node);
  static void apply(const Change& change, Fate fate, Nodes& nodes);
  static DiskImage image_of(const Nodes& nodes);

  std::string root_, said_;
  Nodes live_, durable_;  ///< node 0 is the root
  std::vector<Change> unconfirmed_;
  std::map<int, OpenFile> open_;  ///< by descriptor
};

}  // namespace stablemask
