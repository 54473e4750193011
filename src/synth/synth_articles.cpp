#include "src/synth/synth_articles.h"

#include <algorithm>

namespace stablemask::synth {
namespace {

using Values = std::map<std::string, std::string, std::less<>>;

std::string year(int value) { return std::to_string(value); }

std::string as_first_word(std::string text) {
  if (text[0] >= 'a' && text[0] <= 'z') text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text;
}

std::string full_name(const Person& person) { return person.given + " " + person.family; }

void add_country(const World& world, Values& values) {
  values["country"] = world.country;
  values["sea"] = world.sea + " Sea";
  values["war"] = world.war;
  values["war_begin"] = year(world.war_begin);
  values["war_end"] = year(world.war_end);
  values["frost"] = year(world.frost_year);
  values["census"] = year(kCensusYears[2]);
  values["census_middle"] = year(kCensusYears[1]);
  values["census_first"] = year(kCensusYears[0]);
}

void add_province(const World& world, size_t index, Values& values) {
  const Province& province = world.provinces[index];
  values["province"] = province.name;
  values["capital"] = world.towns[province.capital].name;
  values["stone"] = province.stone;
  values["crop"] = province.crop;
  values["crop_cap"] = as_first_word(province.crop);
  values["rain"] = number(province.rain_mm);
  values["railway"] = year(province.railway_year);
}

void add_river(const World& world, size_t index, Values& values) {
  const River& river = world.rivers[index];
  values["river"] = river.name;
  values["hills"] = river.hills;
  values["fish"] = river.fish;
  values["bird"] = river.bird;
  values["tree"] = river.tree;
  values["length"] = year(river.length_km);
  values["source"] = number(river.source_m);
  values["flood"] = year(river.flood_year);
  values["mouth"] = river.mouth == kNone ? world.sea + " Sea" : world.rivers[river.mouth].name;
  if (!river.towns.empty()) values["last_town"] = world.towns[river.towns.back()].name;
}

void add_town(const World& world, size_t index, Values& values) {
  const Town& town = world.towns[index];
  add_river(world, town.river, values);
  values["town"] = town.name;
  values["trade"] = town.trade;
  values["on_day"] = "on " + town.market_day + "s";
  values["on_day_cap"] = "On " + town.market_day + "s";
  values["bank"] = town.bank;
  values["founders"] = town.founders;
  values["church"] = town.church;
  values["km"] = year(town.river_km);
  values["elevation"] = number(town.elevation_m);
  values["founded"] = year(town.founded);
  values["fire"] = year(town.fire_year);
  values["population"] = number(town.population[2]);
  values["population_middle"] = number(town.population[1]);
  values["population_first"] = number(town.population[0]);
  if (town.builder == kNone) return;
  values["builder"] = full_name(world.people[town.builder]);
  values["bridge_year"] = year(town.bridge_year);
  values["arches"] = number_word(town.arches);
}

void add_bridge(const World& world, size_t town, Values& values) {
  const Town& place = world.towns[town];
  values["bridge_town"] = place.name;
  values["bridge_river"] = world.rivers[place.river].name;
  values["bridge_stone"] = world.provinces[place.province].stone;
  values["bridge_year"] = year(place.bridge_year);
  values["arches"] = number_word(place.arches);
}

void add_pronouns(const Person& person, Values& values) {
  values["he"] = person.female ? "she" : "he";
  values["him"] = person.female ? "her" : "him";
  values["his"] = person.female ? "her" : "his";
  values["he_cap"] = person.female ? "She" : "He";
  values["his_cap"] = person.female ? "Her" : "His";
  values["man"] = person.female ? "woman" : "man";
}

void add_person(const World& world, size_t index, Values& values) {
  const Person& person = world.people[index];
  const Craft& craft = kCrafts[person.craft];
  add_pronouns(person, values);
  values["name"] = full_name(person);
  values["given"] = person.given;
  values["family"] = person.family;
  values["craft"] = craft.name;
  values["made"] = craft.made;
  values["verb"] = craft.verb;
  values["birth"] = year(person.birth_year);
  values["death"] = year(person.death_year);
  values["birth_town"] = world.towns[person.birth_town].name;
  if (!person.works.empty()) {
    values["work"] = person.works.front().title;
    values["work_year"] = year(person.works.front().year);
  }
  if (!person.bridges.empty()) add_bridge(world, person.bridges.front(), values);
  if (person.teacher != kNone) values["teacher"] = full_name(world.people[person.teacher]);
}

// One entry for each index, filled by `add`.
using AddFacts = void (*)(const World& world, size_t index, Values& values);
std::vector<Facts> entries(const World& world, const std::vector<size_t>& indices, AddFacts add) {
  std::vector<Facts> list(indices.size());
  for (size_t i = 0; i < indices.size(); ++i) add(world, indices[i], list[i].values);
  return list;
}

Facts province_facts(const World& world, size_t index) {
  Facts facts;
  const Province& province = world.provinces[index];
  add_country(world, facts.values);
  add_province(world, index, facts.values);
  const Town& capital = world.towns[province.capital];
  facts.values["capital_people"] = number(capital.population[2]);
  facts.values["capital_river"] = world.rivers[capital.river].name;
  facts.values["town_count"] = number_word(static_cast<int64_t>(province.towns.size()));
  int64_t people = 0;
  std::vector<size_t> natives;
  for (const size_t town : province.towns) {
    people += world.towns[town].population[2];
    if (!world.towns[town].natives.empty()) natives.push_back(world.towns[town].natives.front());
  }
  facts.values["people_count"] = number(people);
  facts.lists["rivers"] = entries(world, province.rivers, add_river);
  facts.lists["towns"] = entries(world, province.towns, add_town);
  facts.lists["natives"] = entries(world, natives, add_person);
  return facts;
}

Facts river_facts(const World& world, size_t index) {
  Facts facts;
  const River& river = world.rivers[index];
  add_country(world, facts.values);
  add_province(world, river.province, facts.values);
  add_river(world, index, facts.values);
  std::vector<size_t> bridges;
  for (const size_t town : river.towns) {
    if (world.towns[town].builder != kNone) bridges.push_back(town);
  }
  facts.lists["towns"] = entries(world, river.towns, add_town);
  facts.lists["bridges"] = entries(world, bridges, add_town);
  facts.lists["tributaries"] = entries(world, river.tributaries, add_river);
  return facts;
}

void add_neighbours(const World& world, size_t index, Values& values) {
  const Town& town = world.towns[index];
  const size_t capital = world.provinces[town.province].capital;
  if (capital != index) {
    values["capital_distance"] = number(distance_km(town, world.towns[capital]));
    values["capital_direction"] = direction(town, world.towns[capital]);
  }
  const std::vector<size_t>& towns = world.rivers[town.river].towns;
  const auto here = std::find(towns.begin(), towns.end(), index);
  if (here != towns.begin()) values["upstream"] = world.towns[*(here - 1)].name;
  if (here + 1 != towns.end()) values["downstream"] = world.towns[*(here + 1)].name;
  if (town.partner != kNone && world.towns[town.partner].trade != town.trade) {
    const Town& partner = world.towns[town.partner];
    values["partner"] = partner.name;
    values["partner_trade"] = partner.trade;
    values["partner_distance"] = number(distance_km(town, partner));
    values["partner_direction"] = direction(town, partner);
  }
}

Facts town_facts(const World& world, size_t index) {
  Facts facts;
  const Town& town = world.towns[index];
  add_country(world, facts.values);
  add_province(world, town.province, facts.values);
  add_town(world, index, facts.values);
  add_neighbours(world, index, facts.values);
  std::vector<size_t> builders;
  std::vector<size_t> others;
  for (const size_t native : town.natives) {
    (world.people[native].bridges.empty() ? others : builders).push_back(native);
  }
  facts.lists["natives"] = entries(world, others, add_person);
  facts.lists["native_builders"] = entries(world, builders, add_person);
  return facts;
}

void add_places(const World& world, const Person& person, Values& values) {
  const Town& birth = world.towns[person.birth_town];
  const Town& death = world.towns[person.death_town];
  add_province(world, birth.province, values);
  values["birth_river"] = world.rivers[birth.river].name;
  values["birth_bird"] = world.rivers[birth.river].bird;
  values["birth_trade"] = birth.trade;
  values["birth_church"] = birth.church;
  values["birth_on_day"] = "on " + birth.market_day + "s";
  values["death_town"] = death.name;
  values["death_church"] = death.church;
  values["age"] = year(person.death_year - person.birth_year);
}

Facts person_facts(const World& world, size_t index) {
  Facts facts;
  const Person& person = world.people[index];
  add_country(world, facts.values);
  add_person(world, index, facts.values);
  add_places(world, person, facts.values);
  if (person.teacher != kNone) {
    const Person& teacher = world.people[person.teacher];
    facts.values["teacher_town"] = world.towns[teacher.birth_town].name;
    facts.values["apprentice_age"] = number_word(11 + static_cast<int64_t>(index % 7));
  }
  for (const Work& work : person.works) {
    facts.lists["works"].push_back({{{"work", work.title}, {"work_year", year(work.year)}}, {}});
  }
  facts.lists["bridges"] = entries(world, person.bridges, add_bridge);
  for (const size_t pupil : person.pupils) {
    const Person& other = world.people[pupil];
    facts.lists["pupils"].push_back(
        {{{"pupil", full_name(other)}, {"pupil_town", world.towns[other.birth_town].name}}, {}});
  }
  return facts;
}

std::string title(const World& world, const Subject& subject) {
  switch (subject.kind) {
    case Kind::kProvince:
      return world.provinces[subject.index].name;
    case Kind::kRiver:
      return world.rivers[subject.index].name;
    case Kind::kTown:
      return world.towns[subject.index].name;
    case Kind::kPerson:
      return full_name(world.people[subject.index]);
  }
  return {};
}

const std::vector<Section>& sections(Kind kind) {
  switch (kind) {
    case Kind::kProvince:
      return province_sections();
    case Kind::kRiver:
      return river_sections();
    case Kind::kTown:
      return town_sections();
    case Kind::kPerson:
      return person_sections();
  }
  return person_sections();
}

std::string sentences(const Paragraph& paragraph, const Facts& facts, SplitMix64& random) {
  std::string text;
  for (const char* pattern : paragraph.sentences) {
    const std::string sentence = tell(pattern, facts, random);
    if (!sentence.empty()) text += " " + sentence;
  }
  return text;
}

std::string paragraph_text(const Paragraph& paragraph, const Facts& facts, SplitMix64& random) {
  if (!paragraph.each) return sentences(paragraph, facts, random);
  const auto list = facts.lists.find(paragraph.each);
  std::string text;
  if (list == facts.lists.end()) return text;
  for (const Facts& entry : list->second) {
    Facts both = entry;
    both.values.insert(facts.values.begin(), facts.values.end());  // what the entry lacks
    text += sentences(paragraph, both, random);
  }
  return text;
}

// " = Title = " at level 1, " = = Section = = " at level 2, with the empty lines around it.
std::string heading(int level, const std::string& text) {
  std::string marks;
  for (int i = 0; i < level; ++i) marks += " =";
  return " \n" + marks + " " + text + marks + " \n \n";
}

Facts gather_facts(const World& world, const Subject& subject) {
  switch (subject.kind) {
    case Kind::kProvince:
      return province_facts(world, subject.index);
    case Kind::kRiver:
      return river_facts(world, subject.index);
    case Kind::kTown:
      return town_facts(world, subject.index);
    case Kind::kPerson:
      return person_facts(world, subject.index);
  }
  return {};
}

}  // namespace

std::string write_article(const World& world, const Subject& subject, uint64_t seed) {
  const uint64_t kind = static_cast<uint64_t>(subject.kind);
  SplitMix64 random(mix64(mix64(seed + kind) + subject.index));
  const Facts facts = gather_facts(world, subject);
  std::string article = heading(1, title(world, subject));
  for (const Section& section : sections(subject.kind)) {
    std::string text;
    for (const Paragraph& paragraph : section.paragraphs) {
      const std::string line = paragraph_text(paragraph, facts, random);
      if (!line.empty()) text += line + " \n";
    }
    if (text.empty()) continue;
    if (section.level > 0) article += heading(section.level, section.heading);
    article += text;
  }
  return article;
}

}  // namespace stablemask::synth
