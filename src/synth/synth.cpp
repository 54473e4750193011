// Distributes the articles on an invented world over three texts and replaces rare words by <unk>,
// as WikiText does.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "src/synth/synth.h"
#include "src/synth/synth_articles.h"
#include "src/synth/synth_world.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/output.h"
#include "stablemask/base/random.h"
#include "stablemask/base/stop.h"

namespace stablemask {
namespace {

constexpr uint64_t kMinTrainBytes = 100'000;
constexpr uint64_t kMaxTrainBytes = 1'000'000'000;
constexpr uint64_t kHeldOutShare = 20;  // validation and test: each this part of the training text
constexpr uint64_t kBytesPerArticle = 1250;  // fewer than an article has on average
constexpr int kMinCount = 3;                 // rarer words become <unk>

std::vector<synth::Subject> shuffled_subjects(const synth::World& world, uint64_t seed) {
  std::vector<synth::Subject> subjects;
  const auto add = [&](synth::Kind kind, size_t count) {
    for (size_t i = 0; i < count; ++i) subjects.push_back({kind, i});
  };
  add(synth::Kind::kProvince, world.provinces.size());
  add(synth::Kind::kRiver, world.rivers.size());
  add(synth::Kind::kTown, world.towns.size());
  add(synth::Kind::kPerson, world.people.size());
  SplitMix64 random(mix64(seed) + 1);
  for (size_t i = subjects.size(); i > 1; --i)
    std::swap(subjects[i - 1], subjects[random.below(i)]);
  return subjects;
}

/// Calls `take(blanks, word)` for each word (maximal run of bytes other than space and line end)
/// and the blanks before it.
template <typename Take>
void for_each_word(std::string_view text, Take take) {
  constexpr std::string_view kBlanks = " \n";
  for (size_t at = 0; at < text.size();) {
    const size_t begin = std::min(text.find_first_not_of(kBlanks, at), text.size());
    const size_t end = std::min(text.find_first_of(kBlanks, begin), text.size());
    take(text.substr(at, begin - at), text.substr(begin, end - begin));
    at = end;
  }
}

using WordCounts = std::unordered_map<std::string_view, int>;

std::string hide_rare_words(std::string_view text, const WordCounts& counts) {
  std::string hidden;
  hidden.reserve(text.size());
  for_each_word(text, [&](std::string_view blanks, std::string_view word) {
    hidden += blanks;
    if (word.empty()) return;
    const auto found = counts.find(word);
    hidden += found != counts.end() && found->second >= kMinCount ? word : "<unk>";
  });
  return hidden;
}

}  // namespace

void synthesize_corpus(const std::string& folder, uint64_t seed, uint64_t train_bytes) {
  if (train_bytes < kMinTrainBytes || train_bytes > kMaxTrainBytes) {
    throw DataError(format("a synthetic corpus of %llu bytes is not within 100 KB to 1 GB",
                           static_cast<unsigned long long>(train_bytes)));
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw DataError("cannot create the folder " + folder + ": " + error.message());
  const auto output = [&](const char* name) {
    return std::make_unique<OutputFile>(folder + "/wiki." + name + ".tokens", OutputContent::kText,
                                        ExitCode::kData);
  };
  const auto test_file = output("test"), valid_file = output("valid"), train_file = output("train");
  const synth::World world = synth::make_world(seed, train_bytes / kBytesPerArticle + 20);
  std::string test;
  std::string valid;
  std::string train;
  for (const synth::Subject& subject : shuffled_subjects(world, seed)) {
    check_stop("generating a corpus");
    const uint64_t held_out = train_bytes / kHeldOutShare;
    std::string& split = test.size() < held_out ? test : valid.size() < held_out ? valid : train;
    if (train.size() >= train_bytes) break;
    split += synth::write_article(world, subject, seed);
  }
  if (train.size() < train_bytes) throw std::logic_error("the invented world is too small");

  WordCounts counts;
  for_each_word(train, [&](std::string_view, std::string_view word) { ++counts[word]; });
  const auto write = [&](OutputFile& file, const std::string& text) {
    file.write(hide_rare_words(text, counts));
    file.commit();
  };
  write(*test_file, test);
  write(*valid_file, valid);
  write(*train_file, train);
}

}  // namespace stablemask
