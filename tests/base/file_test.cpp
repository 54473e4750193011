#include "stablemask/base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/io/file_size_limit.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

constexpr ExitCode kData = ExitCode::kData;

Names names_in(const Scratch& folder) {
  Names names;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    names.insert(entry.path().filename());
  }
  return names;
}

/// Whether `output` may be written while `inputs` are read.
bool may_write(const std::string& output, const std::vector<std::string>& inputs) {
  try {
    require_other_file(output, inputs);
    return true;
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(output + ": is the file that is read as"),
              std::string::npos)
        << error.what();
    return false;
  }
}

void write_text(AtomicFile& file, const std::string& text) { file.write(text.data(), text.size()); }

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Ends a process in the middle of a write to `path`: the destructor does not run.
void die_while_writing(const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(path, kData);
    write_text(file, "half");
    ::raise(SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
}

TEST(OtherFile, AFileThatIsReadIsRefusedUnderEveryName) {
  const Scratch folder;
  const std::string text = folder / "text", other = folder / "other", link = folder / "link",
                    twin = folder / "twin";
  write_file_atomically(text, "words");
  write_file_atomically(other, "words");
  fs::create_symlink(text, link);
  fs::create_hard_link(text, twin);
  for (const std::string& name : {text, link, twin, folder.path() + "/./text"}) {
    EXPECT_FALSE(may_write(name, {other, text})) << name;
    EXPECT_FALSE(may_write(text, {name})) << name;
  }
  EXPECT_TRUE(may_write(other, {text, link, twin, "-", ""}));
  EXPECT_TRUE(may_write(folder / "absent", {text, folder / "absent"}));
  EXPECT_TRUE(may_write("/dev/null", {"/dev/null"}));  // writing does not replace it
}

TEST(ThrowError, TheTypeFollowsTheCode) {
  EXPECT_THROW(throw_error(ExitCode::kData, "x"), DataError);
  EXPECT_THROW(throw_error(ExitCode::kCheckpoint, "x"), CheckpointError);
  EXPECT_THROW(throw_error(ExitCode::kConfig, "x"), ConfigError);
  try {
    throw_error(ExitCode::kPeerLost, "x");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kPeerLost);
    EXPECT_STREQ(error.what(), "x");
  }
}

TEST(AtomicFile, TheFileIsReplacedByCommitAlone) {
  const Scratch folder;
  write_bytes(folder / "f", "old");
  {
    AtomicFile file(folder / "f", kData);
    write_text(file, "head, body");
    file.write_at(0, "HEAD", 4);
    EXPECT_EQ(read_bytes(folder / "f"), "old");
    file.commit();
    EXPECT_EQ(read_bytes(folder / "f"), "HEAD, body");
  }
  EXPECT_EQ(names_in(folder), Names{"f"});
  {
    AtomicFile file(folder / "f", kData);
    write_text(file, "half");
    EXPECT_EQ(names_in(folder).size(), 2U);
  }
  EXPECT_EQ(read_bytes(folder / "f"), "HEAD, body");
  EXPECT_EQ(names_in(folder), Names{"f"});
}

TEST(AtomicFile, TwoWritersOfOnePathDoNotMix) {
  const Scratch folder;
  AtomicFile first(folder / "f", kData);
  write_text(first, "one");
  AtomicFile second(folder / "f", kData);
  write_text(second, "second");
  write_text(first, " and only");
  EXPECT_EQ(names_in(folder).size(), 2U) << "both are locked: neither is a leftover";
  second.commit();
  EXPECT_EQ(read_bytes(folder / "f"), "second");
  first.commit();
  EXPECT_EQ(read_bytes(folder / "f"), "one and only");
  EXPECT_EQ(names_in(folder), Names{"f"});
}

