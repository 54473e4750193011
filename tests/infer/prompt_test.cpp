#include "stablemask/infer/prompt.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/infer/generate.h"
#include "stablemask/infer/generator.h"
#include "tests/data/tiny_corpus.h"
#include "tests/nn/models.h"

namespace stablemask::infer {
namespace {

class PromptTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { corpus_ = new testing::TinyCorpus(); }
  static void TearDownTestSuite() { delete corpus_; }

  std::vector<int32_t> plain(const std::string& text) const {
    return prompt_ids(tokenizer_, text, "text");
  }
  std::vector<int32_t> ids_that_begin_with(const std::string& text) const {
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < tokenizer_.vocab_size(); ++id) {
      if (id != tokenizer_.eos_id() && tokenizer_.text_of(id).starts_with(text)) ids.push_back(id);
    }
    return ids;
  }

  static testing::TinyCorpus* corpus_;
  const Tokenizer tokenizer_ = Tokenizer::load(corpus_->tokenizer);
  const PromptEncoder heals_{tokenizer_}, leaves_{tokenizer_, false};
};
testing::TinyCorpus* PromptTest::corpus_ = nullptr;

TEST_F(PromptTest, ATrailingSpaceLeavesTheIdsOfTheTextWithoutIt) {
  const Prompt prompt = heals_.encode(" The river ", "text");
  EXPECT_EQ(prompt.ids, plain(" The river"));
  EXPECT_EQ(prompt.held, " ");
  // Not the byte piece of the space, which no encoded text has beside the piece of a space.
  std::vector<int32_t> allowed = ids_that_begin_with(" ");
  ASSERT_GT(allowed.size(), 10U);
  std::erase_if(allowed, [&](int32_t id) {
    return tokenizer_.text_of(id) == " " && id != plain(" The river ").back();
  });
  EXPECT_EQ(prompt.first_ids, allowed);
}

TEST_F(PromptTest, EveryTextIsItsIdsAndTheHeldEnd) {
  const std::string text =
      " \n = Arn = \n \n Arn is a town on a river , known for <unk> iron . \n é ";
  size_t healed = 0;
  for (size_t size = 0; size <= text.size(); ++size) {
    const std::string part = text.substr(0, size);
    if (part.ends_with('\xC3')) continue;  // half a character
    const Prompt prompt = heals_.encode(part, "text");
    ASSERT_EQ(prompt.ids[0], tokenizer_.eos_id());
    EXPECT_EQ(tokenizer_.decode({prompt.ids.begin() + 1, prompt.ids.end()}) + prompt.held, part);
    EXPECT_EQ(prompt.held.empty(), prompt.first_ids.empty());
    for (const int32_t id : prompt.first_ids) {
      EXPECT_TRUE(tokenizer_.text_of(id).starts_with(prompt.held)) << part;
    }
    healed += prompt.held.empty() ? 0 : 1;
    const Prompt as_it_is = leaves_.encode(part, "text");
    EXPECT_EQ(as_it_is.ids, plain(part));
    EXPECT_TRUE(as_it_is.first_ids.empty() && as_it_is.held.empty());
  }
  EXPECT_GT(healed, text.size() / 2);
}

TEST_F(PromptTest, NothingIsTakenBackWhereNoOtherIdBeginsWithIt) {
  // Nothing, a line end, a piece that no other one begins with, and the last byte of a character
  // without a piece.
  for (const std::string text : {"", "\n", " The river \n", "<unk>", "The \u6CB3"}) {
    const Prompt prompt = heals_.encode(text, "text");
    EXPECT_EQ(prompt.ids, plain(text)) << text;
    EXPECT_TRUE(prompt.first_ids.empty() && prompt.held.empty()) << text;
  }
}

TEST_F(PromptTest, OneTokenLeavesTheStartOfTheLine) {
  const Prompt prompt = heals_.encode(" ", "text");
  EXPECT_EQ(prompt.ids, std::vector<int32_t>{tokenizer_.eos_id()});
  EXPECT_EQ(prompt.held, " ");
  const Prompt second = heals_.encode("x\n ", "text");
  EXPECT_EQ(second.ids, plain("x\n"));
}

TEST_F(PromptTest, NamesATextThatIsNotUtf8) {
  try {
    heals_.encode("a\xFF", "--prompt");
    FAIL() << "accepted";
  } catch (const DataError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("--prompt: line 1: not valid UTF-8"))
        << error.what();
  }
}

/// The first id after " The river " is distributed as the one after " The river", given that its
/// text begins with a space.
TEST_F(PromptTest, ATrailingSpaceDoesNotChangeTheDistribution) {
  ModelConfig config = testing_models::tiny_config(Position::kRope, true);
  config.vocab_size = tokenizer_.vocab_size();
  nn::Transformer model = testing_models::tiny_model(config);
  const at::NoGradGuard no_grad;
  model->eval();
  const at::Tensor ids = at::tensor(plain(" The river"), at::kInt).to(at::kLong).unsqueeze(0);
  const at::Tensor probabilities = at::softmax(model->logits(ids)[0][-1].to(at::kDouble), 0);

  constexpr int kDraws = 1500;
  const Prompt prompt = heals_.encode(" The river ", "text");
  Generator generator(model, {.max_batch = 16, .capacity = 16});
  std::map<int32_t, double> drawn;
  for (int64_t seed = 0; seed < kDraws; ++seed) {
    GenerateRequest request{.prompt = prompt.ids, .settings = {}, .first_ids = prompt.first_ids};
    request.settings.max_tokens = 1;
    request.settings.seed = seed;
    request.emit = [&](const DrawnToken& token) {
      drawn[token.id] += 1.0 / kDraws;
      return true;
    };
    generator.add(std::move(request));
  }
  generator.run();

  double allowed = 0, all = 0;
  for (const int32_t id : prompt.first_ids) allowed += probabilities[id].item<double>();
  ASSERT_GT(allowed, 0);
  for (const int32_t id : prompt.first_ids) {
    const double expected = probabilities[id].item<double>() / allowed;
    const double deviation = std::sqrt(expected * (1 - expected) / kDraws);
    EXPECT_NEAR(drawn[id], expected, 5 * deviation) << tokenizer_.text_of(id);
    all += drawn[id];
  }
  EXPECT_NEAR(all, 1, 1e-9) << "other ids were drawn";
}

}  // namespace
}  // namespace stablemask::infer
