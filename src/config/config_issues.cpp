#include "src/config/config_issues.h"

#include <algorithm>
#include <tuple>

#include "stablemask/base/text.h"

namespace stablemask {
namespace {

/// `text` on one line and shortened, without quotes.
std::string one_line(std::string_view text) {
  const std::string quoted = in_quotes(text);
  std::string line;
  for (size_t i = 1; i + 1 < quoted.size(); ++i) {
    if (quoted[i] != '\\' || quoted[i + 1] != '"') line += quoted[i];
  }
  return line;
}

}  // namespace

std::string place_of(const ValueSource& source, const std::string& name) {
  if (!source.set.empty()) return "--set " + one_line(source.set);
  if (source.at.line == 0) return "";
  return name + ":" + std::to_string(source.at.line) + ":" + std::to_string(source.at.column);
}

void ConfigIssues::add(const std::string& pointer, const std::vector<ValueSource>& sources,
                       const std::string& message) {
  std::vector<std::string> places;
  Issue issue{pointer, false, {}, ""};
  for (const ValueSource& source : sources) {
    if (source.set.empty()) continue;
    const std::string place = place_of(source, name_);
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
    issue.from_set = true;
  }
  for (const ValueSource& source : sources) {
    if (source.at.line == 0) continue;
    issue.at = source.at;
    places.push_back(place_of(source, name_));
    break;
  }
  if (places.empty()) places.push_back(name_);
  issue.line = join(places, " and ") + (pointer.empty() ? "" : ": " + pointer) + ": " + message;
  issues_.push_back(std::move(issue));
}

bool ConfigIssues::concerns(std::string_view pointer) const {
  return std::any_of(issues_.begin(), issues_.end(),
                     [&](const Issue& issue) { return issue.pointer == pointer; });
}

std::string ConfigIssues::text() const {
  std::vector<Issue> sorted = issues_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Issue& a, const Issue& b) {
    const auto key = [](const Issue& issue) {
      // The order of --set is that of the command line.
      return issue.from_set ? std::tuple<bool, int64_t, int64_t>(true, 0, 0)
                            : std::tuple(false, issue.at.line, issue.at.column);
    };
    return key(a) < key(b);
  });
  std::vector<std::string> lines;
  for (const Issue& issue : sorted) lines.push_back(issue.line);
  return join(lines, "\n");
}

}  // namespace stablemask
