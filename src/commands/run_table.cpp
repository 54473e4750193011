#include "src/commands/run_table.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/report/terminal_text.h"

namespace stablemask::commands {
namespace {

constexpr const char* kNone = "-";
constexpr size_t kIndent = 4, kLongestValue = 32;

/// At most `width` columns of the text: beginning, "…", end. Without what is not printable.
std::string cut(const std::string& text, size_t width) {
  const std::string clean = printable(text);
  if (display_columns(clean) <= width) return clean;
  const size_t front = width / 2, back = width - 1 - front;
  std::string_view end = clean;
  while (display_columns(end) > back) end.remove_prefix(first_character(end).size());
  return std::string(cut_to_columns(clean, front)) + "…" + std::string(end);
}

std::string number_text(const char* pattern, const std::optional<double>& value) {
  if (!value) return kNone;
  char text[64];
  std::snprintf(text, sizeof text, pattern, *value);
  return text;
}

std::string rate_text(const std::optional<double>& rate) {
  if (!rate) return kNone;
  if (*rate >= 1e6) return format("%.2fM", *rate / 1e6);
  return *rate >= 1e3 ? format("%.1fk", *rate / 1e3) : format("%.0f", *rate);
}

std::string step_text(const RunRow& row) {
  const std::string step = std::to_string(row.summary.step);
  return row.steps > 0 ? step + "/" + std::to_string(row.steps) : step;
}

constexpr size_t kColumns = 8;  // the name and seven figures
using Cells = std::array<std::string, kColumns>;

Cells cells_of(const RunRow& row) {
  if (!row.has_metrics()) return {row.name, kNone, kNone, kNone, kNone, kNone, kNone, kNone};
  const RunSummary& s = row.summary;
  const char* ppl = s.best_valid_word_ppl.value_or(0) < 1e5 ? "%.2f" : "%.3g";
  return {row.name,
          step_text(row),
          row.finished() ? "done" : "open",
          number_text("%.4f", s.loss),
          number_text("%.4f", s.best_valid_loss),
          number_text(ppl, s.best_valid_word_ppl),
          rate_text(s.tokens_per_second),
          format("%.2f", s.seconds / 3600)};
}

/// Name on the left, figures on the right of their columns.
std::string line_of(const Cells& cells, const std::array<size_t, kColumns>& widths) {
  std::string line = cut(cells[0], widths[0]);
  line.append(widths[0] - display_columns(line), ' ');
  for (size_t i = 1; i < kColumns; ++i) {
    line += "  ";
    line.append(widths[i] - cells[i].size(), ' ');
    line += cells[i];
  }
  return line + "\n";
}

/// A JSON value for people: strings without quotes.
std::string shown(const std::string& text) {
  const auto value = nlohmann::json::parse(text);
  return value.is_string() ? value.get<std::string>() : text;
}

using Fields = std::map<std::string, std::string>;

Fields fields_of(const RunRow& row) { return {row.fields.begin(), row.fields.end()}; }

/// "field=value" of each differing field, on as many indented lines as they need.
std::string difference_lines(const RunRow& row, const std::vector<std::string>& differing,
                             size_t width) {
  if (row.fields.empty()) return "";
  const Fields fields = fields_of(row);
  std::string lines, line;
  size_t used = 0;
  for (const std::string& name : differing) {
    const std::string value = cut(shown(fields.at(name)), kLongestValue);
    const std::string item = cut(name + "=" + value, width - kIndent);
    if (used > 0 && kIndent + used + 2 + display_columns(item) > width) {
      lines += std::string(kIndent, ' ') + line + "\n";
      line.clear();
      used = 0;
    }
    line += (used > 0 ? "  " : "") + item;
    used += (used > 0 ? 2 : 0) + display_columns(item);
  }
  return used > 0 ? lines + std::string(kIndent, ' ') + line + "\n" : "";
}

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

/// Every figure of a run: what CSV and JSON hold. Figures that a run does not have are null.
nlohmann::ordered_json figures_of(const RunRow& row) {
  using Json = nlohmann::ordered_json;
  const auto optional = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json();
  };
  const bool known = row.has_metrics();
  const RunSummary& s = row.summary;
  return {{"run", row.name},
          {"path", row.path},
          {"step", known ? Json(s.step) : Json()},
          {"steps", row.steps > 0 ? Json(row.steps) : Json()},
          {"finished", row.finished()},
          {"tokens", known ? Json(s.tokens) : Json()},
          {"loss", optional(s.loss)},
          {"best_valid_loss", optional(s.best_valid_loss)},
          {"best_valid_word_ppl", optional(s.best_valid_word_ppl)},
          {"best_valid_step", s.best_valid_step > 0 ? Json(s.best_valid_step) : Json()},
          {"tokens_per_second", optional(s.tokens_per_second)},
          {"seconds", known ? Json(s.seconds) : Json()},
          {"skipped", known ? Json(s.skipped) : Json()},
          {"problem", row.problem.empty() ? Json() : Json(row.problem)}};
}

/// Names of the config fields of all rows. Rows read by one program have the same ones.
std::vector<std::string> field_names(const std::vector<RunRow>& rows) {
  std::vector<std::string> names;
  std::set<std::string> seen;
  for (const RunRow& row : rows) {
    for (const auto& field : row.fields) {
      if (seen.insert(field.first).second) names.push_back(field.first);
    }
  }
  return names;
}

}  // namespace

