#include "src/synth/synth_phrase.h"

#include "stablemask/base/log.h"

namespace stablemask::synth {
namespace {

class Teller {
 public:
  Teller(std::string_view pattern, const Facts& facts, SplitMix64& random)
      : pattern_(pattern), facts_(facts), random_(random) {}

  std::string tell() {
    sequence(true);
    return missing_ ? "" : out_;
  }

 private:
  // Up to the "|" or "]" that ends an alternative, or the end of the pattern. Not `chosen`: skips.
  void sequence(bool chosen) {
    while (at_ < pattern_.size() && pattern_[at_] != '|' && pattern_[at_] != ']') {
      if (pattern_[at_] == '[') {
        choice(chosen);
      } else if (pattern_[at_] == '{') {
        const size_t end = pattern_.find('}', at_);
        if (chosen) fact(pattern_.substr(at_ + 1, end - at_ - 1));
        at_ = end + 1;
      } else {
        if (chosen) put(pattern_[at_]);
        ++at_;
      }
    }
  }

  void choice(bool chosen) {
    const uint64_t wanted = chosen ? random_.below(count_alternatives()) : 0;
    uint64_t index = 0;
    do {
      ++at_;  // "[" or "|"
      sequence(chosen && index++ == wanted);
    } while (pattern_[at_] == '|');
    ++at_;  // "]"
  }

  uint64_t count_alternatives() const {
    uint64_t count = 1;
    int depth = 0;
    for (size_t i = at_; i < pattern_.size(); ++i) {
      depth += pattern_[i] == '[';
      depth -= pattern_[i] == ']';
      if (depth == 0) break;
      count += depth == 1 && pattern_[i] == '|';
    }
    return count;
  }

  void fact(std::string_view name) {
    const auto found = facts_.values.find(name);
    missing_ = missing_ || found == facts_.values.end();
    if (missing_) return;
    for (const char c : found->second) put(c);
  }

  // An empty alternative leaves two spaces: one is enough.
  void put(char c) {
    if (c != ' ' || (!out_.empty() && out_.back() != ' ')) out_ += c;
  }

  std::string_view pattern_;
  const Facts& facts_;
  SplitMix64& random_;
  size_t at_ = 0;
  std::string out_;
  bool missing_ = false;
};

}  // namespace

std::string tell(std::string_view pattern, const Facts& facts, SplitMix64& random) {
  return Teller(pattern, facts, random).tell();
}

std::string number(int64_t value) {
  if (value < 1000) return std::to_string(value);
  return number(value / 1000) + format(" @,@ %03d", static_cast<int>(value % 1000));
}

std::string number_word(int64_t value) {
  static constexpr const char* kWords[] = {"one",   "two",   "three", "four", "five",   "six",
                                           "seven", "eight", "nine",  "ten",  "eleven", "twelve"};
  return value >= 1 && value <= 12 ? kWords[value - 1] : number(value);
}

}  // namespace stablemask::synth
