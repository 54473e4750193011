#include "stablemask/base/input_stream.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>

#include "stablemask/base/stop.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

constexpr size_t kLimit = 1 << 20;

std::string all_of(const std::string& path, size_t limit = kLimit) {
  return InputStream(path, ExitCode::kData).rest(limit);
}

TEST(InputStream, ReadsAFileToItsEnd) {
  const Scratch folder;
  const std::string text = std::string(200'000, 'x') + '\0' + "end\n";
  write_bytes(folder / "file", text);
  write_bytes(folder / "empty", "");
  EXPECT_EQ(all_of(folder / "file"), text);
  EXPECT_EQ(all_of(folder / "file", text.size()), text);
  EXPECT_EQ(all_of(folder / "empty"), "");
}

TEST(InputStream, ErrorsNameTheFileAndTheRemedy) {
  const Scratch folder;
  write_bytes(folder / "file", "four");
  EXPECT_EQ(message_of<DataError>([&] { all_of(folder / "none"); }),
            folder / "none" + ": cannot be opened: No such file or directory; check the path");
  EXPECT_EQ(message_of<DataError>([&] { all_of(folder.path()); }),
            folder.path() + ": is a folder; name a file");
  EXPECT_EQ(message_of<DataError>([&] { all_of(folder / "file", 3); }),
            folder / "file" + ": is longer than 3 bytes");
  EXPECT_EQ(message_of<ConfigError>(
                [&] { InputStream(folder / "none", ExitCode::kConfig, "--option").rest(kLimit); }),
            "--option: cannot be opened: No such file or directory; check the path");
}

TEST(InputStream, WaitsForTheWriterOfAFifo) {
  const Scratch folder;
  const std::string path = folder / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  std::thread writer([&] {
    const int fd = ::open(path.c_str(), O_WRONLY);
    for (const char* piece : {"first ", "second"}) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_GT(::write(fd, piece, std::string(piece).size()), 0);
    }
    ::close(fd);
  });
  EXPECT_EQ(all_of(path), "first second");
  writer.join();
}

TEST(InputStream, APipeWhoseWriterIsGoneHasAnEnd) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::write(ends[1], "rest", 4), 4);
  ::close(ends[1]);
  const std::string path = "/proc/self/fd/" + std::to_string(ends[0]);
  EXPECT_EQ(all_of(path), "rest");
  EXPECT_EQ(all_of(path), "");
  ::close(ends[0]);
}

TEST(InputStream, AStopSignalEndsTheWait) {
  const Scratch folder;
  const std::string fifo = folder / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const int silent = ::open(fifo.c_str(), O_RDWR);  // a writer that writes nothing
  for (const bool has_writer : {true, false}) {
    if (!has_writer) ::close(silent);
    std::thread signal([] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      request_stop(SIGTERM);
    });
    EXPECT_EQ(message_of<Stopped>([&] { all_of(fifo); }), "stopped by SIGTERM while reading text");
    signal.join();
    request_stop(0);
  }
}

}  // namespace
}  // namespace stablemask
