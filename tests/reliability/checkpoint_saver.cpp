// checkpoint_saver ROOT STEP KEEP_LAST: saves TinyCheckpoint(STEP) as a training run would. Small,
// so that a test can kill it at each of its system calls. Exit code: that of the error.
#include <cstdio>
#include <cstdlib>

#include "stablemask/base/error.h"
#include "stablemask/io/checkpoint.h"
#include "tests/io/tiny_checkpoint.h"

int main(int argc, char** argv) {
  if (argc != 4) return static_cast<int>(stablemask::ExitCode::kConfig);
  const stablemask::TinyCheckpoint tiny(std::atoll(argv[2]));
  try {
    stablemask::save_checkpoint(argv[1], tiny.content(), {std::atoll(argv[3]), 0});
  } catch (const stablemask::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
