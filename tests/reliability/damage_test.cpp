// Damages every byte of a checkpoint, one at a time: always noticed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/io/checkpoint.h"
#include "tests/io/scratch.h"
#include "tests/io/tiny_checkpoint.h"

namespace stablemask {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> files_of(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path().string());
  return files;
}

void set_byte(const std::string& path, size_t offset, char value) {
  const int file = ::open(path.c_str(), O_WRONLY);
  ASSERT_EQ(::pwrite(file, &value, 1, static_cast<off_t>(offset)), 1);
  ::close(file);
}

bool is_refused(const std::string& folder) {
  return !message_of<CheckpointError>([&] { load_checkpoint(folder); }).empty();
}

/// Flips one bit, another one each time, of every `stride`-th byte.
int expect_every_flip_noticed(const std::string& folder, size_t stride) {
  int flips = 0;
  for (const std::string& path : files_of(folder)) {
    const std::string bytes = read_bytes(path);
    for (size_t k = 0; k < bytes.size(); k += stride, ++flips) {
      set_byte(path, k, static_cast<char>(bytes[k] ^ (1 << (k % 8))));
      EXPECT_TRUE(is_refused(folder)) << path << " byte " << k;
      EXPECT_FALSE(verify_checkpoint(folder).empty()) << path << " byte " << k;
      set_byte(path, k, bytes[k]);
    }
  }
  EXPECT_TRUE(verify_checkpoint(folder).empty());
  return flips;
}

TEST(Damage, EveryByteOfASmallCheckpoint) {
  const Scratch scratch;
  const std::string folder = save_checkpoint(scratch.path(), TinyCheckpoint(7).content(), {});
  const int flips = expect_every_flip_noticed(folder, 1);
  EXPECT_GT(flips, 1400);
  std::printf("%d bits flipped, all noticed\n", flips);
}

TEST(Damage, ManyBytesOfALargerCheckpoint) {
  const Scratch scratch;
  std::vector<float> weights(200'000);
  for (size_t k = 0; k < weights.size(); ++k) weights[k] = static_cast<float>(k) * 0.001f;
  TinyCheckpoint tiny(7);
  tiny.content().model["large"] = {ElementType::kF32, {400, 500}, weights.data()};
  const std::string folder = save_checkpoint(scratch.path(), tiny.content(), {});
  EXPECT_GT(expect_every_flip_noticed(folder, 4099), 190);
}

TEST(Damage, EveryTruncation) {
  const Scratch scratch;
  const std::string folder = save_checkpoint(scratch.path(), TinyCheckpoint(7).content(), {});
  for (const std::string& path : files_of(folder)) {
    const std::string bytes = read_bytes(path);
    for (size_t size = 0; size < bytes.size(); size += 7) {
      write_bytes(path, bytes.substr(0, size));
      EXPECT_TRUE(is_refused(folder)) << path << " cut to " << size;
    }
    fs::remove(path);
    EXPECT_TRUE(is_refused(folder)) << path << " removed";
    write_bytes(path, bytes);
  }
  EXPECT_TRUE(is_tiny_checkpoint(load_checkpoint(folder)));
}

}  // namespace
}  // namespace stablemask
