#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "stablemask/base/sha256.h"
#include "stablemask/data/prepare.h"
#include "tests/data/fixtures.h"
#include "tests/data/foreign_model.h"

namespace stablemask {
namespace {

using test::expect_data_error;
using test::small_tokenizer;

const Tokenizer& llama_like() {
  static const Tokenizer tokenizer =
      Tokenizer::from_bytes(test::foreign_model(test::llama_flags()), "llama.model");
  return tokenizer;
}

std::vector<int32_t> ids_of(const Shard& shard) {
  std::vector<int64_t> ids(static_cast<size_t>(shard.size()));
  shard.read(0, shard.size(), ids.data());
  return {ids.begin(), ids.end()};
}

/// The ids of documents, each with end-of-text, and where they begin.
void expect_documents(const Shard& shard, const std::vector<std::string>& documents) {
  std::vector<int32_t> ids;
  std::vector<int64_t> starts;
  for (const std::string& document : documents) {
    starts.push_back(static_cast<int64_t>(ids.size()));
    for (const int32_t id : llama_like().encode(document)) ids.push_back(id);
    ids.push_back(llama_like().end_of_text_id());
  }
  EXPECT_EQ(ids_of(shard), ids);
  EXPECT_EQ(shard.document_starts(), starts);
}

class PrepareForeign : public testing::Test {
 protected:
  Shard prepare(const std::string& name, const std::string& text, PrepareOptions options = {}) {
    write_bytes(folder_ / name, text);
    prepare_shard(folder_ / name, folder_ / "shard", llama_like(), options);
    Shard shard = Shard::open(folder_ / "shard");
    shard.verify();
    shard.require_tokenizer(llama_like().sha256());
    return shard;
  }

  const Scratch folder_;
};

TEST_F(PrepareForeign, TextIsEncodedDocumentByDocument) {
  const std::string first = " \n = Sarn = \n \n The river\nand town \n",
                    second = " = Two = \n last";
  const Shard shard = prepare("text", first + second);
  expect_documents(shard, {first, second});
  const std::string all = first + second;
  EXPECT_EQ(shard.info().text_sha256, sha256_hex(all.data(), all.size()));
  EXPECT_EQ(shard.info().bytes, all.size());
  EXPECT_EQ(shard.info().lines, 6u);
  EXPECT_EQ(shard.info().words, 11u);
  expect_documents(prepare("plain", "The river\n\nand town"), {"The river\n\nand town"});
}

TEST_F(PrepareForeign, RecordsOfJsonlAreDocumentsOnAnyNumberOfThreads) {
  std::vector<std::string> documents = {"one\nline", "", " two  \n"};
  std::string records = R"({"text": "one\nline"}

{"text": ""}
{"id": 3, "text": " two  \n"}
)";
  for (int i = 0; i < 40; ++i) {
    documents.push_back("The river " + std::to_string(i));
    records += R"({"text": "The river )" + std::to_string(i) + "\"}\n";
  }
  for (const int threads : {1, 3}) {
    PrepareOptions options;
    options.threads = threads;
    expect_documents(prepare("text.jsonl", records, options), documents);
  }
}

TEST_F(PrepareForeign, ErrorsNameTheLineAndLeaveNothing) {
  const auto refuse = [&](const char* name, const std::string& text, const std::string& part) {
    const std::string message = expect_data_error([&] { prepare(name, text); }, part);
    EXPECT_EQ(message.rfind(folder_ / name, 0), 0u) << message;
  };
  refuse("text", "fine\nba\x80\n", "line 2: not valid UTF-8 at byte 3");
  refuse("text", "", "is empty");
  refuse("a.jsonl", "{\"text\": \"a\"}\n[1]\n", "line 2: is not a JSON object");
  refuse("a.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n", "line 2: has no field \"text\"");
  refuse("a.jsonl", "{\"text\": 1}\n", "line 1: the field \"text\" is not a string");
  refuse("a.jsonl", "{\"text\": \n", "line 1: not valid JSON at column");
  const std::string long_line(Tokenizer::kLongestText + 1, 'a');
  refuse("text", " = T = \nshort\n = U = \n" + long_line, "line 3: a document of more than");
  EXPECT_EQ(test::entries_of(folder_), 2u);
}

class PrepareIds : public testing::Test {
 protected:
  Shard prepare(const Tokenizer& tokenizer, const std::string& lines) {
    write_bytes(folder_ / "ids", lines);
    prepare_ids(folder_ / "ids", folder_ / "shard", tokenizer);
    Shard shard = Shard::open(folder_ / "shard");
    shard.verify();
    return shard;
  }

