#include "stablemask/base/output.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>

#include "stablemask/base/json_text.h"
#include "stablemask/base/stop.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;
using enum OutputContent;

constexpr ExitCode kData = ExitCode::kData;

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

/// Writes `text` to an output in two calls.
void put(const std::string& path, const std::string& text, OutputContent content = kText) {
  OutputFile file(path, content, kData);
  file.write(text.substr(0, 1));
  file.write(text.substr(std::min<size_t>(1, text.size())));
  file.commit();
}

std::string refusal(const std::string& path, OutputContent content = kText) {
  return message_of<DataError>([&] { OutputFile(path, content, kData); });
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// All bytes that arrive at a descriptor until its end.
std::string read_to_end(int fd) {
  std::string text;
  char buffer[256];
  for (ssize_t count = 0; (count = ::read(fd, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(count));
  }
  return text;
}

class Pipe {
 public:
  Pipe() { EXPECT_EQ(::pipe2(ends_, O_CLOEXEC), 0); }
  ~Pipe() {
    ::close(ends_[0]);
    close_writer();
  }
  std::string path() const { return "/dev/fd/" + std::to_string(ends_[1]); }
  int reader() const { return ends_[0]; }
  int writer() const { return ends_[1]; }
  void close_writer() {
    if (ends_[1] >= 0) ::close(ends_[1]);
    ends_[1] = -1;
  }

 private:
  int ends_[2] = {-1, -1};
};

TEST(OutputFile, ARegularFileIsReplacedByCommitAlone) {
  const Scratch folder;
  write_bytes(folder / "f", "old");
  {
    OutputFile file(folder / "f", kPatched, kData);
    EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"f"}) << "nothing before the work";
    file.write("head, body");
    file.write_at(0, "HEAD", 4);
    EXPECT_EQ(read_bytes(folder / "f"), "old");
    file.commit();
  }
  EXPECT_EQ(read_bytes(folder / "f"), "HEAD, body");
  {
    OutputFile file(folder / "f", kText, kData);
    file.write("half");
  }
  { const OutputFile unused(folder / "g", kText, kData); }
  EXPECT_EQ(read_bytes(folder / "f"), "HEAD, body");
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"f"});
  put(folder / "empty", "");
  EXPECT_TRUE(fs::exists(folder / "empty"));
}

TEST(OutputFile, ALinkIsFollowedAndStays) {
  const Scratch folder;
  fs::create_directories(folder / "big/disk");
  write_bytes(folder / "big/disk/f", "old");
  fs::create_symlink("disk/f", folder / "big/hop");            // relative to the link's folder
  fs::create_symlink(folder / "big/hop", folder / "link");     // a link to a link
  fs::create_symlink("big/disk/absent", folder / "dangling");  // as the shell's > does
  put(folder / "link", "new");
  put(folder / "dangling", "made");
  EXPECT_EQ(names_in(folder / "big/disk"), (std::set<std::string>{"f", "absent"}));
  EXPECT_EQ(read_bytes(folder / "big/disk/f"), "new");
  EXPECT_EQ(read_bytes(folder / "big/disk/absent"), "made");
  EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"big", "link", "dangling"}));
  for (const char* link : {"link", "dangling", "big/hop"}) {
    EXPECT_TRUE(fs::is_symlink(folder / link)) << link;
  }
  fs::create_symlink("loop", folder / "loop");
  fs::create_symlink("none/f", folder / "astray");
  EXPECT_EQ(refusal(folder / "loop"),
            folder / "loop: cannot be followed: Too many levels of symbolic links");
  EXPECT_TRUE(contains(refusal(folder / "astray"), "astray: cannot be created: No such file"));
}

TEST(OutputFile, ADescriptorIsWrittenStraight) {
  for (const OutputContent content : {kText, kBytes}) {
    Pipe pipe;
    OutputFile file(pipe.path(), content, kData);
    pipe.close_writer();
    file.write("{\"a\": 1}");
    file.commit();  // closes: the reader sees the end
    EXPECT_EQ(read_to_end(pipe.reader()), "{\"a\": 1}");
  }
  // A file that is open for appending keeps what it holds.
  const Scratch folder;
  write_bytes(folder / "log", "first\n");
  const int log = ::open((folder / "log").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  put("/proc/self/fd/" + std::to_string(log), "second\n");
  EXPECT_EQ(::write(log, "third\n", 6), 6);
  ::close(log);
  EXPECT_EQ(read_bytes(folder / "log"), "first\nsecond\nthird\n");
}

TEST(OutputFile, ANamedPipeIsWrittenStraight) {
  const Scratch folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  fs::create_symlink("pipe", folder / "link");
  for (const std::string& name : {folder / "pipe", folder / "link"}) {
    std::string read;
    std::thread reader([&] {  // later than the writer, as a rule: it waits
      const int fd = ::open((folder / "pipe").c_str(), O_RDONLY | O_CLOEXEC);
      read = read_to_end(fd);
      ::close(fd);
    });
    const std::string text(200000, 'x');  // more than a pipe holds
    put(name, text);
    reader.join();
    EXPECT_EQ(read, text);
  }
  struct stat status {};
  ASSERT_EQ(::lstat((folder / "pipe").c_str(), &status), 0);
  EXPECT_TRUE(S_ISFIFO(status.st_mode));
  EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"link", "pipe"}));
}

