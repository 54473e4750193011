#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "src/synth/synth_phrase.h"
#include "src/synth/synth_world.h"

namespace stablemask::synth {

enum class Kind { kProvince, kRiver, kTown, kPerson };

/// What an article is about.
struct Subject {
  Kind kind;
  size_t index;
};

/// A row of sentence patterns (synth_phrase.h); with a list's name, told for each entry of the
/// list, whose facts hide the subject's.
struct Paragraph {
  std::vector<const char*> sentences;
  const char* each = nullptr;
};
/// One heading with its text.
struct Section {
  int level;  ///< of the heading; 0: the lead, which has none
  const char* heading;
  std::vector<Paragraph> paragraphs;
};

const std::vector<Section>& province_sections();
const std::vector<Section>& river_sections();
const std::vector<Section>& town_sections();
const std::vector<Section>& person_sections();

/// The article in WikiText format, a pure function of its arguments.
std::string write_article(const World& world, const Subject& subject, uint64_t seed);

}  // namespace stablemask::synth
