#include "stablemask/report/metrics.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "stablemask/base/error.h"
#include "stablemask/report/jsonl.h"
#include "stablemask/report/peak_flops.h"
#include "stablemask/report/progress.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

StepMetrics line_of(int64_t step) {
  line.loss_mean = 2.75;
  StepMetrics line;
  line.step = step;
  line.tokens = step * 100;
  line.loss = 2.5;
  return line;
}

TEST(Metrics, LineHasEveryDocumentedField) {
  StepMetrics line = line_of(7);
  line.grad_norm = std::numeric_limits<double>::infinity();
  line.lr = 1e-3;
  line.skipped = 2;
  line.tokens_per_second = 1234.5;
  line.peak_memory_bytes = 4096;
  line.seconds = 1.5;
  EXPECT_EQ(metrics_line(line),
            R"({"step":7,"tokens":700,"loss":2.5,"loss_mean":2.75,"grad_norm":null,"lr":0.001,)"
            R"("skipped":2,"tokens_per_second":1234.5,"peak_memory_bytes":4096,"seconds":1.5})");
  line.mfu = 0.5;
  line.valid_loss = 3.25;
  line.valid_word_ppl = std::nan("");
  const auto json = nlohmann::json::parse(metrics_line(line));
  EXPECT_EQ(json["mfu"], 0.5);
  EXPECT_EQ(json["valid_loss"], 3.25);
  EXPECT_TRUE(json["valid_word_ppl"].is_null());
}

TEST(Metrics, FieldsHaveDistinctNamesAndOnlyOptionalOnesMayBeAbsent) {
  std::set<std::string> names;
  for (const MetricField& field : metric_fields()) {
    EXPECT_TRUE(names.insert(field.name).second) << field.name;
    EXPECT_NE(std::string(field.meaning), "") << field.name;
    const bool absent = std::holds_alternative<std::monostate>(field.value(StepMetrics()));
    EXPECT_EQ(absent, field.optional) << field.name;
  }
}

TEST(Metrics, DocumentedTableIsTheListOfFields) {
  const std::string document = read_bytes(STABLEMASK_SOURCE_DIR "/docs/formats.md");
  EXPECT_NE(document.find(metrics_reference()), std::string::npos)
      << "docs/formats.md, section metrics.jsonl, must hold this table:\n"
      << metrics_reference();
}

TEST(PeakFlops, KnownCardsByNameOthersNot) {
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3"), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe"), 756e12);
  EXPECT_EQ(peak_flops("NVIDIA H200"), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA GH200 480GB"), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA A100-SXM4-80GB"), 312e12);
  EXPECT_EQ(peak_flops("NVIDIA L4"), 121e12);
  EXPECT_EQ(peak_flops("NVIDIA L40"), std::nullopt);
  EXPECT_EQ(peak_flops("NVIDIA GeForce GTX 1080"), std::nullopt);
  EXPECT_EQ(peak_flops("cpu"), std::nullopt);
}

TEST(JsonlMetrics, KeepsEachStepOnceAcrossResumes) {
  const Scratch folder;
  const std::string path = folder / "metrics.jsonl";
  {
    JsonlMetrics log(path);
    EXPECT_FALSE(std::filesystem::exists(path));
    log.cut_after(0);
    for (const int64_t step : {1, 2, 3}) log.record(line_of(step));
  }
  write_bytes(path, read_bytes(path) + R"({"step":4,"tok)");  // torn by a crash
  {
    JsonlMetrics log(path);
    log.cut_after(2);
    log.record(line_of(3));
    log.sync();
  }
  EXPECT_EQ(read_bytes(path), metrics_line(line_of(1)) + "\n" + metrics_line(line_of(2)) + "\n" +
                                  metrics_line(line_of(3)) + "\n");
}

TEST(JsonlMetrics, FullDiskCostsLinesButTearsNone) {
  const Scratch folder;
  const std::string path = folder / "metrics.jsonl";
  JsonlMetrics log(path);
  log.cut_after(0);
  log.record(line_of(1));
  const std::string before = read_bytes(path);

  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  rlimit tight = limit;
  tight.rlim_cur = before.size() + 10;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &tight);
  ::testing::internal::CaptureStderr();
  log.record(line_of(2));
  log.record(line_of(3));
  const std::string said = ::testing::internal::GetCapturedStderr();
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);

  EXPECT_EQ(read_bytes(path), before);
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  log.record(line_of(4));
  EXPECT_EQ(read_bytes(path), before + metrics_line(line_of(4)) + "\n");
}

TEST(JsonlMetrics, FileInAMissingFolderIsRefused) {
  const Scratch folder;
  EXPECT_THROW(JsonlMetrics(folder / "missing/metrics.jsonl").cut_after(0), Error);
}

