// `stablemask score` as a user calls it.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/commands/pipeline.h"

namespace stablemask {
namespace {

using nlohmann::json;
using testing::expect_refusal;
using testing::Outcome;
using testing::PipelineTest;
using testing::read_file;
using testing::write_file;

class ScoreCommand : public PipelineTest {
 protected:
  static std::vector<json> results(const std::string& text) {
    std::vector<json> all;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
  }
  static void write_lines(const std::string& name, const std::vector<json>& lines) {
    std::string text;
    for (const json& line : lines) text += line.dump() + "\n";
    write_file(path(name), text);
  }
};

const std::string kScore = "score --checkpoint run --data ";

TEST_F(ScoreCommand, ATextHasTheFiguresOfEval) {
  const std::string text = " = Harn = \n \n Harn is a village on the river . \n";
  write_lines("one.jsonl", {{{"text", text}}});
  const json eval = json::parse(succeed("eval --checkpoint run --data one.jsonl --json -").out);
  const Outcome outcome = succeed(kScore + "one.jsonl --out scores.jsonl --json sums.json");
  const json sums = json::parse(read_file(path("sums.json")));
  const json line = results(read_file(path("scores.jsonl"))).at(0);
  const double nll = eval["nll"];
  ASSERT_LT(eval["tokens"], 64) << "one window";
  for (const json& found : {sums, line}) {
    EXPECT_NEAR(found["nll"].get<double>(), nll, 1e-6 * nll);
    for (const char* field : {"tokens", "words", "bytes"}) EXPECT_EQ(found[field], eval[field]);
  }
  for (const char* field : {"word_count", "lm_eval_count", "lines", "mask", "window", "context",
                            "checkpoint", "step", "tokenizer_sha256"}) {
    EXPECT_EQ(sums[field], eval[field]) << field;
  }
  for (const char* field :
       {"token_perplexity", "word_perplexity", "lm_eval_perplexity", "bits_per_byte"}) {
    const double expected = eval[field];
    EXPECT_NEAR(sums[field].get<double>(), expected, 1e-5 * expected) << field;
  }
  EXPECT_EQ(line["line"], 1);
  EXPECT_EQ(line.count("greedy"), 0u);
  EXPECT_NE(outcome.out.find("scored     1 texts\nNLL "), std::string::npos) << outcome.out;
}

TEST_F(ScoreCommand, ResultsAreInOrderAndTheSameWhateverRunsBeside) {
  const std::string start = " The river of Harn", end = " is long . \n";
  write_lines("many.jsonl", {{{"text", start + end}},
                             {{"context", start}, {"continuation", end}},
                             {{"text", start}},
                             {{"context", ""}, {"continuation", start}},
                             {{"text", end}}});
  const Outcome outcome = succeed(kScore + "- --batch 3 <many.jsonl");
  const std::vector<json> all = results(outcome.out);
  ASSERT_EQ(all.size(), 5u);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i]["line"], i + 1);
  EXPECT_NE(outcome.err.find("scored     3 texts and 2 continuations"), std::string::npos)
      << outcome.err;
  // p(whole) = p(start) · p(end | start).
  const double whole = all[0]["nll"], first = all[2]["nll"], rest = all[1]["nll"];
  EXPECT_NEAR(whole, first + rest, 1e-5 * whole);
  EXPECT_NEAR(all[3]["nll"].get<double>(), first, 1e-5 * first);
  EXPECT_TRUE(all[1]["greedy"].is_boolean());
  EXPECT_EQ(all[0]["tokens"], all[1]["tokens"].get<int>() + all[2]["tokens"].get<int>());
  EXPECT_EQ(all[1]["bytes"], end.size());
  // Alone.
  write_lines("alone.jsonl", {{{"story", start + end}}});
  const std::vector<json> alone = results(succeed(kScore + "alone.jsonl --field story").out);
  EXPECT_EQ(alone.at(0), all[0]);
}

