#include "stablemask/report/progress.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "stablemask/base/log.h"
#include "stablemask/report/work_progress.h"
#include "tests/io/scratch.h"
#include "tests/report/screen.h"

namespace stablemask {
namespace {

using testing::PseudoTerminal;
using testing::Screen;
using Rows = std::vector<std::string>;

StepMetrics shown_line(int64_t step) {
  StepMetrics line;
  line.step = step;
  line.tokens = step * 100;
  line.loss = 9.5;
  line.loss_mean = 2.5;
  return line;
}

StepMetrics wide_line() {
  StepMetrics line = shown_line(12345);
  line.lr = 9.8e-4;
  line.tokens_per_second = 12300;
  line.mfu = 0.5;
  return line;
}

TEST(TerminalText, ColumnsOfNarrowWideAndCombiningCharacters) {
  EXPECT_EQ(display_columns(""), 0u);
  EXPECT_EQ(display_columns("step 5"), 6u);
  EXPECT_EQ(display_columns("é"), 1u);
  EXPECT_EQ(display_columns("e\u0301"), 1u) << "a combining accent";
  EXPECT_EQ(display_columns("模型"), 4u);
  EXPECT_EQ(display_columns("한글"), 4u);
  EXPECT_EQ(display_columns("ｶﾞ"), 2u) << "half-width";
  EXPECT_EQ(display_columns("😀"), 2u);
  EXPECT_EQ(display_columns("…"), 1u);
  EXPECT_EQ(display_columns("\xFF\xE4"), 2u) << "no UTF-8";
}

TEST(TerminalText, CutsBetweenCharacters) {
  EXPECT_EQ(cut_to_columns("abc", 2), "ab");
  EXPECT_EQ(cut_to_columns("模型", 3), "模");
  EXPECT_EQ(cut_to_columns("模型", 4), "模型");
  EXPECT_EQ(cut_to_columns("e\u0301x", 1), "e\u0301");
  EXPECT_EQ(cut_to_columns("", 5), "");
}

TEST(TerminalText, ControlCharactersAndOtherBytesAreReplaced) {
  EXPECT_EQ(printable("a\nb\033[2Jc\x7F\xC2\x9B\xFF模"), "a?b?[2Jc???模");
}

TEST(TerminalText, LinesAreBrokenAtTheSeparatorElseAtASpace) {
  EXPECT_EQ(wrapped("one two", 80), "one two");
  EXPECT_EQ(wrapped("one two three", 7), "one two\n  three");
  EXPECT_EQ(wrapped("step 5 | loss 2.5 | lr 1", 17, " | "), "step 5 | loss 2.5\n  lr 1");
  EXPECT_EQ(wrapped("step 5 | loss 2.5 | lr 1", 16, " | "), "step 5\n  loss 2.5\n  lr 1");
  EXPECT_EQ(wrapped("32 x 16 tokens, 8 epochs", 20, ", "), "32 x 16 tokens,\n  8 epochs");
  EXPECT_EQ(wrapped("32 x 16 tokens, 8 epochs", 10, ", "), "32 x 16\n  tokens,\n  8 epochs");
  EXPECT_EQ(wrapped("saved runs/a/long/path", 10), "saved\n  runs/a/long/path") << "a whole path";
  EXPECT_EQ(wrapped("模型 模型", 5), "模型\n  模型");
}

TEST(TerminalText, NoLineIsWiderThanAskedUnlessItIsOneWord) {
  const std::string text = progress_text(wide_line(), 100000) + " | valid word ppl 55.12";
  for (size_t columns = 14; columns < 120; ++columns) {
    std::string together, line;
    for (const char c : wrapped(text, columns, " | ") + "\n") {
      if (c != '\n') {
        line += c;
        continue;
      }
      EXPECT_LE(line.size(), columns) << line;
      const size_t begin = line.find_first_not_of(' ');
      together += line.substr(begin);
      line.clear();
    }
    std::string expected = text;
    for (std::string* each : {&expected, &together}) {
      std::erase_if(*each, [](char c) { return c == ' ' || c == '|'; });
    }
    EXPECT_EQ(together, expected);
  }
}

TEST(TerminalText, ATableIsAlignedAndContinuedUnderItsText) {
  EXPECT_EQ(aligned({{"run", "here"}, {"mask", "gamma 1, p_base 0, N 512"}}, 24),
            "run   here\nmask  gamma 1, p_base 0,\n      N 512");
}

TEST(Progress, ATerminalKeepsTheLinesAboveOneBar) {
  PseudoTerminal terminal(80);
  Screen screen(80);
  const std::string bar = "[##########..........] step 5/10 | loss 2.5000 | lr 0.00e+00";
  {
    Progress progress(terminal.out(), 10, false);
    progress.note("started");
    progress.tick(shown_line(5));
    progress.tick(shown_line(6));  // too soon to redraw
    screen.write(terminal.read());
    EXPECT_EQ(screen.rows(), (Rows{"started", bar}));
    progress.record(shown_line(5));
    progress.note("saved");
    screen.write(terminal.read());
    EXPECT_EQ(screen.rows(),
              (Rows{"started", "step 5/10 | loss 2.5000 | lr 0.00e+00", "saved", bar}));
    progress.status("saving step 5");
    screen.write(terminal.read());
    EXPECT_EQ(screen.rows().back(), "saving step 5") << "drawn at once";
    progress.note("saved again");
    screen.write(terminal.read());
    EXPECT_EQ(screen.rows().back(), bar) << "the work is over";
  }
  screen.write(terminal.read());
  EXPECT_EQ(screen.rows(),
            (Rows{"started", "step 5/10 | loss 2.5000 | lr 0.00e+00", "saved", "saved again", ""}));
}

TEST(Progress, ALogLineStaysAboveTheBar) {
  PseudoTerminal terminal(80);
  const std::string erase = "\r\033[K";
  {
    Progress progress(terminal.out(), 10, false);
    progress.status("working");
    ::testing::internal::CaptureStderr();
    log_warning("careful");
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "stablemask: warning: careful\n");
    EXPECT_EQ(terminal.read(), erase + "working" + erase + erase + "working")
        << "erased before the line, drawn after it";
  }
  ::testing::internal::CaptureStderr();
  log_warning("after its end");
  ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(terminal.read(), erase);
}

TEST(Progress, TheBarFitsTheTerminal) {
  const StepMetrics line = wide_line();
  const auto drawn = [&](unsigned short columns) {
    PseudoTerminal terminal(columns);
    Screen screen(columns == 0 ? 80 : columns);
    Progress progress(terminal.out(), 100000, false);
    progress.tick(line);
    screen.write(terminal.read());
    EXPECT_EQ(screen.wraps(), 0);
    EXPECT_EQ(screen.rows().size(), 1u);
    return screen.rows().back();
  };
  const std::string start = "step 12345/100000 | loss 2.5000 | lr 9.80e-04";
  const std::string usual = start + " | 12.3k tok/s | ETA 11m53s";
  EXPECT_EQ(drawn(120), "[##..................] " + usual + " | MFU 50.0%");
  EXPECT_EQ(drawn(80), usual);
  EXPECT_EQ(drawn(0), usual) << "a terminal that does not know its width";
  EXPECT_EQ(drawn(start.size() + 1), start);
  EXPECT_EQ(drawn(start.size()), "step 12345/100000 | loss 2.5000");
  EXPECT_EQ(drawn(11), "step 12345");
  for (unsigned short columns = 1; columns < 130; ++columns) {
    EXPECT_LT(drawn(columns).size(), columns);
  }
}

TEST(Progress, AResizedTerminalGetsALineThatFits) {
  PseudoTerminal terminal(120);
  Progress progress(terminal.out(), 100000, false);
  progress.record(wide_line());
  terminal.read();
  terminal.resize(40);
  progress.note("narrower than before");
  Screen screen(40);
  screen.write(terminal.read());
  EXPECT_EQ(screen.rows(), (Rows{"narrower than before", "step 12345/100000 | loss 2.5000"}));
  EXPECT_EQ(screen.wraps(), 0);
}

TEST(Progress, LinesThatStayAreBrokenToTheTerminal) {
  PseudoTerminal terminal(40);
  Screen screen(40);
  StepMetrics line = shown_line(10);
  line.valid_loss = 4.0;
  {
    Progress progress(terminal.out(), 10, false);
    progress.record(line);
    progress.note("saved runs/模型/checkpoints/step-00000010");
    progress.table({{"mask", "StableMask, gamma 1, p_base 0, N infinite"}});
  }
  screen.write(terminal.read());
  EXPECT_EQ(screen.rows(), (Rows{"step 10/10 | loss 2.5000 | lr 0.00e+00", "  valid loss 4.0000",
                                 "saved", "  runs/模型/checkpoints/step-00000010",
                                 "mask  StableMask, gamma 1, p_base 0,", "      N infinite", ""}));
  EXPECT_EQ(screen.wraps(), 0);
}

TEST(Progress, PlainLinesWhereThereIsNoTerminal) {
  const Scratch folder;
  for (const bool quiet : {false, true}) {
    std::FILE* out = std::fopen((folder / "out").c_str(), "w");
    {
      Progress progress(out, 10, quiet);
      progress.tick(shown_line(1));
      progress.status("working");
      progress.record(shown_line(2));
      progress.note("saved " + std::string(200, 'x') + " y");
    }
    std::fclose(out);
    EXPECT_EQ(read_bytes(folder / "out"), quiet ? ""
                                                : "step 2/10 | loss 2.5000 | lr 0.00e+00\nsaved " +
                                                      std::string(200, 'x') + " y\n");
  }
}

TEST(WorkText, CountsRatesAndTimeLeft) {
  EXPECT_EQ(work_text("evaluating", "tok", 1024, 9000, 1024, 2),
            "evaluating: 1,024/9,000 tok | 512 tok/s | ETA 16s");
  EXPECT_EQ(work_text("evaluating", "tok", 1024, 9000, 0, 0), "evaluating: 1,024/9,000 tok");
  EXPECT_EQ(work_text("reading", "lines", 12345, 0, 12345, 1),
            "reading: 12,345 lines | 12.3k lines/s");
  EXPECT_EQ(work_text("verifying", "B", 1'250'000'000, 2'500'000'000, 1'250'000'000, 10),
            "verifying: 1250.0/2500.0 MB | 125.0 MB/s | ETA 10s");
  EXPECT_EQ(work_text("verifying", "B", 5'000'000'000, 25'000'000'000, 2'500'000'000, 1),
            "verifying: 5.0/25.0 GB | 2500.0 MB/s | ETA 8s");
  EXPECT_EQ(work_text("preparing", "B", 1'500'000, 0, 1'500'000, 3),
            "preparing: 1.5 MB | 0.5 MB/s");
}

TEST(WorkProgress, IsDrawnWithABarOnASharedLineAndErased) {
  PseudoTerminal terminal(80);
  Screen screen(80);
  Progress progress(terminal.out(), 10, false);
  {
    WorkProgress work(progress.line(), "verifying", "B");
    work.show(2'000'000, 4'000'000);
    screen.write(terminal.read());
    EXPECT_EQ(screen.rows(), (Rows{"[##########..........] verifying: 2.0/4.0 MB"}));
  }
  screen.write(terminal.read());
  EXPECT_EQ(screen.rows(), (Rows{""}));
}

TEST(WorkProgress, WorkThatStartsAnewIsMeasuredAnew) {
  PseudoTerminal terminal(80);
  const auto line = std::make_shared<TerminalLine>(terminal.out());
  WorkProgress work(line, "validating", "tok");
  const auto shown = [&](int64_t done, bool wait) {
    if (wait) std::this_thread::sleep_for(std::chrono::milliseconds(110));
    work.show(done, 1000);
    Screen screen(80);
    screen.write(terminal.read());
    return screen.rows().back();
  };
  EXPECT_EQ(shown(900, false).find("tok/s"), std::string::npos);
  EXPECT_NE(shown(1000, true).find("tok/s"), std::string::npos);
  EXPECT_EQ(shown(100, false), "[##..................] validating: 100/1,000 tok");
}

TEST(WorkProgress, NothingIsShownWhereThereIsNoTerminal) {
  ::testing::internal::CaptureStderr();
  {
    WorkProgress work("evaluating", "tok");
    work.show(1, 2);
    ElapsedProgress elapsed("training");
    elapsed.now("training", "on 5 lines");
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace stablemask
