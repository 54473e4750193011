#include "stablemask/report/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "stablemask/base/error.h"
#include "stablemask/report/jsonl.h"
#include "stablemask/report/peak_flops.h"
#include "tests/io/file_size_limit.h"
#include "tests/io/scratch.h"

namespace stablemask {
namespace {

StepMetrics line_of(int64_t step) {
  StepMetrics line;
  line.step = step;
  line.tokens = step * 100;
  line.loss = 2.5;
  line.loss_mean = 2.75;
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

  ::testing::internal::CaptureStderr();
  {
    const FileSizeLimit limit(before.size() + 10);
    log.record(line_of(2));
    log.record(line_of(3));
  }
  const std::string said = ::testing::internal::GetCapturedStderr();

  EXPECT_EQ(read_bytes(path), before);
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  log.record(line_of(4));
  EXPECT_EQ(read_bytes(path), before + metrics_line(line_of(4)) + "\n");
}

TEST(JsonlMetrics, FileInAMissingFolderIsRefused) {
  const Scratch folder;
  EXPECT_THROW(JsonlMetrics(folder / "missing/metrics.jsonl").cut_after(0), Error);
}

TEST(Metrics, TextsForPeople) {
  EXPECT_EQ(duration_text(7.2), "7s");
  EXPECT_EQ(duration_text(185), "3m05s");
  EXPECT_EQ(duration_text(3725), "1h02m");
  EXPECT_EQ(rate_text(7.25, "tok"), "7.2 tok/s");
  EXPECT_EQ(rate_text(350, "tok"), "350 tok/s");
  EXPECT_EQ(rate_text(12345, "tok"), "12.3k tok/s");
  EXPECT_EQ(rate_text(1.845e6, "tok"), "1.84M tok/s");
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

}  // namespace
}  // namespace stablemask