TEST_F(ScoreCommand, IdsHaveTheLikelihoodOfTheirText) {
  const std::string start = " The river of Harn", end = " is long . \n";
  const auto ids = [&](const std::string& text) {
    return Tokenizer::load(path("tok.model")).encode(text);
  };
  write_lines("texts.jsonl",
              {{{"text", start + end}}, {{"context", start}, {"continuation", end}}});
  write_lines("ids.jsonl", {{{"ids", ids(start + end)}},
                            {{"context_ids", ids(start)}, {"continuation_ids", ids(end)}}});
  const std::vector<json> texts = results(succeed(kScore + "texts.jsonl --json sums1.json").out);
  const Outcome outcome = succeed(kScore + "ids.jsonl --json sums2.json");
  const std::vector<json> all = results(outcome.out);
  const json sums = json::parse(read_file(path("sums2.json")));
  for (size_t i = 0; i < 2; ++i) {
    json expected = texts.at(i);
    expected["words"] = expected["bytes"] = nullptr;
    EXPECT_EQ(all.at(i), expected);
  }
  EXPECT_EQ(sums["nll"], json::parse(read_file(path("sums1.json")))["nll"]);
  for (const char* field : {"words", "bytes", "word_count", "word_perplexity", "bits_per_byte"}) {
    EXPECT_TRUE(sums[field].is_null()) << field;
  }
  EXPECT_GT(sums["token_perplexity"], 1);
  EXPECT_EQ(outcome.err.find("bpb"), std::string::npos) << outcome.err;
  write_file(path("beyond.jsonl"), "\n{\"ids\": [5, 600]}\n");
  expect_refusal(run(kScore + "beyond.jsonl"), 3,
                 "line 2: token id 600 is not in the vocabulary of 600");
}

TEST_F(ScoreCommand, LongTextsAreCutAndLongContextsLoseTheirBeginning) {
  std::string text;
  for (int i = 0; i < 12; ++i) text += " The river of Harn is long . \n";
  write_lines("long.jsonl", {{{"text", text}}, {{"context", text}, {"continuation", " The"}}});
  const Outcome outcome = succeed(kScore + "long.jsonl --window 16 --json sums.json");
  const std::vector<json> all = results(outcome.out);
  EXPECT_GT(all.at(0)["tokens"], 64);
  EXPECT_EQ(json::parse(read_file(path("sums.json")))["truncated"], 1);
  EXPECT_NE(outcome.err.find("warning: 1 of 1 pairs are longer than the window"), std::string::npos)
      << outcome.err;
  const std::vector<json> sliding =
      results(succeed(kScore + "long.jsonl --window 16 --stride 4").out);
  EXPECT_LT(sliding.at(0)["nll"], all[0]["nll"]) << "more context";
  EXPECT_EQ(sliding.at(0)["tokens"], all[0]["tokens"]);
  EXPECT_EQ(sliding.at(1), all[1]);
}

TEST_F(ScoreCommand, ErrorsLeaveTheOutputsAlone) {
  write_file(path("kept.jsonl"), "kept");
  write_lines("bad.jsonl", {{{"text", "a"}}, {{"context", "a"}}});
  expect_refusal(run(kScore + "bad.jsonl --out kept.jsonl"), 3, "bad.jsonl: line 2: has no field");
  write_lines("wide.jsonl",
              {{{"context", ""}, {"continuation", " The river of Harn is long and wide"}}});
  expect_refusal(run(kScore + "wide.jsonl --window 2 --out kept.jsonl"), 3,
                 "tokens, more than the window of 2; raise --window");
  expect_refusal(run(kScore + "wide.jsonl --out wide.jsonl"), 2, "wide.jsonl");
  expect_refusal(run(kScore + "wide.jsonl --json -"), 2, "both are standard output");
  expect_refusal(run(kScore + "absent.jsonl --out kept.jsonl"), 3, "absent.jsonl");
  expect_refusal(run(kScore + "wide.jsonl --window 8 --stride 9 --out kept.jsonl"), 2, "stride 9");
  EXPECT_EQ(read_file(path("kept.jsonl")), "kept");
}

}  // namespace
}  // namespace stablemask
