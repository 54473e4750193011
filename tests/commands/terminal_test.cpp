#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <regex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/commands/pipeline.h"
#include "tests/report/screen.h"

/// What the program shows on a terminal and in a pipe.
namespace stablemask::testing {
namespace {

using Rows = std::vector<std::string>;

/// A folder with a corpus, a tokenizer and shards.
class TerminalTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder();
    succeed("data synth --output text --megabytes 0.1 --seed 3");
    succeed("tokenizer train --input text/wiki.train.tokens --output tok.model --vocab-size 600");
    for (const std::string split : {"train", "valid"}) {
      succeed("data prepare --tokenizer tok.model --input text/wiki." + split +
              ".tokens --output " + split + ".shard");
    }
    write_file(*folder_ / "tiny.json", base_config().dump(2));
  }
  static void TearDownTestSuite() { delete folder_; }

  static Rows succeed(const std::string& arguments) {
    const Outcome outcome = run_program(*folder_, arguments);
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.err;
    EXPECT_EQ(outcome.err, "") << arguments;
    std::istringstream lines(outcome.out);
    Rows rows;
    for (std::string line; std::getline(lines, line);) rows.push_back(line);
    return rows;
  }

  /// The screen after the program ran with all its streams on a terminal of 24 rows.
  static Screen on_terminal(const std::string& arguments, unsigned short columns) {
    const winsize size{24, columns, 0, 0};
    int reader = -1;
    const pid_t child = ::forkpty(&reader, nullptr, nullptr, &size);
    if (child == 0) {
      const std::string line = "exec '" STABLEMASK_BINARY "' " + arguments;
      if (::chdir((*folder_ / ".").c_str()) != 0) _exit(99);
      ::execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
      _exit(98);
    }
    Screen screen(columns);
    std::string seen;
    char piece[4096];
    // At the end of the program the terminal is gone: an error.
    for (ssize_t count = 0; (count = ::read(reader, piece, sizeof piece)) > 0;) {
      seen.append(piece, static_cast<size_t>(count));
    }
    ::close(reader);
    EXPECT_EQ(exit_code_of(child), 0) << seen;
    screen.write(seen);
    return screen;
  }

  static TemporaryFolder* folder_;
};
TemporaryFolder* TerminalTest::folder_ = nullptr;

/// The rows without spaces and "|", continued rows (which begin with a space) together.
Rows unbroken(const Rows& rows) {
  Rows lines;
  for (const std::string& row : rows) {
    if (row.empty()) continue;
    if (row[0] != ' ' || lines.empty()) lines.emplace_back();
    std::copy_if(row.begin(), row.end(), std::back_inserter(lines.back()),
                 [](char c) { return c != ' ' && c != '|'; });
  }
  return lines;
}

void expect_lines(const Rows& lines, const Rows& patterns) {
  for (size_t i = 0; i < std::max(lines.size(), patterns.size()); ++i) {
    const std::string line = i < lines.size() ? lines[i] : "(no line)";
    const std::string pattern = i < patterns.size() ? patterns[i] : "(nothing more)";
    EXPECT_TRUE(std::regex_match(line, std::regex(pattern))) << line << "\nis not\n" << pattern;
  }
}

void expect_to_fit(const Screen& screen, size_t columns) {
  EXPECT_EQ(screen.wraps(), 0);
  for (const Rows& rows : {screen.rows(), screen.erased()}) {
    for (const std::string& row : rows) EXPECT_LT(display_columns(row), columns) << row;
  }
}

