#include "stablemask/data/prepare.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "src/data/files.h"
#include "stablemask/base/sha256.h"
#include "stablemask/base/stop.h"
#include "tests/data/fixtures.h"

using namespace std::string_literals;

namespace stablemask {
namespace {

using test::entries_of;
using test::expect_data_error;
using test::small_text;
using test::small_tokenizer;

constexpr const char* kTwoArticles =
    " \n = Sarn ( river ) = \n \n The Sarn is <unk> , 1 @,@ 200 m high . \n \n = = Course = = \n \n"
    " It flows .\n \n = Two = \n last";

std::vector<int32_t> tokens_of(const Shard& shard) {
  std::vector<int64_t> tokens(static_cast<size_t>(shard.size()));
  shard.read(0, shard.size(), tokens.data());
  return {tokens.begin(), tokens.end()};
}

struct Prepared {
  ShardInfo info;
  std::vector<int32_t> tokens;
  std::vector<int64_t> document_starts;
  std::string bytes;  // of the shard
};

Prepared prepare(const Scratch& folder, const std::string& input,
                 const PrepareOptions& options = {}) {
  const std::string output = folder / "shard";
  Prepared prepared;
  prepared.info = prepare_shard(input, output, small_tokenizer(), options);
  const Shard shard = Shard::open(output);
  shard.verify();
  EXPECT_NO_THROW(shard.require_tokenizer(small_tokenizer().sha256()));
  prepared.tokens = tokens_of(shard);
  prepared.document_starts = shard.document_starts();
  prepared.bytes = read_bytes(output);
  return prepared;
}

Prepared prepare_text(const std::string& text, const PrepareOptions& options = {},
                      const char* name = "text") {
  const Scratch folder;
  write_bytes(folder / name, text);
  return prepare(folder, folder / name, options);
}

// Standard input, for as long as the object lives, is what `descriptor` reads.
class StandardInput {
 public:
  explicit StandardInput(int descriptor) : saved_(::dup(STDIN_FILENO)) {
    ::dup2(descriptor, STDIN_FILENO);
    ::close(descriptor);
  }
  ~StandardInput() {
    ::dup2(saved_, STDIN_FILENO);
    ::close(saved_);
  }
  StandardInput(const StandardInput&) = delete;
  StandardInput& operator=(const StandardInput&) = delete;

