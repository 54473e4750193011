// storage_work WORK FOLDER …: what the program does to a disk, without LibTorch, so that a test can
// disturb each of its system calls in milliseconds.
//
//   save FOLDER STEP KEEP     saves TinyCheckpoint(STEP) in FOLDER/checkpoints
//   best FOLDER STEP KEEP     saves it as the best one
//   train FOLDER STEP         resumes the newest checkpoint, then goes on to STEP with metrics,
//                             samples and events of each step and a checkpoint at every second one
//   prepare FOLDER            FOLDER/text and FOLDER/tokenizer.model give FOLDER/output
//   tokenizer FOLDER          FOLDER/text gives FOLDER/output
//
// Prints a line for what is done for good. With SHORT_WRITE=K in the environment, the K-th write or
// pwrite writes half of its bytes. Exit code: that of the error.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/data/prepare.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/io/checkpoint.h"
#include "stablemask/report/jsonl.h"
#include "stablemask/report/samples.h"
#include "stablemask/report/tensorboard.h"
#include "tests/io/tiny_checkpoint.h"
#include "tests/reliability/storage_records.h"

namespace {

/// `size`, or half of it for the write that SHORT_WRITE names.
size_t shortened(size_t size) {
  static int left = [] {
    const char* value = std::getenv("SHORT_WRITE");
    return value == nullptr ? 0 : std::atoi(value);
  }();
  return left > 0 && --left == 0 ? (size + 1) / 2 : size;
}

}  // namespace

// In place of the C library's.
extern "C" ssize_t write(int fd, const void* data, size_t size) {
  return ::syscall(SYS_write, fd, data, shortened(size));
}
extern "C" ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  return ::syscall(SYS_pwrite64, fd, data, shortened(size), offset);
}
extern "C" ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  return ::syscall(SYS_pwrite64, fd, data, shortened(size), offset);
}

namespace stablemask {
namespace {

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void save(const std::string& folder, int64_t step, int64_t keep_last, int64_t best = 0) {
  const TinyCheckpoint tiny(step);
  say("saved " + save_checkpoint(folder + "/checkpoints", tiny.content(), {keep_last, 0, best}));
}

void train(const std::string& folder, int64_t last_step) {
  int64_t step = 0;
  if (const auto newest = load_latest_checkpoint(folder + "/checkpoints")) {
    if (!is_tiny_checkpoint(*newest)) throw CheckpointError(newest->folder + ": has other bits");
    step = newest->step;
  }
  log_info("starts after step " + std::to_string(step));
  std::vector<std::unique_ptr<MetricsSink>> sinks;
  sinks.push_back(std::make_unique<JsonlMetrics>(folder + "/metrics.jsonl"));
  sinks.push_back(std::make_unique<JsonlSamples>(folder + "/samples.jsonl"));
  sinks.push_back(std::make_unique<TensorboardMetrics>(folder + "/tensorboard", "{}"));
  for (const auto& sink : sinks) sink->cut_after(step);
  while (step < last_step) {
    ++step;
    for (const auto& sink : sinks) {
      sink->record(metrics_of_step(step));
      sink->sample(sample_of_step(step));
    }
    if (step % 2 != 0) continue;
    for (const auto& sink : sinks) sink->sync();
    save(folder, step, 2);
  }
}

void prepare(const std::string& folder) {
  const Tokenizer tokenizer = Tokenizer::load(folder + "/tokenizer.model");
  prepare_shard(folder + "/text", folder + "/output", tokenizer, {});
  say("wrote " + folder + "/output");
}

void train_tokenizer(const std::string& folder) {
  Tokenizer::train({folder + "/text"}, folder + "/output", {.vocab_size = 310});
  say("wrote " + folder + "/output");
}

int run(int argc, char** argv) {
  const std::map<std::string, std::pair<int, std::function<void()>>> works = {
      {"save", {5, [&] { save(argv[2], std::atoll(argv[3]), std::atoll(argv[4])); }}},
      {"best",
       {5, [&] { save(argv[2], std::atoll(argv[3]), std::atoll(argv[4]), std::atoll(argv[3])); }}},
      {"train", {4, [&] { train(argv[2], std::atoll(argv[3])); }}},
      {"prepare", {3, [&] { prepare(argv[2]); }}},
      {"tokenizer", {3, [&] { train_tokenizer(argv[2]); }}}};
  const auto work = argc < 2 ? works.end() : works.find(argv[1]);
  if (work == works.end() || argc != work->second.first) {
    std::fputs("error: see the head of storage_work.cpp\n", stderr);
    return static_cast<int>(ExitCode::kConfig);
  }
  try {
    work->second.second();
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(ExitCode::kInternal);
  }
}

}  // namespace
}  // namespace stablemask

int main(int argc, char** argv) { return stablemask::run(argc, argv); }
