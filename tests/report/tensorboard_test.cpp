#include "stablemask/report/tensorboard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <random>
#include <set>

#include "src/report/tensorboard_event.h"
#include "src/report/tfrecord.h"
#include "stablemask/base/error.h"
#include "stablemask/report/samples.h"
#include "tests/io/file_size_limit.h"
#include "tests/io/scratch.h"
#include "tests/report/event_files.h"

namespace stablemask {
namespace {

using Scalars = std::vector<TensorboardEvent::Scalar>;
using Texts = std::vector<TensorboardEvent::Text>;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

TEST(Crc32c, GivesTheExamplesOfRfc3720) {
  std::string ascending, descending;
  for (int i = 0; i < 32; ++i) {
    ascending += static_cast<char>(i);
    descending += static_cast<char>(31 - i);
  }
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43U);
  EXPECT_EQ(crc32c(ascending), 0x46DD794EU);
  EXPECT_EQ(crc32c(descending), 0x113FDB5CU);
  EXPECT_EQ(crc32c(from_hex("01c00000000000000000000000000000140000000000040000000014000000182800"
                            "0000000000000200000000000000")),
            0xD9963A56U);
  EXPECT_EQ(crc32c(""), 0U);
}

/// Bytes that TensorBoard's Python package writes.
TEST(Tfrecord, HasTheBytesOfTensorBoardsWriter) {
  EXPECT_EQ(tfrecord("StableMask"),
            from_hex("0a00000000000000aea3bf3a537461626c654d61736bf0d2d83f"));
  EXPECT_EQ(tfrecord(""), from_hex("000000000000000029039807d8ea82a2"));
}

TEST(Tfrecord, ReaderStopsAtTheFirstIncompleteOrDamagedRecord) {
  const std::string first = tfrecord("first"), second = tfrecord("");
  const std::string whole = first + second + tfrecord("third");
  const auto read = [](std::string_view file, size_t& end) {
    std::vector<std::string> payloads;
    TfrecordReader reader(file);
    while (const auto payload = reader.next()) payloads.emplace_back(*payload);
    end = reader.offset();
    return payloads;
  };
  size_t end = 0;
  EXPECT_EQ(read(whole, end), (std::vector<std::string>{"first", "", "third"}));
  EXPECT_EQ(end, whole.size());
  const auto complete_before = [&](size_t byte) {
    return byte < first.size() ? 0U : byte < first.size() + second.size() ? 1U : 2U;
  };
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(read(std::string_view(whole).substr(0, i), end).size(), complete_before(i)) << i;
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x40);
    EXPECT_EQ(read(damaged, end).size(), complete_before(i)) << i;
    EXPECT_EQ(end, std::vector<size_t>({0, first.size(), first.size() + second.size()})
                       .at(complete_before(i)));
  }
}

/// Bytes that TensorBoard's Python package writes.
TEST(TensorboardEvent, HasTheBytesOfTensorBoardsMessages) {
  TensorboardEvent event;
  event.wall_time = 1.5;
  event.step = 300;
  event.scalars = {{"loss/train", 2.5F}};
  event.texts = {{"config", "hi"}};
  EXPECT_EQ(
      encode_event(event),
      from_hex("09000000000000f83f10ac022a330a110a0a6c6f73732f747261696e15000020400a1e0a06636f"
               "6e666967420808071200420268694a0a0a060a04746578742002"));
  TensorboardEvent version;
  version.wall_time = 1.5;
  version.file_version = kEventFileVersion;
  EXPECT_EQ(encode_event(version), from_hex("09000000000000f83f1a0d627261696e2e4576656e743a32"));
}

TEST(TensorboardEvent, DecodesWhatItEncodes) {
  TensorboardEvent event;
  event.wall_time = 1.8e9 + 0.25;
  event.step = int64_t{1} << 40;
  event.scalars = {{"a", -0.0F}, {"b", std::numeric_limits<float>::infinity()}};
  event.texts = {{"t", std::string(300, 'x')}};
  const auto decoded = decode_event(encode_event(event));
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->wall_time, event.wall_time);
  EXPECT_EQ(decoded->step, event.step);
  EXPECT_EQ(decoded->scalars, event.scalars);
  EXPECT_EQ(decoded->texts, event.texts);
  EXPECT_EQ(decoded->file_version, "");
  // A field that other writers use (graph_def, number 4) is passed over.
  EXPECT_EQ(decode_event(encode_event(event) + from_hex("2203616263"))->scalars, event.scalars);
}

TEST(TensorboardEvent, BytesOfNoMessageAreRefused) {
  TensorboardEvent event;
  event.wall_time = 1;
  event.step = 5;
  event.scalars = {{"loss/train", 2.5F}};
  const std::string bytes = encode_event(event);
  EXPECT_FALSE(decode_event(std::string_view(bytes).substr(0, bytes.size() - 1)));
  EXPECT_FALSE(decode_event(from_hex("08ffffffffffffffffffff")));  // a varint without end
  EXPECT_FALSE(decode_event(from_hex("0b")));                      // wire type 3
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::string broken = bytes;
    for (int edits = 0; edits < 3; ++edits) {
      broken[random() % broken.size()] = static_cast<char>(random());
    }
    decode_event(broken);  // must not read outside the bytes, which the sanitizers watch
  }
}