 private:
  int saved_;
};

std::string repeated_text(size_t bytes) {
  std::string text;
  for (int i = 0; text.size() < bytes; ++i) {
    text += i % 50 ? "" : " = Article " + std::to_string(i) + " = \n \n";
    text += " Line " + std::to_string(i) + " says what the <unk> river reaches : " +
            std::string(static_cast<size_t>(i % 90), 'x') + " . \n";
  }
  return text;
}

TEST(DocumentLine, IsATopLevelHeading) {
  for (const char* yes :
       {" = Title = ", " = Title = \n", " = A = B = \n", " = 1 @,@ 2 = ", " = x ="}) {
    EXPECT_TRUE(is_document_line(yes)) << yes;
  }
  for (const char* no : {"", " ", "\n", " = = Section = = \n", " = = = Deeper = = = ", "= Title =",
                         " =  = ", " = = ", " = Title ", " Title = ", " a = b = ", " = = x = \n"}) {
    EXPECT_FALSE(is_document_line(no)) << no;
  }
}

TEST(CountText, CountsLinesWordsBytesDocuments) {
  const Scratch folder;
  write_bytes(folder / "text", kTwoArticles);
  const TextCounts counts = count_text(folder / "text");
  EXPECT_EQ(counts.lines, 10U);
  EXPECT_EQ(counts.words, 29U);
  EXPECT_EQ(counts.bytes, std::string(kTwoArticles).size());
  EXPECT_EQ(counts.documents, 2U);
  EXPECT_EQ(counts.unk_words, 1U);
}

TEST(CountText, WordsAreSplitAtAsciiWhiteSpaceOnly) {
  const Scratch folder;
  write_bytes(folder / "text", "a\tb\vc\fd\re  f\u00A0g\u2003h <unk>x <unk>\n\n");
  const TextCounts counts = count_text(folder / "text");
  EXPECT_EQ(counts.words, 8U);
  EXPECT_EQ(counts.unk_words, 1U);
  EXPECT_EQ(counts.lines, 2U);
}

TEST(CountText, FailsOnWhatIsNoText) {
  const Scratch folder;
  expect_data_error([&] { count_text(folder / "missing"); }, "cannot be opened");
  expect_data_error([&] { count_text(folder.path()); }, "is a folder");
  write_bytes(folder / "latin1", "fine\nnot f\xE9in\n");
  expect_data_error([&] { count_text(folder / "latin1"); },
                    "latin1: line 2: not valid UTF-8 at byte 6 (0xE9)");
}

TEST(LineChunkReader, PiecesAreWholeLinesWhateverTheirSize) {
  const Scratch folder;
  const std::string text = small_text() + std::string(5000, 'y') + "\n\n\nno end";
  write_bytes(folder / "text", text);
  for (const size_t size : {1, 7, 100, 4096, 1 << 20}) {
    LineChunkReader reader(folder / "text", size);
    std::string joined;
    for (std::string chunk; reader.next(chunk);) {
      joined += chunk;
      EXPECT_TRUE(chunk.back() == '\n' || joined.size() == text.size());
    }
    EXPECT_EQ(joined, text);
  }
}

TEST(LineChunkReader, NamesTheLineThatIsTooLong) {
  const Scratch folder;
  constexpr size_t kLimit = 1 << 20;
  write_bytes(folder / "text", "one\n" + std::string(kLimit, 'x') + "\nthree\n");
  LineChunkReader fits(folder / "text", 1 << 16, kLimit + (1 << 17));
  std::string chunk;
  EXPECT_TRUE(fits.next(chunk));
  EXPECT_EQ(fits.first_line(), 1U);
  while (fits.next(chunk)) {
  }
  write_bytes(folder / "text", "one\n" + std::string(3 * kLimit, 'x'));
  expect_data_error(
      [&] {
        LineChunkReader reader(folder / "text", 1 << 16, kLimit);
        while (reader.next(chunk)) {
        }
      },
      "text: line 2: is longer than 1 MiB; break it into lines");
}

TEST(Prepare, TheShardIsTheText) {
  const Prepared prepared = prepare_text(kTwoArticles);
  const std::string text = kTwoArticles;
  EXPECT_EQ(prepared.tokens, small_tokenizer().encode(text));
  EXPECT_EQ(small_tokenizer().decode(prepared.tokens), text);
  EXPECT_EQ(prepared.info.tokens, prepared.tokens.size());
  EXPECT_EQ(prepared.info.lines, 10U);
  EXPECT_EQ(prepared.info.words, 29U);
  EXPECT_EQ(prepared.info.bytes, text.size());
  EXPECT_EQ(prepared.info.documents, 2U);
  EXPECT_EQ(prepared.info.vocab_size, static_cast<uint64_t>(small_tokenizer().vocab_size()));
  EXPECT_EQ(prepared.info.text_sha256, sha256_hex(text.data(), text.size()));
  ASSERT_EQ(prepared.document_starts.size(), 2U);
  const auto from = [&](int64_t start) {
    return small_tokenizer().decode({prepared.tokens.begin() + start, prepared.tokens.end()});
  };
  EXPECT_EQ(from(prepared.document_starts[0]), text.substr(2));
  EXPECT_EQ(from(prepared.document_starts[1]), " = Two = \n last");
}

TEST(Prepare, ThreadsAndPiecesDoNotShow) {
  const std::string text = repeated_text(2'500'000);  // three pieces
  std::string one_thread;
  for (const int threads : {1, 2, 5}) {
    PrepareOptions options;
    options.threads = threads;
    uint64_t last = 0;
    options.progress = [&](const TextCounts& counts) {
      EXPECT_EQ(counts.input_bytes, counts.bytes);
      EXPECT_GT(counts.bytes, last);
      last = counts.bytes;
    };
    const Prepared prepared = prepare_text(text, options);
    EXPECT_EQ(last, text.size());
    if (threads == 1) {
      one_thread = prepared.bytes;
      EXPECT_EQ(prepared.tokens, small_tokenizer().encode(text));
      EXPECT_EQ(prepared.info.text_sha256, sha256_hex(text.data(), text.size()));
      EXPECT_EQ(prepared.info.documents, prepared.document_starts.size());
    }
    EXPECT_TRUE(prepared.bytes == one_thread) << threads << " threads";
  }
}

TEST(Prepare, ProgressOfJsonLinesCountsTheFile) {
  std::string json;
  while (json.size() < 2'500'000) json += "{\"text\": \"one line\", \"id\": 7}\n";
  std::vector<uint64_t> seen;
  PrepareOptions options;
  options.progress = [&](const TextCounts& counts) { seen.push_back(counts.input_bytes); };
  prepare_text(json, options, "corpus.jsonl");
  EXPECT_GE(seen.size(), 3u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), json.size());
}

TEST(Prepare, JsonLinesAreDocuments) {
  const Prepared prepared = prepare_text(
      "{\"text\": \"one line\"}\n"
      "\n"
      "{\"id\": 7, \"text\": \" two\\nlines \\u00e9\\n\", \"more\": [1, {\"text\": 2}]}\n"
      "  \t\r\n"
      "{\"text\": \"\"}\n"
      "{\"text\": \" = not a heading here = \\n <unk>\"}",
      {}, "corpus.jsonl");
  const std::string text = "one line\n two\nlines \u00E9\n\n = not a heading here = \n <unk>\n";
  EXPECT_EQ(small_tokenizer().decode(prepared.tokens), text);
  EXPECT_EQ(prepared.info.documents, 4U);
  EXPECT_EQ(prepared.info.lines, 6U);
  EXPECT_EQ(prepared.info.words, 12U);
  EXPECT_EQ(prepared.info.bytes, text.size());
  EXPECT_EQ(prepared.info.text_sha256, sha256_hex(text.data(), text.size()));
  ASSERT_EQ(prepared.document_starts.size(), 4U);
  EXPECT_EQ(prepared.document_starts[0], 0);
  EXPECT_EQ(prepared.tokens[static_cast<size_t>(prepared.document_starts[1]) - 1],
            small_tokenizer().eos_id());
}

TEST(Prepare, TheFormatAndFieldCanBeChosen) {
  PrepareOptions options;
  options.format = TextFormat::kJsonl;
  options.jsonl_field = "body";
  EXPECT_EQ(small_tokenizer().decode(prepare_text("{\"body\": \"b\"}\n", options).tokens), "b\n");
  options.format = TextFormat::kText;
  const std::string json = "{\"body\": \"b\"}\n";
  EXPECT_EQ(small_tokenizer().decode(prepare_text(json, options, "x.jsonl").tokens), json);
}

TEST(Prepare, ReadsStandardInput) {
  const Scratch folder;
  const std::string text = repeated_text(300'000);
  write_bytes(folder / "text", text);
  const Prepared from_file = prepare(folder, folder / "text");
  {
    const StandardInput input(::open((folder / "text").c_str(), O_RDONLY));
    EXPECT_TRUE(prepare(folder, "-").bytes == from_file.bytes);
  }
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::thread writer([&] {  // in small pieces, as a decompressor would
    for (size_t at = 0; at < text.size(); at += 10007) {
      const size_t size = std::min<size_t>(10007, text.size() - at);
      if (::write(ends[1], text.data() + at, size) < 0) break;
    }
    ::close(ends[1]);
  });
  {
    const StandardInput input(ends[0]);
    EXPECT_TRUE(prepare(folder, "-").bytes == from_file.bytes);
  }
  writer.join();
}

TEST(Prepare, JsonLinesAreRecognisedOnStandardInput) {
  const Scratch folder;
  const auto from_stdin = [&](const std::string& text, TextFormat format = TextFormat::kAuto) {
    write_bytes(folder / "text", text);
    const StandardInput input(::open((folder / "text").c_str(), O_RDONLY));
    PrepareOptions options;
    options.format = format;
    return small_tokenizer().decode(prepare(folder, "-", options).tokens);
  };
  for (const std::string& records :
       {"{\"text\": \"a\"}\n"s, " \n\t{ \"text\": \"a\"}\n"s, "\xEF\xBB\xBF{\"text\": \"a\"}"s}) {
    EXPECT_EQ(from_stdin(records), "a\n");
    EXPECT_EQ(from_stdin(records, TextFormat::kText), records);
  }
  for (const std::string& text : {"{{Infobox}}\n"s, "{ x }\n"s, "a {\"text\": 1}\n"s, "{"s}) {
    EXPECT_EQ(from_stdin(text), text);
  }
}

TEST(Prepare, RefusesCompressedAndForeignText) {
  const Scratch folder;
  const struct {
    std::string bytes;
    const char* complaint;
  } kCases[] = {
      {"\x1F\x8B\x08"s, "is compressed with gzip, not UTF-8 text; pipe it in: gzip -dc /"},
      {"\xFD\x37zXZ\0\0"s, "is compressed with xz, not UTF-8 text; pipe it in: xz -dc /"},
      {"\x28\xB5\x2F\xFD\x04"s, "is compressed with zstd, not UTF-8 text; pipe it in: zstd -dc /"},
      {"BZh91AY&SY\x01"s, "is compressed with bzip2, not UTF-8 text; pipe it in: bzip2 -dc /"},
      {"\x04\x22\x4D\x18\x01"s, "is compressed with lz4"},
      {"PK\x03\x04\x01"s, "is a zip archive"},
      {"\xFF\xFEh\0i\0"s, "is UTF-16, not UTF-8 text; pipe it in: iconv -f UTF-16 -t UTF-8 /"},
      {"\xFE\xFF\0h\0i"s, "is UTF-16"},
      {"\xFF\xFE\0\0h\0\0\0"s, "is UTF-32"},
      {"\0\0\xFE\xFF\0\0\0h"s, "is UTF-32"},
  };
  for (const auto& one : kCases) {
    write_bytes(folder / "text", one.bytes);
    for (const TextFormat format : {TextFormat::kAuto, TextFormat::kText, TextFormat::kJsonl}) {
      PrepareOptions options;
      options.format = format;
      expect_data_error(
          [&] { prepare_shard(folder / "text", folder / "shard", small_tokenizer(), options); },
          one.complaint);
    }
    expect_data_error([&] { count_text(folder / "text"); }, one.complaint);
  }
  EXPECT_EQ(small_tokenizer().decode(prepare_text("BZh9 is a text\n").tokens), "BZh9 is a text\n");
}

long peak_memory_kb() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

TEST(Prepare, MemoryDoesNotGrowWithTheText) {
#ifdef STABLEMASK_SANITIZED
  GTEST_SKIP() << "a sanitizer keeps memory of its own";
#endif
  const Scratch folder;
  const std::string piece = repeated_text(500'000);
  for (const auto& [name, pieces] : {std::pair{"small", 6}, {"large", 24}}) {
    std::ofstream file(folder / name, std::ios::binary);
    for (int i = 0; i < pieces; ++i) file << piece;
  }
  prepare_shard(folder / "small", folder / "shard", small_tokenizer(), {});
  const long before = peak_memory_kb();
  prepare_shard(folder / "large", folder / "shard", small_tokenizer(), {});
  // The text, its tokens or its shard alone would be more.
  EXPECT_LT(peak_memory_kb() - before, 6'000);
}

// SentencePiece needs a hundred bytes for each byte of a line, a tree of JSON values twenty.
TEST(Prepare, ALongLineTakesLittleMoreThanItsBytes) {
#ifdef STABLEMASK_SANITIZED
  GTEST_SKIP() << "a sanitizer keeps memory of its own";
#endif
  constexpr size_t kBytes = 2 << 20;
  const Scratch folder;
  std::string line = repeated_text(kBytes);
  std::replace(line.begin(), line.end(), '\n', ' ');
  write_bytes(folder / "line", line);
  std::string lists = "{\"text\": \"a\", \"lists\": [";
  while (lists.size() < kBytes) lists += "[],[],[],[],[],[],[],[],";
  write_bytes(folder / "lists.jsonl", lists + "[]]}\n");
  const long of_other_tests = peak_memory_kb();
  prepare_shard(folder / "line", folder / "shard", small_tokenizer(), {});  // of the expected size
  const long before = peak_memory_kb();
  prepare_shard(folder / "lists.jsonl", folder / "shard", small_tokenizer(), {});
  EXPECT_LT(peak_memory_kb() - before, static_cast<long>(8 * kBytes >> 10));
  EXPECT_LT(before - of_other_tests, static_cast<long>(60 * kBytes >> 10));
}

TEST(Prepare, ErrorsNameTheLineAndLeaveNothingBehind) {
  const Scratch folder;
  const std::string many_lines = repeated_text(1'200'000);  // the error is in the second piece
  const auto lines = std::count(many_lines.begin(), many_lines.end(), '\n');
  const std::string after = "line " + std::to_string(lines + 2) + ": ";
  const struct {
    const char* name;
    std::string text;
    std::string complaint;
  } kCases[] = {
      {"empty", "", "empty is empty: nothing to prepare"},
      {"blank.jsonl", "\n  \n", "blank.jsonl is empty"},
      {"latin1", "ok\nb\xE9!\n", "latin1: line 2: not valid UTF-8 at byte 2 (0xE9)"},
      {"late", many_lines + "ok\n\xFF\n", after + "not valid UTF-8 at byte 1 (0xFF)"},
      {"cut", "caf\xC3", "cut: line 1: not valid UTF-8 at byte 4 (0xC3)"},
      {"a.jsonl", "{\"text\": \"a\"}\n{\"text\": \n",
       "a.jsonl: line 2: not valid JSON at byte 10: the text ends inside the object"},
      {"b.jsonl", "{\"text\": \"a\"}\n\n{\"id\": 1, \"content\": \"a\", \"a b\": 0}\n",
       "b.jsonl: line 3: has no field \"text\"; it has: \"a b\", content, id; choose one with "
       "--field"},
      {"c.jsonl", "[\"text\"]\n", "line 1: is of type array, not a JSON object; write one object"},
      {"nul.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}"s + "\0 and the rest\n"s,
       "nul.jsonl: line 2: not valid JSON at byte 14: unexpected text after the end"},
      {"two.jsonl", "{\"text\": \"a\"} {\"text\": \"b\"}\n",
       "line 1: not valid JSON at byte 15: unexpected text after the end"},
      {"twice.jsonl", "{\"text\": \"a\", \"id\": 1, \"text\": \"b\"}\n",
       "line 1: not valid JSON at byte 24: the key \"text\" is stated twice"},
      {"deep.jsonl", "{\"x\": " + std::string(100'000, '[') + "\n",
       "line 1: not valid JSON at byte 70: nested deeper than 64 levels"},
      {"marked.jsonl", "\xEF\xBB\xBF{\"text\": }\n", "line 1: not valid JSON at byte 13: "},
      {"d.jsonl", "{\"text\": 3}\n", "line 1: the field \"text\" is of type number, not a string"},
      {"g.jsonl", "{}\n", "line 1: has no field \"text\"; it is an empty object"},
      {"h.jsonl", "{\"\u00E9\": \"\u6CB3\", 'text': 1}\n",
       "line 1: not valid JSON at byte 15: expected a key in double quotes, found \"'\""},
      {"e.jsonl", "{\"text\": \"a\xFF\"}\n", "line 1: not valid UTF-8 at byte 12"},
      {"f.jsonl", "{\"text\": \"\\ud800\"}\n",
       "line 1: not valid JSON at byte 11: half of a surrogate pair"},
  };
  for (const auto& one : kCases) {
    write_bytes(folder / one.name, one.text);
    const size_t files = entries_of(folder);
    expect_data_error(
        [&] { prepare_shard(folder / one.name, folder / "shard", small_tokenizer(), {}); },
        one.complaint);
    EXPECT_EQ(entries_of(folder), files) << one.name;
  }
  expect_data_error(
      [&] { prepare_shard(folder / "gone", folder / "shard", small_tokenizer(), {}); },
      "cannot be opened");
  expect_data_error(
      [&] { prepare_shard(folder / "latin1", folder / "no/shard", small_tokenizer(), {}); },
      "cannot be created");
}

TEST(Prepare, AStopSignalLeavesNothingBehind) {
  const Scratch folder;
  write_bytes(folder / "text", repeated_text(2'500'000));
  PrepareOptions options;
  options.progress = [](const TextCounts&) { request_stop(15); };
  const std::string message = message_of<Stopped>(
      [&] { prepare_shard(folder / "text", folder / "shard", small_tokenizer(), options); });
  EXPECT_TRUE(message.starts_with("stopped by SIGTERM while ")) << message;
  request_stop(0);
  EXPECT_EQ(entries_of(folder), 1U);
}

TEST(Prepare, AStopSignalEndsTheWaitForASilentPipe) {
  const Scratch folder;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const StandardInput input(ends[0]);
  const Tokenizer& tokenizer = small_tokenizer();  // its training must not meet the signal
  std::thread stopper([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    request_stop(2);
  });
  EXPECT_EQ(message_of<Stopped>([&] { prepare_shard("-", folder / "shard", tokenizer, {}); }),
            "stopped by Ctrl-C while reading text");
  stopper.join();
  request_stop(0);
  ::close(ends[1]);
  EXPECT_EQ(entries_of(folder), 0U);
}

// The counts that published perplexities divide by.
TEST(GenuineWikiText, GoldenCounts) {
  const char* data = std::getenv("STABLEMASK_DATA");
  if (!data) GTEST_SKIP() << "STABLEMASK_DATA does not name a folder with wikitext-103";
  const std::string folder = std::string(data) + "/wikitext-103/";
  const TextCounts test = count_text(folder + "wiki.test.tokens");
  EXPECT_EQ(test.lines, 4358U);
  EXPECT_EQ(test.words, 241211U);
  EXPECT_EQ(test.unk_words, 2492U);
  EXPECT_EQ(test.bytes, 1281077U);
  const TextCounts valid = count_text(folder + "wiki.valid.tokens");
  EXPECT_EQ(valid.lines, 3760U);
  EXPECT_EQ(valid.words, 213886U);
  EXPECT_EQ(valid.unk_words, 1657U);
  EXPECT_EQ(valid.bytes, 1142309U);
  EXPECT_EQ(valid.documents, 60U);
}

TEST(GenuineWikiText, TheTestSplitSurvivesItsShard) {
  const char* data = std::getenv("STABLEMASK_DATA");
  if (!data) GTEST_SKIP() << "STABLEMASK_DATA does not name a folder with wikitext-103";
  const Scratch folder;
  const std::string path = std::string(data) + "/wikitext-103/wiki.test.tokens";
  const Prepared prepared = prepare(folder, path);
  EXPECT_EQ(prepared.info.lines + prepared.info.words, 245569U);
  EXPECT_EQ(std::count(prepared.tokens.begin(), prepared.tokens.end(), small_tokenizer().eos_id()),
            4358);
  EXPECT_EQ(
      std::count(prepared.tokens.begin(), prepared.tokens.end(), small_tokenizer().unk_text_id()),
      2492);
  EXPECT_TRUE(small_tokenizer().decode(prepared.tokens) == read_bytes(path));
}

}  // namespace
}  // namespace stablemask
