#include "src/commands/sample_preview.h"

#include <gtest/gtest.h>

#include "stablemask/data/prepare.h"
#include "tests/data/fixtures.h"

namespace stablemask::commands {
namespace {

using test::small_tokenizer;

constexpr const char* kSamples =
    "{\"prompt\": \"Two\\nlines\\u0007\", \"completion\": \" caf\u00E9 \u6CB3\\nand\"}\n"
    "{\"prompt\": \"The river number The river number The river\", \"completion\": \"x\"}\n";

Shard preview_shard(const Scratch& folder) {
  write_bytes(folder / "samples.jsonl", kSamples);
  prepare_shard(folder / "samples.jsonl", folder / "shard", small_tokenizer(), {});
  return Shard::open(folder / "shard");
}

int64_t tokens_of(const std::string& text) {
  return static_cast<int64_t>(small_tokenizer().encode(text).size());
}

TEST(SamplePreview, MarksWhatIsTrainedAndWhatIsMasked) {
  const Scratch folder;
  const Shard shard = preview_shard(folder);
  const int64_t targets = tokens_of(" caf\u00E9 \u6CB3\nand") + 1;
  const int64_t all = 1 + tokens_of("Two\nlines\x07") + targets;
  EXPECT_EQ(sample_preview(shard, small_tokenizer(), 0, 0),
            "sample 1: " + std::to_string(all) + " tokens, " + std::to_string(targets) +
                " trained\n"
                "  masked  |\u23CE|\n"
                "  masked  |Two\u23CE|\n"
                "  masked  |lines\\x07|\n"
                "  trained | caf\u00E9 \u6CB3\u23CE|\n"
                "  trained |and<end of text>|\n");
  const std::string legend = preview_legend(small_tokenizer());
  EXPECT_NE(legend.find("id " + std::to_string(small_tokenizer().eos_id()) + ";"),
            std::string::npos);
  EXPECT_NE(legend.find("id " + std::to_string(small_tokenizer().end_of_text_id()) + "\n"),
            std::string::npos);
}

TEST(SamplePreview, ShowsWhatAContextCutsOff) {
  const Scratch folder;
  const Shard shard = preview_shard(folder);
  const int64_t prompt = 1 + tokens_of("The river number The river number The river");
  const std::string all = std::to_string(prompt + 2);
  // The completion remains without its end; then it is cut off as well.
  EXPECT_EQ(sample_preview(shard, small_tokenizer(), 1, prompt),
            "sample 2: " + all + " tokens, truncated to " + std::to_string(prompt + 1) +
                ", 1 trained\n"
                "  masked  |\u23CE|\n"
                "  masked  |The river number The river number The river|\n"
                "  trained |x|\n"
                "  cut     |<end of text>|\n");
  const std::string dropped = sample_preview(shard, small_tokenizer(), 1, prompt - 1);
  EXPECT_NE(dropped.find(", 0 trained: dropped\n"), std::string::npos) << dropped;
  EXPECT_NE(dropped.find("  cut     |x<end of text>|\n"), std::string::npos) << dropped;
  const std::string packing = packing_text(shard, prompt - 1);
  EXPECT_NE(packing.find(": 2 samples in 1 sequence, "), std::string::npos) << packing;
  EXPECT_NE(packing.find(" truncated, 1 dropped\n"), std::string::npos) << packing;
}

}  // namespace
}  // namespace stablemask::commands
