// Instruction data: from JSONL to a shard of samples.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "stablemask/base/sha256.h"
#include "stablemask/data/prepare.h"
#include "tests/data/fixtures.h"
#include "tests/data/foreign_model.h"

namespace stablemask {
namespace {

using test::expect_data_error;
using test::make_samples;
using test::small_tokenizer;

constexpr const char* kPrompts =
    "{\"prompt\": \"Where is Tarn ?\", \"completion\": \" By the <unk> river .\"}\n"
    "\n"
    "{\"id\": 7, \"completion\": \"two\\nlines\\n\", \"prompt\": \"\"}\n";

constexpr const char* kMessages =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", "
    "\"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello\"}, {\"role\": \"user\", "
    "\"content\": \"Bye\"}, {\"role\": \"assistant\", \"content\": \"See you\"}, {\"role\": "
    "\"user\", \"content\": \"?\"}]}\n";

// The text of each sample with what is trained on in brackets, ^ for the end-of-text id.
struct PreparedSamples {
  ShardInfo info;
  std::vector<std::string> shown;
  std::string text, bytes;
};

PreparedSamples prepare_samples(const std::string& jsonl, const PrepareOptions& options = {},
                                const char* name = "samples.jsonl") {
  const Scratch folder;
  write_bytes(folder / name, jsonl);
  const Tokenizer& tokenizer = small_tokenizer();
  PreparedSamples prepared;
  prepared.info = prepare_shard(folder / name, folder / "shard", tokenizer, options);
  const Shard shard = Shard::open(folder / "shard");
  shard.verify();
  prepared.bytes = read_bytes(folder / "shard");
  std::vector<int64_t> ids(static_cast<size_t>(shard.size()));
  shard.read(0, shard.size(), ids.data());
  const std::vector<bool> trained = shard.read_trained(0, shard.size());
  const auto& starts = shard.document_starts();
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool first = std::ranges::binary_search(starts, static_cast<int64_t>(i));
    if (first) prepared.shown.emplace_back();
    std::string& shown = prepared.shown.back();
    const auto id = static_cast<int32_t>(ids[i]);
    prepared.text += tokenizer.decode({id});
    const bool before = i > 0 && trained[i - 1];
    if (trained[i] && !before) shown += '[';
    shown += id == tokenizer.end_of_text_id() ? "^" : tokenizer.decode({id});
    if (trained[i] && (i + 1 == ids.size() || !trained[i + 1])) shown += ']';
  }
  return prepared;
}

TEST(Samples, PromptsAreReadAndCompletionsAreTrained) {
  const PreparedSamples prepared = prepare_samples(kPrompts);
  EXPECT_EQ(prepared.shown, (std::vector<std::string>{"\nWhere is Tarn ?[ By the <unk> river .^]",
                                                      "\n[two\nlines\n^]"}));
  EXPECT_EQ(prepared.info.version, 2U);
  EXPECT_EQ(prepared.info.sample_template, "prompt");
  EXPECT_EQ(prepared.info.documents, 2U);
  EXPECT_EQ(prepared.info.lines, 4U);
  EXPECT_EQ(prepared.info.bytes, prepared.text.size());
  EXPECT_EQ(prepared.info.text_sha256, sha256_hex(prepared.text.data(), prepared.text.size()));
}

TEST(Samples, EveryTurnOfTheAssistantIsTrained) {
  const PreparedSamples prepared = prepare_samples(kMessages);
  EXPECT_EQ(prepared.shown,
            (std::vector<std::string>{"\nSystem: Be brief.\nUser: Hi\nAssistant:[ Hello^]\n"
                                      "User: Bye\nAssistant:[ See you^]"}));
  EXPECT_EQ(prepared.info.sample_template, "turns");
}

TEST(Samples, AnswersAreTokenisedAsGenerationContinuesAPrompt) {
  const Scratch folder;
  write_bytes(folder / "a.jsonl", kMessages);
  prepare_shard(folder / "a.jsonl", folder / "shard", small_tokenizer(), {});
  const Shard shard = Shard::open(folder / "shard");
  // EOS and the prompt's tokens, as generation feeds them.
  std::vector<int32_t> prompt = {small_tokenizer().eos_id()};
  for (const int32_t id : small_tokenizer().encode("System: Be brief.\nUser: Hi\nAssistant:")) {
    prompt.push_back(id);
  }
  std::vector<int64_t> ids(prompt.size());
  shard.read(0, static_cast<int64_t>(prompt.size()), ids.data());
  EXPECT_TRUE(std::equal(ids.begin(), ids.end(), prompt.begin()));
}

TEST(Samples, TheFirstObjectOrTheFormatDecides) {
  PrepareOptions options;
  EXPECT_EQ(prepare_samples("\n" + std::string(kMessages)).info.version, 2U);
  EXPECT_EQ(prepare_samples("\xEF\xBB\xBF" + std::string(kPrompts)).info.version, 2U);
  // A text beside other fields is a document.
  const std::string with_text = "{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}\n";
  EXPECT_EQ(prepare_samples(with_text).info.version, 1U);
  options.format = TextFormat::kSamples;
  EXPECT_EQ(prepare_samples(with_text, options).info.version, 2U);
  EXPECT_EQ(prepare_samples(kPrompts, options, "samples.txt").info.version, 2U);
  options.format = TextFormat::kJsonl;
  options.jsonl_field = "completion";
  const PreparedSamples documents = prepare_samples(kPrompts, options);
  EXPECT_EQ(documents.info.version, 1U);
  EXPECT_EQ(documents.text, " By the <unk> river .\ntwo\nlines\n");
  options = {};
  options.jsonl_field = "prompt";
  EXPECT_EQ(prepare_samples(kPrompts, options).info.version, 1U);
}

TEST(Samples, ThreadsAndChunksChangeNothing) {
  std::string jsonl;
  for (int i = 0; i < 300; ++i) {
    jsonl += "{\"prompt\": \"number " + std::to_string(i) + "\", \"completion\": \" is " +
             std::string(static_cast<size_t>(i % 50 + 1), 'x') + "\\n\"}\n";
  }
  const std::string whole = prepare_samples(jsonl).bytes;
  for (const int threads : {1, 3}) {
    PrepareOptions options;
    options.threads = threads;
    options.chunk_bytes = 700;
    EXPECT_EQ(prepare_samples(jsonl, options).bytes, whole);
  }
}

TEST(Samples, ErrorsNameTheLine) {
  const struct {
    std::string lines, complaint;
  } kCases[] = {
      {"{\"prompt\": \"a\"}", "samples.jsonl: line 3: has no field \"completion\""},
      {"{\"completion\": \"a\"}", "line 3: has no field \"prompt\""},
      {"{\"prompt\": 5, \"completion\": \"a\"}",
       "line 3: the field \"prompt\" is of type number, not a string"},
      {"{\"prompt\": \"a\", \"completion\": null}",
       "the field \"completion\" is of type null, not a string"},
      {"{\"prompt\": \"a\", \"completion\": \"\"}", "line 3: its completion is empty"},
      {"{\"prompt\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}",
       "line 3: states the field \"prompt\" twice"},
      {"[1]", "line 3: the line is of type array, not an object"},
      {"{\"prompt\": ", "line 3: not valid JSON at byte 12"},
      {"{\"prompt\": \"\xFF\"}", "line 3: "},
  };
  for (const auto& one : kCases) {
    const std::string first = "{\"prompt\": \"a\", \"completion\": \"b\"}\n\n";
    expect_data_error([&] { prepare_samples(first + one.lines); }, one.complaint);
  }
  const std::string user = "{\"role\": \"user\", \"content\": \"a\"}";
  const struct {
    std::string messages, complaint;
  } kConversations[] = {
      {"5", "line 1: the field \"messages\" is of type number, not an array"},
      {"[]", "line 1: no message is the assistant's"},
      {"[" + user + "]", "line 1: no message is the assistant's"},
      {"[" + user + ", 7]", "message 2: it is of type number, not an object"},
      {"[{\"role\": \"tool\", \"content\": \"a\"}]",
       "message 1: the role \"tool\" is unknown; it is system, user or assistant"},
      {"[{\"content\": \"a\"}]", "message 1: has no field \"role\""},
      {"[{\"role\": \"user\", \"content\": [\"a\"]}]",
       "message 1: the field \"content\" is of type array, not a string"},
      {"[" + user + ", {\"role\": \"assistant\", \"content\": \"\"}]",
       "message 2: the assistant's answer is empty"},
  };
  for (const auto& one : kConversations) {
    expect_data_error([&] { prepare_samples("{\"messages\": " + one.messages + "}"); },
                      one.complaint);
  }
  PrepareOptions options;
  options.format = TextFormat::kSamples;
  expect_data_error([&] { prepare_samples("{\"question\": \"a\"}", options); },
                    "line 1: has neither the fields \"prompt\" and \"completion\" nor");
}

// Of a model that adds a space before a text, as Llama's does.
TEST(Samples, ForeignTokenizersContinueAPrompt) {
  const Scratch folder;
  write_bytes(folder / "model", test::foreign_model(test::llama_flags()));
  const Tokenizer tokenizer = Tokenizer::load(folder / "model");
  ASSERT_FALSE(tokenizer.lossless());
  write_bytes(folder / "s.jsonl",
              "{\"prompt\": \"The river\", \"completion\": \" reaches town\"}\n"
              "{\"prompt\": \"\", \"completion\": \"The thaw\"}\n");
  const ShardInfo info = prepare_shard(folder / "s.jsonl", folder / "shard", tokenizer, {});
  EXPECT_EQ(info.sample_template, "prompt");
  EXPECT_EQ(info.words, 6U);
  std::vector<int32_t> expected = {tokenizer.start_id()};
  const auto add = [&](const std::vector<int32_t>& ids) {
    expected.insert(expected.end(), ids.begin(), ids.end());
  };
  add(tokenizer.encode("The river reaches town"));
  add({tokenizer.end_of_text_id()});
  const size_t second = expected.size();
  add({tokenizer.start_id()});
  add(tokenizer.encode("The thaw"));
  add({tokenizer.end_of_text_id()});
  const Shard shard = Shard::open(folder / "shard");
  std::vector<int64_t> ids(static_cast<size_t>(shard.size()));
  shard.read(0, shard.size(), ids.data());
  EXPECT_EQ(std::vector<int32_t>(ids.begin(), ids.end()), expected);
  const size_t prompt = 1 + tokenizer.encode("The river").size();
  const std::vector<bool> trained = shard.read_trained(0, shard.size());
  for (size_t i = 0; i < trained.size(); ++i) {
    EXPECT_EQ(trained[i], i >= prompt && i != second) << i;
  }
}

template <typename T>
void put(std::string& bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

void put_hash(std::string& bytes, size_t offset, std::string_view of) {
  const std::string hex = sha256_hex(of.data(), of.size());
  for (size_t i = 0; i < 32; ++i) {
    bytes[offset + i] = static_cast<char>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  }
}

// The layout in the comment of src/data/shards.cpp.
TEST(SampleShard, LayoutIsAsDocumented) {
  const Scratch folder;
  const auto shard = make_samples(folder / "shard", {{1, 2, 700}, {4, 5, 6, 7, 8, 9, 3}},
                                  {{0, 1, 1}, {0, 0, 1, 0, 0, 0, 1}});
  const std::string bytes = read_bytes(folder / "shard");
  std::string payload;
  for (const int token : {1, 2, 700, 4, 5, 6, 7, 8, 9, 3, 0, 0}) {
    payload += {static_cast<char>(token & 255), static_cast<char>(token >> 8)};
  }
  payload += std::string("\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0", 16);
  payload += std::string("\x26\x02\0\0\0\0\0\0", 8);  // tokens 1, 2, 5 and 9
  ASSERT_EQ(bytes.size(), 256 + payload.size());
  EXPECT_EQ(bytes.substr(256), payload);
  EXPECT_EQ(bytes.substr(8, 4), std::string("\x02\0\0\0", 4));
  EXPECT_EQ(bytes.substr(168, 8), std::string("\x04\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(bytes.substr(176, 16), "prompt" + std::string(10, '\0'));
  EXPECT_EQ(bytes.substr(192, 32), std::string(32, '\0'));
  EXPECT_EQ(shard->info().trained, 4U);
  EXPECT_EQ(shard->payload_bytes(), payload.size());
  EXPECT_EQ(shard->read_trained(1, 5), (std::vector<bool>{true, true, false, false, true}));
  EXPECT_EQ(shard->read_trained(9, 1), (std::vector<bool>{true}));
  EXPECT_TRUE(shard->read_trained(10, 0).empty());
  expect_data_error([&] { shard->read_trained(9, 2); }, "has no 2 tokens from 9 on");
  EXPECT_NO_THROW(shard->verify());
}

TEST(SampleShard, DamageIsNoticed) {
  const Scratch folder;
  make_samples(folder / "good", {{1, 2, 3}, {4, 5}}, {{0, 1, 1}, {0, 1}});
  const std::string good = read_bytes(folder / "good");
  const size_t bits = good.size() - 8;
  const struct {
    const char* complaint;
    std::function<void(std::string&)> damage;
    bool hashes = true;
  } kCases[] = {
      {"its reserved bytes are not zero", [](auto& b) { put(b, 8, uint32_t{1}); }},
      {"reserved bytes", [](auto& b) { b[192] = 1; }},
      {"its template has no name", [](auto& b) { b[176] = 0; }},
      {"its template has no name", [](auto& b) { b[176] = 'P'; }},
      {"its template has no name", [](auto& b) { b[191] = 'x'; }},
      {"it has no samples", [](auto& b) { put(b, 64, uint64_t{0}); }},
      {"none of its tokens is a training target", [](auto& b) { put(b, 168, uint64_t{0}); }},
      {"counts contradict each other", [](auto& b) { put(b, 168, uint64_t{4}); }},
      {"counts contradict each other", [](auto& b) { put(b, 168, UINT64_MAX); }},
      {"not as many as its header says", [](auto& b) { put(b, 168, uint64_t{2}); }},
      {"not as many as its header says", [&](auto& b) { b[bits] = 0x02; }},
      {"not as many as its header says", [&](auto& b) { b[bits + 1] = 0x01; }},
      {"its payload is damaged", [&](auto& b) { b[bits] ^= 0x06; }, false},
      {"its first sample is damaged", [&](auto& b) { b[bits - 16] = 1; }},
      {"it is truncated", [](auto& b) { b.resize(b.size() - 8); }},
      {"it has bytes after its end", [](auto& b) { b += '\0'; }},
  };
  for (const auto& one : kCases) {
    std::string bad = good;
    one.damage(bad);
    if (one.hashes) put_hash(bad, 136, std::string_view(bad).substr(256));
    put_hash(bad, 224, std::string_view(bad).substr(0, 224));
    write_bytes(folder / "bad", bad);
    expect_data_error([&] { Shard::open(folder / "bad").verify(); }, one.complaint);
  }
}

TEST(SampleShard, TheWriterRefusesWhatTheReaderWould) {
  const Scratch folder;
  const std::string hash(64, 'a');
  ShardInfo counts;
  counts.text_sha256 = hash;
  const auto refused = [&](const std::function<void(ShardWriter&)>& write) {
    expect_data_error(
        [&] {
          ShardWriter writer(folder / "shard", 100, hash);
          write(writer);
        },
        "training target");
  };
  refused([](ShardWriter& w) { w.append({1, 2}, {false, true}); });  // no sample begun
  refused([](ShardWriter& w) {
    w.begin_document();
    w.append({1, 2}, {false});
  });
  refused([](ShardWriter& w) {
    w.begin_document();
    w.append({1, 2}, {true, true});
  });
  refused([](ShardWriter& w) {
    w.append({1, 2});
    w.append({1, 2}, {false, true});
  });
  refused([&](ShardWriter& w) {  // no template
    w.begin_document();
    w.append({1, 2}, {false, true});
    w.finish(counts);
  });
  counts.sample_template = "prompt";
  refused([&](ShardWriter& w) {  // no targets
    w.append({1, 2});
    w.finish(counts);
  });
  refused([&](ShardWriter& w) {
    w.begin_document();
    w.append({1, 2}, {false, false});
    w.finish(counts);
  });
  EXPECT_EQ(test::entries_of(folder), 0U);
}

}  // namespace
}  // namespace stablemask