TEST(AtomicFile, ManyWritersAtOnceLeaveOneWholeFile) {
  const Scratch folder;
  std::vector<std::thread> writers;
  for (char letter = 'a'; letter < 'e'; ++letter) {
    writers.emplace_back([&folder, letter] {
      for (int round = 0; round < 50; ++round) {
        write_file_atomically(folder / "f", std::string(5000, letter), kData);
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  const std::string bytes = read_bytes(folder / "f");
  EXPECT_EQ(bytes, std::string(5000, bytes.at(0)));
  EXPECT_EQ(names_in(folder), Names{"f"});
}

TEST(AtomicFile, TheNextWriterRemovesWhatAKilledOneLeft) {
  const Scratch folder;
  die_while_writing(folder / "f");
  die_while_writing(folder / "g");
  ASSERT_EQ(names_in(folder).size(), 2U);
  write_file_atomically(folder / "f", "new", kData);
  EXPECT_EQ(names_in(folder).size(), 2U) << "f and the leftover of g";
  write_file_atomically(folder / "g", "new", kData);
  EXPECT_EQ(names_in(folder), (Names{"f", "g"}));
}

TEST(AtomicFile, OnlyItsOwnUnlockedTemporaryFilesAreLeftovers) {
  const Scratch folder;
  const std::string digits = ".tmp-0123456789abcdef";
  const Names others = {"f.tmp-12", "f.tmp-0123456789ABCDEF", "f.tmp-0123456789abcdef0",
                        "ff" + digits, "f" + digits + digits};
  for (const std::string& name : others) write_bytes(folder / name, "x");
  write_bytes(folder / ("f" + digits), "dead");
  const std::string living = folder / "f.tmp-aaaaaaaaaaaaaaaa";
  write_bytes(living, "living");
  const int lock = ::open(living.c_str(), O_RDONLY);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  EXPECT_TRUE(has_living_writer(living));
  EXPECT_FALSE(has_living_writer(folder / ("f" + digits)));
  write_file_atomically(folder / "f", "new", kData);
  Names expected = others;
  expected.insert({"f", "f.tmp-aaaaaaaaaaaaaaaa"});
  EXPECT_EQ(names_in(folder), expected);
  ::close(lock);
}

TEST(AtomicFile, SymbolicLinksAreNeitherFollowedNorRemoved) {
  const Scratch folder;
  write_bytes(folder / "victim", "precious");
  for (const std::string& name :
       {"f.tmp-" + std::to_string(::getpid()), std::string("f.tmp-0123456789abcdef")}) {
    fs::create_symlink(folder / "victim", folder / name);
  }
  write_file_atomically(folder / "f", "new", kData);
  EXPECT_EQ(read_bytes(folder / "victim"), "precious");
  EXPECT_EQ(names_in(folder).size(), 4U);
  fs::create_symlink(folder / "victim", folder / "planted");
  EXPECT_TRUE(contains(message_of<DataError>([&] { DurableFile(folder / "planted", kData); }),
                       "cannot be created: File exists"));
}

TEST(AtomicFile, NamesAreRandom) {
  std::string stem;
  EXPECT_NE(temporary_name("a/f"), temporary_name("a/f"));
  EXPECT_TRUE(is_temporary_name(temporary_name("f.tmp-x"), stem));
  EXPECT_EQ(stem, "f.tmp-x");
  EXPECT_TRUE(is_temporary_name("step-00000005.tmp-1-deadbeef", stem));
  EXPECT_EQ(stem, "step-00000005");
  EXPECT_FALSE(is_temporary_name("f", stem));
}

TEST(AtomicFile, RefusesWhatIsNoFile) {
  const Scratch folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  const auto message = [](const std::string& path) {
    return message_of<DataError>([&] { AtomicFile(path, kData); });
  };
  EXPECT_EQ(message(folder.path()), folder.path() + ": is a folder; name a file");
  EXPECT_TRUE(contains(message(folder / "pipe"), "is not a regular file"));
  EXPECT_TRUE(contains(message("-"), "must be a file"));
  EXPECT_TRUE(contains(message(""), "must be a file"));
  EXPECT_EQ(message(folder / "none/f"),
            folder / "none/f: cannot be created: No such file or directory; check the path");
  EXPECT_EQ(names_in(folder), Names{"pipe"});
  EXPECT_NE(message_of<CheckpointError>([&] { write_file_atomically(folder / "none/f", "a"); }),
            "");
}

TEST(AtomicFile, AFailedWriteKeepsTheOldFile) {
  const Scratch folder;
  write_bytes(folder / "f", "old");
  std::optional<FileSizeLimit> limit(1000);  // the write arrives in part, the next one fails
  const std::string message = message_of<CheckpointError>(
      [&] { write_file_atomically(folder / "f", std::string(3000, 'x')); });
  limit.reset();
  EXPECT_EQ(message, folder /
                         "f: cannot be written: File too large; the file size limit (ulimit -f) "
                         "is too small");
  EXPECT_EQ(read_bytes(folder / "f"), "old");
  EXPECT_EQ(names_in(folder), Names{"f"});
}

TEST(InputFile, AShortenedFileIsAnError) {
  const Scratch folder;
  write_bytes(folder / "f", "0123456789");
  const InputFile file(folder / "f", kData);
  std::string bytes(4, '\0');
  file.read(3, bytes.data(), bytes.size());
  EXPECT_EQ(bytes, "3456");
  EXPECT_EQ(file.text(10), "0123456789");
  EXPECT_TRUE(contains(message_of<DataError>([&] { file.text(9); }), "at most 9 were expected"));
  fs::resize_file(folder / "f", 5);
  EXPECT_EQ(message_of<DataError>([&] { file.read(3, bytes.data(), bytes.size()); }),
            folder /
                "f: was shortened while in use (it had 10 bytes when it was opened); restore "
                "the file and run again");
}

TEST(InputFile, RefusesWhatIsNoFile) {
  const Scratch folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  for (const std::string& path : {folder.path(), folder / "pipe"}) {
    EXPECT_TRUE(
        contains(message_of<DataError>([&] { InputFile(path, kData); }), "is not a regular file"));
  }
  EXPECT_TRUE(contains(message_of<DataError>([&] { InputFile(folder / "none", kData); }),
                       "none: cannot be opened: No such file or directory; check the path"));
}

TEST(ParentFolder, IgnoresATrailingSlash) {
  EXPECT_EQ(parent_folder("a/b"), "a");
  EXPECT_EQ(parent_folder("a/b/"), "a");
  EXPECT_EQ(parent_folder("b"), ".");
  EXPECT_EQ(parent_folder("/b"), "/");
}

}  // namespace
}  // namespace stablemask