TEST(MetricTags, NameAGroupAndAreDistinct) {
  std::set<std::string> tags;
  const std::string document = read_bytes(STABLEMASK_SOURCE_DIR "/docs/formats.md");
  for (const MetricField& field : metric_fields()) {
    if (std::string(field.name) == "step") continue;  // every event has it
    ASSERT_NE(field.tag, nullptr) << field.name;
    const std::string tag = field.tag;
    EXPECT_TRUE(tags.insert(tag).second) << tag;
    EXPECT_EQ(std::count(tag.begin(), tag.end(), '/'), 1) << tag;
    EXPECT_NE(document.find("`" + tag + "`"), std::string::npos)
        << "docs/formats.md, section TensorBoard, must name " << tag;
  }
}

class TensorboardMetricsTest : public ::testing::Test {
 protected:
  static StepMetrics line_of(int64_t step) {
    StepMetrics line;
    line.step = step;
    line.tokens = step * 100;
    line.loss = 2.5 + static_cast<double>(step);
    return line;
  }
  static Sample sample_of(int64_t step, int64_t number) {
    return {step, number, "The river", " of Arn"};
  }
  /// Records steps `first` to `last` in a process of its own.
  void record(int64_t first, int64_t last, const std::string& config = "{}\n") const {
    TensorboardMetrics log(folder_, config);
    log.cut_after(first - 1);
    for (int64_t step = first; step <= last; ++step) log.record(line_of(step));
    log.sync();
  }
  /// The steps of the scalars, of all files.
  std::vector<int64_t> steps() const {
    std::vector<int64_t> found;
    for (const TensorboardEvent& event : events_in(folder_)) {
      if (!event.scalars.empty()) found.push_back(event.step);
    }
    return found;
  }
  std::string only_file() const {
    const std::vector<std::string> names = event_files_in(folder_);
    EXPECT_EQ(names.size(), 1U);
    return names.empty() ? "" : names[0];
  }

  Scratch scratch_;
  std::string folder_ = scratch_ / "run/tensorboard";
};

TEST_F(TensorboardMetricsTest, WritesVersionConfigScalarsAndSamples) {
  StepMetrics line = line_of(7);
  line.valid_loss = std::nan("");
  {
    TensorboardMetrics log(folder_, "{\"a\": 1}\n");
    EXPECT_FALSE(std::filesystem::exists(folder_));
    log.cut_after(0);
    log.record(line);
    log.sample({7, 2, "The `river`\t", "carries ```salt\x1B"});
  }
  const std::vector<TensorboardEvent> events = events_in(folder_);
  ASSERT_EQ(events.size(), 4U);
  EXPECT_EQ(events[0].file_version, "brain.Event:2");
  EXPECT_EQ(events[1].texts, (Texts{{"config", "```json\n{\"a\": 1}\n```"}}));
  EXPECT_EQ(events[1].step, 0);
  EXPECT_EQ(events[2].step, 7);
  EXPECT_NEAR(events[2].wall_time, static_cast<double>(std::time(nullptr)), 60);
  Scalars expected;
  for (const MetricField& field : metric_fields()) {
    const MetricValue value = field.value(line);
    if (field.tag == nullptr || std::holds_alternative<std::monostate>(value)) continue;
    const auto* whole = std::get_if<int64_t>(&value);
    expected.push_back({field.tag, static_cast<float>(whole ? static_cast<double>(*whole)
                                                            : std::get<double>(value))});
  }
  ASSERT_EQ(events[2].scalars.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(events[2].scalars[i].tag, expected[i].tag);
    if (expected[i].tag == "loss/valid") {
      EXPECT_TRUE(std::isnan(events[2].scalars[i].value));
    } else {
      EXPECT_EQ(events[2].scalars[i].value, expected[i].value) << expected[i].tag;
    }
  }
  EXPECT_EQ(events[3].step, 7);
  EXPECT_EQ(events[3].texts,
            (Texts{{"samples/prompt 2", "````\nThe `river` carries ```salt\xEF\xBF\xBD\n````"}}));
}

TEST_F(TensorboardMetricsTest, GoesOnWithTheSameFileWhenNothingIsCut) {
  record(1, 3);
  const std::string file = only_file();
  record(4, 5);
  EXPECT_EQ(only_file(), file);
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(events_in(folder_).size(), 7U) << "version and config once";
}

