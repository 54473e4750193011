#include "src/config/foreign_keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "src/config/config_fields.h"
#include "stablemask/config/config.h"
#include "tests/config/config_problems.h"

namespace stablemask {
namespace {

/// "train.steps" → "/train/steps".
std::string pointer_of(std::string_view path) {
  std::string pointer(1, '/');
  pointer += path;
  std::replace(pointer.begin(), pointer.end(), '.', '/');
  return pointer;
}

TEST(ForeignKeys, NameTheFieldMeant) {
  const std::string epochs = "unknown key; this is train.epochs here";
  const std::vector<Case> cases = {
      {R"({"epochs": 3})", "c.json:1:2: /epochs: unknown key here; it belongs at /train/epochs"},
      {R"({"train": {"num_train_epochs": 3}})", "c.json:1:12: /train/num_train_epochs: " + epochs},
      {R"({"train": {"max_steps": 3}})",
       "c.json:1:12: /train/max_steps: unknown key; this is train.steps here"},
      {R"({"optimizer": {"learning_rate": 1}})",
       "c.json:1:16: /optimizer/learning_rate: unknown key; this is optimizer.lr here"},
      {R"({"train": {"Learning-Rate": 1}})",
       "c.json:1:12: /train/Learning-Rate: unknown key; this is optimizer.lr here"},
      {R"({"schedule": {"warmup": 1}})",
       "c.json:1:15: /schedule/warmup: unknown key; this is schedule.warmup_steps here (in "
       "optimizer steps)"},
      {R"({"train": {"gradient_accumulation_steps": 4}})",
       "c.json:1:12: /train/gradient_accumulation_steps: unknown key; this is train.micro_batch "
       "here "
       "(sequences per forward pass; train.batch / train.micro_batch passes are accumulated)"},
      {R"({"optimizer": {"type": "adamw"}})",
       "c.json:1:16: /optimizer/type: unknown key; this is optimizer.kind here"},
      {R"({"optimizer": {"name": "adamw"}})",
       "c.json:1:16: /optimizer/name: unknown key; this is optimizer.kind here"},
      {R"({"schedule": {"type": "cosine"}})",
       "c.json:1:15: /schedule/type: unknown key; this is schedule.kind here"},
      {R"({"scheduler": {"warmup": 1}})",
       "c.json:1:2: /scheduler: unknown key; this is schedule here"},
      {R"({"eval": {"batch_size": 1}})",
       "c.json:1:11: /eval/batch_size: unknown key; this is eval.batch here"},
      {R"({"model": {"dropout": 0.1}})",
       "c.json:1:12: /model/dropout: not supported: dropout; remove it"},
      {R"({"train": {"fp8": true}})",
       "c.json:1:12: /train/fp8: unknown key; this is train.precision here (\"fp8\" or \"dtype\")"},
      {R"({"train": {"fp16": true}})",
       "c.json:1:12: /train/fp16: not supported: use train.dtype \"bf16\" or \"fp32\""},
  };
  for (const Case& test : cases) EXPECT_EQ(problems(test.text), test.message) << test.text;
  EXPECT_EQ(problems("{}", {"train.num_epochs=3"}),
            "--set train.num_epochs=3: /train/num_epochs: " + epochs);
}

TEST(ForeignKeys, CoverTheUsualNamesOfOtherTrainers) {
  for (const std::string key : {"num_epochs",
                                "num_train_epochs",
                                "max_steps",
                                "learning_rate",
                                "warmup",
                                "batch_size",
                                "gradient_accumulation_steps",
                                "seq_len",
                                "block_size",
                                "n_layer",
                                "n_embd",
                                "n_head",
                                "hidden_size",
                                "num_hidden_layers",
                                "dropout",
                                "scheduler",
                                "output_dir",
                                "save_steps",
                                "logging_steps",
                                "eval_steps",
                                "bf16",
                                "fp16"}) {
    const std::string answer = unknown_key(key, "/train");
    EXPECT_TRUE(answer.starts_with("unknown key; this is ") ||
                answer.starts_with("not supported: "))
        << key << ": " << answer;
  }
}

/// Fields with their right name at the wrong place.
TEST(ForeignKeys, MisplacedFieldsAreSentToEveryPlaceOfTheirName) {
  EXPECT_EQ(unknown_key("warmup_steps", "/train"),
            "unknown key here; it belongs at /schedule/warmup_steps");
  EXPECT_EQ(unknown_key("kind", "/train"),
            "unknown key here; it belongs at /optimizer/kind or /schedule/kind");
  EXPECT_EQ(unknown_key("optimizer", "/train"), "unknown key here; it belongs at /optimizer");
  EXPECT_EQ(unknown_key("stable_mask", ""), "unknown key here; it belongs at /model/stable_mask");
}

TEST(ForeignKeys, TableIsConsistent) {
  std::set<std::pair<std::string_view, std::string_view>> seen;
  for (const ForeignKey& entry : foreign_keys()) {
    SCOPED_TRACE(std::string(entry.key));
    EXPECT_TRUE(seen.emplace(entry.section, entry.key).second) << "stated twice";
    EXPECT_TRUE(entry.section.empty() || find_section(pointer_of(entry.section)));
    if (entry.path.empty()) {
      EXPECT_FALSE(entry.note.empty());
      continue;
    }
    const std::string pointer = pointer_of(entry.path);
    if (find_section(pointer)) continue;
    const Section* section = find_section(pointer.substr(0, pointer.rfind('/')));
    ASSERT_NE(section, nullptr);
    EXPECT_NE(find_field(*section, pointer.substr(pointer.rfind('/') + 1)), nullptr);
  }
  for (const Section& section : config_sections()) {
    for (const Field& field : section.fields) {
      EXPECT_FALSE(seen.contains({"", field.name})) << field.name << " is a field";
    }
  }
}

TEST(FieldsForOption, FindFieldsByTheirLastPartTheirPathAndForeignNames) {
  EXPECT_EQ(fields_for_option("steps"), Strings{"train.steps"});
  EXPECT_EQ(fields_for_option("train.steps"), Strings{"train.steps"});
  EXPECT_EQ(fields_for_option("save-minutes"), Strings{"train.save_minutes"});
  EXPECT_EQ(fields_for_option("gamma"), Strings{"model.stable_mask.gamma"});
  EXPECT_EQ(fields_for_option("batch"), (Strings{"train.batch", "eval.batch"}));
  EXPECT_EQ(fields_for_option("learning-rate"), Strings{"optimizer.lr"});
  EXPECT_EQ(fields_for_option("dropout"), Strings{"lora.dropout"});
  EXPECT_EQ(fields_for_option("training"), Strings{});  // a section
  EXPECT_EQ(fields_for_option(""), Strings{});
}

}  // namespace
}  // namespace stablemask
