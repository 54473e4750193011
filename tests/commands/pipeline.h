#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/commands/program.h"

namespace stablemask::testing {

inline nlohmann::json base_config() {
  return {
      {"model", {{"layers", 1}, {"channels", 32}, {"heads", 2}, {"ffn_hidden", 48}}},
      {"data", {{"train", {"train.shard"}}, {"valid", "valid.shard"}, {"tokenizer", "tok.model"}}},
      {"train",
       {{"out", "run"},
        {"device", "cpu"},
        {"threads", 1},
        {"context", 64},
        {"batch", 8},
        {"steps", 40},
        {"log_every", 20}}},
      {"optimizer", {{"lr", 0.01}}},
      {"schedule", {{"warmup_steps", 4}}},
      {"generate", {{"max_tokens", 12}}}};
}

/// A corpus, a tokenizer, shards and a trained run, made once by the program itself.
struct Pipeline {
  Pipeline() {
    succeed("data synth --output text --megabytes 0.1 --seed 3");
    succeed("tokenizer train --input text/wiki.train.tokens --output tok.model --vocab-size 600");
    for (const std::string split : {"train", "valid"}) {
      succeed("data prepare --tokenizer tok.model --input text/wiki." + split +
              ".tokens --output " + split + ".shard");
    }
    write_file(folder / "tiny.json", base_config().dump(2));
    trained = run_program(folder, "pretrain tiny.json");
  }
  Outcome succeed(const std::string& arguments) const {
    Outcome outcome = run_program(folder, arguments);
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.err;
    return outcome;
  }

  TemporaryFolder folder;
  Outcome trained;
};

class PipelineTest : public ::testing::Test {
 protected:
  static const Pipeline& pipeline() {
    static const Pipeline pipeline;
    return pipeline;
  }
  static Outcome run(const std::string& arguments, const std::string& prefix = "",
                     const std::string& out = "out.txt") {
    return run_program(pipeline().folder, arguments, prefix, out);
  }
  static Outcome succeed(const std::string& arguments) { return pipeline().succeed(arguments); }
  static std::string path(const std::string& name) { return pipeline().folder / name; }
  static bool exists(const std::string& name) { return std::filesystem::exists(path(name)); }

  /// Every file below the folder but the captured output, with its content's hash.
  static std::map<std::string, size_t> snapshot() {
    std::map<std::string, size_t> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path("."))) {
      const std::string name = entry.path().filename();
      if (!entry.is_regular_file() || name == "out.txt" || name == "err.txt") continue;
      files[entry.path()] = std::hash<std::string>()(read_file(entry.path()));
    }
    return files;
  }
};

}  // namespace stablemask::testing