  const Scratch folder_;
};

TEST_F(PrepareIds, EachLineIsADocumentOfTheseIds) {
  const Shard shard = prepare(llama_like(),
                              "{\"ids\": [5, 6,7]}\n\n"
                              "{\"other\": {\"ids\": [[1]]}, \"ids\": [0], \"x\": [1.5, null]}\r\n"
                              "{\"ids\": [359, 1]}");
  EXPECT_EQ(ids_of(shard), (std::vector<int32_t>{5, 6, 7, 0, 359, 1}));
  EXPECT_EQ(shard.document_starts(), (std::vector<int64_t>{0, 3, 4}));
  EXPECT_EQ(shard.info().bytes, 0u) << "the text is not known";
  EXPECT_EQ(shard.info().words, 0u);
  EXPECT_EQ(shard.info().tokenizer_sha256, llama_like().sha256());
}

TEST_F(PrepareIds, TheTextOfALosslessTokenizerIsThatOfTheIds) {
  const std::string text = " The river\n reaches <unk> \n";
  std::string line = "{\"ids\": [";
  for (const int32_t id : small_tokenizer().encode(text)) line += std::to_string(id) + ", ";
  line.resize(line.size() - 2);
  const Shard shard = prepare(small_tokenizer(), line + "]}\n");
  EXPECT_EQ(shard.info().text_sha256, sha256_hex(text.data(), text.size()));
  EXPECT_EQ(shard.info().words, 4u);
  EXPECT_EQ(shard.info().lines, 2u);
}

TEST_F(PrepareIds, RangesOfTrainedIdsMakeSamples) {
  const Shard shard = prepare(llama_like(),
                              "{\"ids\": [5, 6, 7, 8], \"trained\": [[1, 2], [3, 4]]}\n"
                              "{\"trained\": [[1, 3]], \"ids\": [1, 2, 3]}\n");
  EXPECT_TRUE(shard.info().has_samples());
  EXPECT_EQ(shard.info().sample_template, "ids");
  EXPECT_EQ(shard.read_trained(0, 7),
            (std::vector<bool>{false, true, false, true, false, true, true}));
  for (const auto& [line, part] :
       {std::pair{"{\"ids\": [1, 2]}", "line 2: has no field \"trained\""},
        std::pair{"{\"ids\": [1, 2], \"trained\": [[0, 1]]}", "has the first id"},
        std::pair{"{\"ids\": [1, 2], \"trained\": [[1, 3]]}", "beyond"},
        std::pair{"{\"ids\": [1, 2, 3, 4], \"trained\": [[2, 3], [1, 2]]}", "not after"},
        std::pair{"{\"ids\": [1, 2], \"trained\": [[1]]}", "is not [begin, end]"},
        std::pair{"{\"ids\": [1, 2], \"trained\": [1, 2]}", "it has a number"}}) {
    const std::string lines = "{\"ids\": [1, 2], \"trained\": [[1, 2]]}\n" + std::string(line);
    expect_data_error([&] { prepare(llama_like(), lines); }, part);
  }
}

TEST_F(PrepareIds, ErrorsNameTheLine) {
  const std::pair<const char*, const char*> kCases[] = {
      {"{\"ids\": [1, 360]}", "line 2: id number 2 of \"ids\" is not in the vocabulary of 360"},
      {"{\"ids\": [-1]}", "id number 1"},
      {"{\"ids\": [99999999999999999999]}", "it has a fraction"},
      {"{\"ids\": []}", "\"ids\" is empty"},
      {"{\"text\": \"a\"}", "has no field \"ids\""},
      {"{\"ids\": [1], \"ids\": [2]}", "stated twice"},
      {"{\"ids\": [1.5]}", "not a list of integers: it has a fraction"},
      {"{\"ids\": [[1]]}", "it has a list"},
      {"{\"ids\": 1}", "it has a number"},
      {"{\"ids\": {\"a\": 1}}", "it has an object"},
      {"[1, 2]", "is a list, not an object"},
      {"7", "is a number, not an object"},
      {"{\"ids\": [1", "not valid JSON at byte"},
      {"{\"ids\": [1]} x", "not valid JSON at byte"},
  };
  for (const auto& [line, part] : kCases) {
    const std::string lines = "{\"ids\": [1]}\n" + std::string(line) + "\n";
    expect_data_error([&] { prepare(llama_like(), lines); }, "line 2: ");
    expect_data_error([&] { prepare(llama_like(), lines); }, part);
  }
  expect_data_error([&] { prepare(llama_like(), "\n"); }, "is empty");
}

}  // namespace
}  // namespace stablemask