/// Patterns of unbroken lines.
Rows summary_patterns(const std::string& run, int steps) {
  return {"model1layerx32channels,2heads,RoPE,[0-9,]+parameters",
          "maskStableMask,gamma1,p_base0,N64,beyondNinfinite",
          "tokens8x64=512astep," + std::to_string(steps) + "steps=[0-9,]+,[0-9.]+epochs",
          "datatrain.shard,[0-9,]+tokens,validation[0-9,]+tokens",
          "devicecpu,fp32,1CPUthread",
          "output" + run + ",checkpointsevery15minutes,last2kept"};
}
std::string step_pattern(const std::string& of, bool validated) {
  return "step" + of + "loss[0-9.]+lr[0-9.e+-]+[0-9.]+k?tok/sETA[0-9]+s" +
         (validated ? "validloss[0-9.]+validwordppl[0-9.]+" : "");
}
Rows operator+(Rows first, const Rows& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

TEST_F(TerminalTest, ARunKeepsItsLinesAboveABarAtEveryWidth) {
  for (const unsigned short columns : {200, 80, 40}) {
    const std::string run = "run" + std::to_string(columns);
    const std::string command = "pretrain tiny.json --set train.out=" + run;
    const Screen first = on_terminal(command, columns);
    expect_to_fit(first, columns);
    EXPECT_EQ(first.rows().back(), "") << "the bar is erased at the end";
    expect_lines(
        unbroken(first.rows()),
        summary_patterns(run, 40) + Rows{step_pattern("20/40", false), step_pattern("40/40", true),
                                         "saved" + run + "/checkpoints/step-00000040",
                                         "done:step40," + run + "/checkpoints/step-00000040"});
    // Whatever else was shown was the line that is redrawn.
    const std::regex redrawn(
        R"((\[[#.]{20}\] )?(step [0-9]+/40|saving step 40|validating: |verifying shards: ).*)");
    for (const std::string& line : first.erased()) {
      EXPECT_TRUE(std::regex_match(line, redrawn)) << line;
    }
    const auto shown = [&](const std::string& start) {
      return std::any_of(
          first.erased().begin(), first.erased().end(),
          [&](const std::string& line) { return line.find(start) != std::string::npos; });
    };
    for (const char* start : {"step 1/40", "step 20/40", "verifying", "validating", "saving"}) {
      EXPECT_TRUE(shown(start)) << start << " at " << columns << " columns";
    }
    EXPECT_EQ(shown("[##########..........] step 20/40"), columns > 80);

    const Screen resumed =
        on_terminal(command + " --set train.steps=45 --set optimizer.lr=0.005", columns);
    expect_to_fit(resumed, columns);
    expect_lines(
        unbroken(resumed.rows()),
        summary_patterns(run, 45) +
            Rows{"resumedfrom" + run + "/checkpoints/step-00000040:40of45stepsdone",
                 "configchanged:/optimizer/lr:0.01->0.005", "configchanged:/train/steps:40->45",
                 step_pattern("45/45", true), "saved" + run + "/checkpoints/step-00000045",
                 "done:step45," + run + "/checkpoints/step-00000045"});
  }
}

TEST_F(TerminalTest, APipeGetsPlainLinesAndQuietNothing) {
  const Rows rows = succeed("pretrain tiny.json --set train.out=piped");
  for (const std::string& row : rows) {
    EXPECT_EQ(row.find_first_of("\r\033"), std::string::npos) << row;
  }
  expect_lines(unbroken(rows), summary_patterns("piped", 40) +
                                   Rows{step_pattern("20/40", false), step_pattern("40/40", true),
                                        "savedpiped/checkpoints/step-00000040",
                                        "done:step40,piped/checkpoints/step-00000040"});
  const std::string quiet = "pretrain tiny.json --quiet --set train.out=quiet";
  EXPECT_EQ(succeed(quiet), Rows());
  const Screen screen = on_terminal(quiet + " --set train.steps=42", 80);
  EXPECT_EQ(screen.rows(), Rows{""});
  EXPECT_EQ(screen.erased(), Rows());
}

TEST_F(TerminalTest, LongWorkIsShownWhileItLastsAndLeavesTheOutputAlone) {
  succeed("pretrain tiny.json --set train.steps=4 --set train.out=short");
  const std::pair<std::string, std::string> commands[] = {
      {"tokenizer train --input text/wiki.train.tokens --output again.model --vocab-size 600",
       R"(training the tokenizer for [0-9]+s \| bpe, 600 pieces \| [0-9,]+ lines)"},
      {"data prepare --tokenizer tok.model --input text/wiki.valid.tokens --output again.shard",
       R"(\[#{20}\] preparing: [0-9.]+/[0-9.]+ MB)"},
      {"data inspect train.shard --verify", R"(\[[#.]{20}\] verifying: [0-9.]+/[0-9.]+ MB.*)"},
      {"eval --checkpoint short --data valid.shard",
       R"(\[[#.]{20}\] loading the checkpoint: [0-9.]+/[0-9.]+ MB.*)"},
      {"eval --checkpoint short --data text/wiki.valid.tokens --lengths 32,64",
       R"(\[[#.]{20}\] length 64 \(2 of 2\): [0-9,]+/[0-9,]+ tok.*)"},
      {"checkpoint verify short", R"(\[[#.]{20}\] verifying: [0-9.]+/[0-9.]+ MB.*)"},
  };
  for (const auto& [command, progress] : commands) {
    const Rows piped = succeed(command);
    const Screen screen = on_terminal(command, 200);
    Rows rows = screen.rows();
    ASSERT_FALSE(rows.empty());
    EXPECT_EQ(rows.back(), "");
    rows.pop_back();
    EXPECT_EQ(rows, piped);
    EXPECT_EQ(screen.wraps(), 0);
    EXPECT_TRUE(std::any_of(
        screen.erased().begin(), screen.erased().end(),
        [&](const std::string& line) { return std::regex_match(line, std::regex(progress)); }))
        << command;
  }
}

}  // namespace
}  // namespace stablemask::testing