TEST_F(TensorboardMetricsTest, CutsWhatComesAfterTheStepIntoALaterFile) {
  record(1, 5);
  const std::string before = only_file();
  record(4, 4);
  const std::string after = only_file();
  EXPECT_GT(after, before) << "so that a running TensorBoard finds it";
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3, 4}));
  {
    TensorboardMetrics log(folder_, "{}\n");
    log.cut_after(4);
    log.sample(sample_of(4, 1));
  }
  record(4, 5);
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3, 4, 5}));
  for (const TensorboardEvent& event : events_in(folder_)) {
    EXPECT_TRUE(event.texts.empty() || event.texts[0].tag == "config") << "samples are cut too";
  }
}

TEST_F(TensorboardMetricsTest, DropsADamagedEndWithAWarning) {
  record(1, 4);
  const std::string path = folder_ + "/" + only_file();
  const std::string bytes = read_bytes(path);
  for (const bool torn : {true, false}) {
    std::string damaged = bytes;
    if (torn) damaged.resize(bytes.size() - 5);
    if (!torn) damaged[bytes.size() - 10] ^= 1;
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    write_bytes(path, damaged);
    ::testing::internal::CaptureStderr();
    record(5, 5);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find(path + ": damaged or incomplete from byte "), std::string::npos) << said;
    EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3, 5}));
    EXPECT_EQ(events_in(folder_).size(), 6U);
  }
}

TEST_F(TensorboardMetricsTest, AFileWithoutOneWholeRecordIsReplaced) {
  std::filesystem::create_directories(folder_);
  for (const std::string content : {"", "nonsense"}) {
    write_bytes(folder_ + "/events.out.tfevents.1234567890.stablemask", content);
    ::testing::internal::CaptureStderr();
    record(1, 1);
    EXPECT_EQ(::testing::internal::GetCapturedStderr().empty(), content.empty());
    EXPECT_EQ(events_in(folder_)[0].file_version, kEventFileVersion);
    EXPECT_EQ(steps(), (std::vector<int64_t>{1}));
    std::filesystem::remove(folder_ + "/" + only_file());
  }
}

TEST_F(TensorboardMetricsTest, RemovesWhatAKilledProcessLeftAndNothingElse) {
  record(1, 2);
  const std::string newest = only_file();
  // As if the process had been killed between writing the newest file and removing the old one.
  write_bytes(folder_ + "/events.out.tfevents.1234567890.stablemask",
              read_bytes(folder_ + "/" + newest));
  write_bytes(folder_ + "/events.out.tfevents.1234567891.stablemask.tmp-0123456789abcdef", "x");
  const std::set<std::string> foreign = {"events.out.tfevents.1234567892.host",
                                         "events.out.tfevents.99999999999.stablemask", "notes"};
  for (const std::string& name : foreign) write_bytes(folder_ + "/" + name, "x");
  record(3, 3);
  std::set<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    left.insert(entry.path().filename().string());
  }
  std::set<std::string> expected = foreign;
  expected.insert(newest);
  EXPECT_EQ(left, expected);
  for (const std::string& name : foreign) std::filesystem::remove(folder_ + "/" + name);
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3}));
}

TEST_F(TensorboardMetricsTest, RecordsAChangedConfigAtTheStepOfTheResume) {
  record(1, 2, "{\"lr\": 1}\n");
  record(3, 4, "{\"lr\": 2}\n");
  record(4, 4, "{\"lr\": 2}\n");
  std::vector<std::pair<int64_t, std::string>> configs;
  for (const TensorboardEvent& event : events_in(folder_)) {
    for (const auto& text : event.texts) configs.emplace_back(event.step, text.markdown);
  }
  EXPECT_EQ(configs, (std::vector<std::pair<int64_t, std::string>>{
                         {0, "```json\n{\"lr\": 1}\n```"}, {2, "```json\n{\"lr\": 2}\n```"}}));
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3, 4}));
}

TEST_F(TensorboardMetricsTest, FullDiskCostsRecordsButTearsNone) {
  TensorboardMetrics log(folder_, "{}\n");
  log.cut_after(0);
  log.record(line_of(1));
  const std::string path = folder_ + "/" + only_file();
  const std::string before = read_bytes(path);

  ::testing::internal::CaptureStderr();
  {
    const FileSizeLimit limit(before.size() + 10);
    log.record(line_of(2));
    log.sample(sample_of(2, 1));
  }
  const std::string said = ::testing::internal::GetCapturedStderr();

  EXPECT_EQ(read_bytes(path), before);
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_NE(said.find(path + ": step 2 not recorded"), std::string::npos) << said;
  log.record(line_of(3));
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 3}));
}

TEST_F(TensorboardMetricsTest, AFolderThatCannotBeMadeIsRefused) {
  write_bytes(scratch_ / "run", "a file");
  TensorboardMetrics log(folder_, "{}");
  log.sync();
  const std::string said = message_of<CheckpointError>([&] { log.cut_after(0); });
  EXPECT_NE(said.find(folder_ + ": cannot be created: "), std::string::npos) << said;
}

}  // namespace
}  // namespace stablemask