std::vector<std::string> differing_fields(const std::vector<RunRow>& rows) {
  std::vector<std::string> differing;
  std::vector<Fields> all;
  for (const RunRow& row : rows) {
    if (!row.fields.empty()) all.push_back(fields_of(row));
  }
  for (const std::string& name : field_names(rows)) {
    const auto differs = [&](const Fields& fields) { return fields.at(name) != all[0].at(name); };
    if (name != "train.out" && std::any_of(all.begin(), all.end(), differs)) {
      differing.push_back(name);
    }
  }
  return differing;
}

std::string run_table(const std::vector<RunRow>& rows, size_t width) {
  std::vector<Cells> lines = {{"run", "step", "state", "loss", "valid", "word ppl", "tok/s", "h"}};
  for (const RunRow& row : rows) lines.push_back(cells_of(row));
  std::array<size_t, kColumns> widths{};
  for (const Cells& cells : lines) {
    for (size_t i = 0; i < kColumns; ++i)
      widths[i] = std::max(widths[i], display_columns(cells[i]));
  }
  size_t figures = 0;
  for (size_t i = 1; i < kColumns; ++i) figures += 2 + widths[i];
  constexpr size_t kShortestName = 8;
  widths[0] = std::min(widths[0], std::max(width - std::min(width, figures), kShortestName));

  const std::vector<std::string> differing = differing_fields(rows);
  std::string table = line_of(lines[0], widths);
  for (size_t i = 0; i < rows.size(); ++i) {
    table += line_of(lines[i + 1], widths);
    if (!rows[i].problem.empty()) {
      table += std::string(kIndent, ' ') + cut(rows[i].problem, width - kIndent) + "\n";
    }
    table += difference_lines(rows[i], differing, width);
  }
  return table;
}

std::string run_csv(const std::vector<RunRow>& rows) {
  const std::vector<std::string> names = field_names(rows);
  std::string csv;
  for (const RunRow& row : rows) {
    const auto figures = figures_of(row);
    std::vector<std::string> header, record;
    for (const auto& [key, value] : figures.items()) {
      header.push_back(key);
      record.push_back(value.is_null() ? "" : csv_cell(shown(json_text(value))));
    }
    const Fields fields = fields_of(row);
    for (const std::string& name : names) {
      const auto found = fields.find(name);
      header.push_back(name);
      record.push_back(found == fields.end() ? "" : csv_cell(shown(found->second)));
    }
    if (csv.empty()) csv = join(header, ",") + "\r\n";
    csv += join(record, ",") + "\r\n";
  }
  return csv;
}

std::string run_json(const std::vector<RunRow>& rows) {
  nlohmann::ordered_json runs = nlohmann::ordered_json::array();
  for (const RunRow& row : rows) {
    nlohmann::ordered_json run = figures_of(row);
    run["config"] = nlohmann::ordered_json::object();
    for (const auto& [name, value] : row.fields) {
      run["config"][name] = nlohmann::ordered_json::parse(value);
    }
    runs.push_back(std::move(run));
  }
  return json_text(nlohmann::ordered_json{{"runs", std::move(runs)},
                                          {"differing", differing_fields(rows)}},
                   2) +
         "\n";
}

}  // namespace stablemask::commands