TEST(OutputFile, AStopEndsTheWaitForAReader) {
  const Scratch folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  request_stop(SIGTERM);
  EXPECT_THROW(OutputFile(folder / "pipe", kText, kData), Stopped);
  request_stop(0);
}

TEST(OutputFile, ADeviceIsWrittenStraight) {
  put("/dev/null", "text");
  put("/dev/null", "text", kPatched);
  struct stat status {};
  ASSERT_EQ(::stat("/dev/null", &status), 0);
  EXPECT_TRUE(S_ISCHR(status.st_mode));
  EXPECT_EQ(status.st_rdev, ::makedev(1, 3));
  EXPECT_TRUE(contains(message_of<DataError>([] { put("/dev/full", "text"); }),
                       "/dev/full: cannot be written: No space left on device"));
}

TEST(OutputFile, StandardOutputIsForText) {
  ::testing::internal::CaptureStdout();
  std::printf("table\n");
  put("-", "json\n");
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "table\njson\n");
  EXPECT_TRUE(OutputFile("/dev/stdout", kText, kData).is_standard_output());
  for (const OutputContent content : {kBytes, kPatched}) {
    EXPECT_TRUE(contains(refusal("-", content), "the output must be a file, not \"-\""));
    EXPECT_TRUE(contains(refusal("/dev/stdout", content), "is an open descriptor"));
  }
}

TEST(OutputFile, TheFileOfStandardOutputIsNotReplaced) {
  const Scratch folder;
  const int kept = ::dup(STDOUT_FILENO);
  const int file = ::open((folder / "report").c_str(), O_WRONLY | O_CREAT, 0644);
  std::fflush(stdout);
  ::dup2(file, STDOUT_FILENO);
  fs::create_symlink("report", folder / "link");
  const std::string direct = refusal(folder / "report"), linked = refusal(folder / "link");
  ::dup2(kept, STDOUT_FILENO);
  ::close(kept);
  ::close(file);
  EXPECT_EQ(direct, folder / "report: is where standard output goes; name another file");
  EXPECT_EQ(linked, folder / "link: is where standard output goes; name another file");
}

TEST(OutputFile, RefusesBeforeTheWorkWhatCannotBeWritten) {
  const Scratch folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  const Pipe pipe;
  EXPECT_EQ(refusal(""), "the output must be a file, not \"\"");
  EXPECT_EQ(refusal(folder.path()), folder.path() + ": is a folder; name a file");
  EXPECT_TRUE(contains(refusal(folder / "none/f"), "none/f: cannot be created: No such file"));
  EXPECT_TRUE(contains(refusal("/proc/f"), "/proc/f: cannot be created"));
  EXPECT_TRUE(contains(refusal("/dev/fd/987"), "/dev/fd/987: cannot be opened: Bad file desc"));
  EXPECT_TRUE(
      contains(refusal("/dev/fd/" + std::to_string(pipe.reader())), "is open for reading only"));
  // What is written at its start last.
  EXPECT_TRUE(contains(refusal(folder / "pipe", kPatched), "pipe: cannot be positioned"));
  EXPECT_TRUE(contains(refusal(pipe.path(), kPatched), "is an open descriptor"));
  if (::geteuid() != 0) {
    write_bytes(folder / "kept", "result");
    fs::permissions(folder / "kept", fs::perms::owner_read);
    EXPECT_TRUE(contains(refusal(folder / "kept"), "kept: cannot be replaced: Permission denied"));
  }
}

TEST(StandardStreams, AClosedOneIsNoPlaceForAFile) {
  const Scratch folder;
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDIN_FILENO), ::close(STDOUT_FILENO), ::close(STDERR_FILENO);
    open_standard_streams();
    char byte = 0;
    const bool refused = ::write(STDOUT_FILENO, "x", 1) < 0 && ::read(STDIN_FILENO, &byte, 1) < 0;
    const int file = ::open((folder / "f").c_str(), O_WRONLY | O_CREAT, 0644);
    ::_exit(refused && file > STDERR_FILENO ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(JsonText, BytesThatAreNotUtf8AreReplaced) {
  const nlohmann::ordered_json json = {{"caf\xE9", "\xFF / caf\u00E9"}};
  EXPECT_EQ(json_text(json), "{\"caf\uFFFD\":\"\uFFFD / caf\u00E9\"}");
  EXPECT_EQ(json_text(nlohmann::json({{"a", 1}}), 2), "{\n  \"a\": 1\n}");
}

}  // namespace
}  // namespace stablemask