TEST(Progress, TextsForPeople) {
  EXPECT_EQ(duration_text(7.2), "7s");
  EXPECT_EQ(duration_text(185), "3m05s");
  EXPECT_EQ(duration_text(3725), "1h02m");
  StepMetrics line = line_of(120);
  line.loss_mean = 4.12343;
  line.lr = 9.8e-4;
  line.tokens_per_second = 12300;
  line.tokens = 120 * 1230;
  EXPECT_EQ(progress_text(line, 2000),
            "step 120/2000 | loss 4.1234 | lr 9.80e-04 | 12.3k tok/s | ETA 3m08s");
  line.valid_loss = 4.0;
  line.valid_word_ppl = 55.125;
  line.skipped = 2;
  EXPECT_EQ(progress_text(line, 2000),
            "step 120/2000 | loss 4.1234 | lr 9.80e-04 | skipped 2 | 12.3k tok/s | ETA 3m08s | "
            "valid loss 4.0000 | valid word ppl 55.12");
}

/// What a terminal of so many columns is sent while `show` uses a run of `steps` steps.
template <class Show>
std::string sent_to_terminal(unsigned short columns, int64_t steps, Show&& show) {
  int reader = -1, terminal = -1;
  const winsize size{24, columns, 0, 0};
  EXPECT_EQ(::openpty(&reader, &terminal, nullptr, nullptr, &size), 0);
  std::FILE* out = ::fdopen(terminal, "w");
  {
    Progress progress(out, steps, false);
    show(progress);
  }
  // A terminal hands its bytes over in pieces.
  const std::string end = "<end>";
  std::fputs(end.c_str(), out);
  std::fflush(out);
  std::string seen;
  char piece[512];
  while (!seen.ends_with(end)) {
    const ssize_t count = ::read(reader, piece, sizeof piece);
    EXPECT_GT(count, 0);
    if (count <= 0) break;
    seen.append(piece, count);
  }
  seen.resize(seen.size() - std::min(seen.size(), end.size()));
  std::fclose(out);
  ::close(reader);
  return seen;
}

TEST(Progress, ATerminalShowsOneBarAndKeepsTheNotes) {
  const auto show = [](Progress& progress) {
    progress.tick(line_of(5));
    progress.tick(line_of(6));    // too soon to redraw
    progress.record(line_of(6));  // shown by the bar
    progress.note("saved");
  };
  EXPECT_EQ(
      sent_to_terminal(80, 10, show),
      "\r\033[K[##########..........] step 5/10 | loss 2.5000 | lr 0.00e+00\r\033[Ksaved\r\n");
}

TEST(Progress, TheBarFitsTheTerminal) {
  StepMetrics line = line_of(12345);
  line.lr = 9.8e-4;
  line.tokens_per_second = 12300;
  line.mfu = 0.5;
  const auto drawn = [&](unsigned short columns) {
    const std::string erase = "\r\033[K";
    const std::string sent =
        sent_to_terminal(columns, 100000, [&](Progress& progress) { progress.tick(line); });
    const size_t begin = sent.find(erase) + erase.size();
    return sent.substr(begin, sent.rfind(erase) - begin);
  };
  const std::string start = "step 12345/100000 | loss 2.5000 | lr 9.80e-04";
  const std::string usual = start + " | 12.3k tok/s | ETA 11m53s";
  EXPECT_EQ(drawn(120), "[##..................] " + usual + " | MFU 50.0%");
  EXPECT_EQ(drawn(80), usual);
  EXPECT_EQ(drawn(0), usual) << "a terminal that does not know its width";
  EXPECT_EQ(drawn(start.size() + 1), start);
  EXPECT_EQ(drawn(start.size()), "step 12345/100000 | loss 2.5000");
  EXPECT_EQ(drawn(11), "step 12345");
  for (unsigned short columns = 1; columns < 130; ++columns) {
    EXPECT_LT(drawn(columns).size(), columns);
  }
}

TEST(Progress, TextOfOtherWorkIsDrawnInPlace) {
  const std::string sent = sent_to_terminal(80, 10, [](Progress& progress) {
    progress.tick("verifying shards: 40%");
    progress.note("done");
  });
  EXPECT_EQ(sent, "\r\033[Kverifying shards: 40%\r\033[Kdone\r\n");
}

TEST(Progress, PlainLinesWhereThereIsNoTerminal) {
  const Scratch folder;
  for (const bool quiet : {false, true}) {
    std::FILE* out = std::fopen((folder / "out").c_str(), "w");
    {
      Progress progress(out, 10, quiet);
      progress.tick(line_of(1));
      progress.record(line_of(2));
      progress.note("saved");
    }
    std::fclose(out);
    EXPECT_EQ(read_bytes(folder / "out"),
              quiet ? "" : "step 2/10 | loss 2.5000 | lr 0.00e+00\nsaved\n");
  }
}

}  // namespace
}  // namespace stablemask
