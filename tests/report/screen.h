#pragma once

#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "stablemask/base/utf8.h"
#include "stablemask/report/terminal_text.h"

namespace stablemask::testing {

/// A terminal as far as the program uses one: text, "\r", "\n" and ESC[K (erase to the right); it
/// wraps at its width. Rows that scrolled out are kept.
class Screen {
 public:
  explicit Screen(size_t columns) : columns_(columns) {}

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const size_t size = std::max<size_t>(1, utf8_character_size(bytes));
      if (bytes.starts_with("\033[K")) {
        erase();
        bytes.remove_prefix(3);
        continue;
      }
      put(bytes.substr(0, size));
      bytes.remove_prefix(size);
    }
  }

  /// Every row, the one with the cursor last, without spaces at the ends.
  std::vector<std::string> rows() const {
    std::vector<std::string> texts;
    for (const auto& row : rows_) texts.push_back(text_of(row));
    return texts;
  }
  /// What stood in a row each time that ESC[K erased something.
  const std::vector<std::string>& erased() const { return erased_; }
  /// Times that text did not fit into its row.
  int wraps() const { return wraps_; }

 private:
  using Row = std::vector<std::string>;  // a string per column, the second of a wide one empty

  static std::string text_of(const Row& row) {
    std::string text;
    for (const std::string& cell : row) text += cell;
    text.resize(text.find_last_not_of(' ') + 1);
    return text;
  }

  void put(std::string_view character) {
    if (character == "\r") {
      column_ = 0;
    } else if (character == "\n") {
      rows_.emplace_back();
      rows_.back().resize(column_, " ");
    } else {
      ASSERT_TRUE(static_cast<unsigned char>(character[0]) >= 0x20) << "an unknown control byte";
      const size_t width = display_columns(character);
      if (column_ + width > columns_) {
        ++wraps_;
        rows_.emplace_back();
        column_ = 0;
      }
      Row& row = rows_.back();
      row.resize(std::max(row.size(), column_ + width), " ");
      if (width > 0) row[column_] = character;
      if (width == 2) row[column_ + 1] = "";
      column_ += width;
    }
  }

  void erase() {
    const std::string text = text_of(rows_.back());
    if (!text.empty()) erased_.push_back(text);
    rows_.back().resize(std::min(rows_.back().size(), column_));
  }

  const size_t columns_;
  std::vector<Row> rows_{1};
  size_t column_ = 0;
  std::vector<std::string> erased_;
  int wraps_ = 0;
};

/// A pseudo-terminal whose output is read back.
class PseudoTerminal {
 public:
  explicit PseudoTerminal(unsigned short columns) {
    int slave = -1;
    const winsize size{24, columns, 0, 0};
    EXPECT_EQ(::openpty(&reader_, &slave, nullptr, nullptr, &size), 0);
    out_ = ::fdopen(slave, "w");
  }
  ~PseudoTerminal() {
    std::fclose(out_);
    ::close(reader_);
  }
  PseudoTerminal(const PseudoTerminal&) = delete;
  PseudoTerminal& operator=(const PseudoTerminal&) = delete;

  std::FILE* out() { return out_; }

  void resize(unsigned short columns) {
    const winsize size{24, columns, 0, 0};
    EXPECT_EQ(::ioctl(reader_, TIOCSWINSZ, &size), 0);
  }

  /// Everything written since the last call.
  std::string read() {
    const std::string end = "<end>";  // a terminal hands its bytes over in pieces
    std::fputs(end.c_str(), out_);
    std::fflush(out_);
    std::string seen;
    char piece[512];
    while (!seen.ends_with(end)) {
      const ssize_t count = ::read(reader_, piece, sizeof piece);
      EXPECT_GT(count, 0);
      if (count <= 0) return seen;
      seen.append(piece, static_cast<size_t>(count));
    }
    seen.resize(seen.size() - end.size());
    return seen;
  }

 private:
  int reader_ = -1;
  std::FILE* out_ = nullptr;
};

}  // namespace stablemask::testing
