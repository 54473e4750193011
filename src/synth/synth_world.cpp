#include "src/synth/synth_world.h"

#include <algorithm>
#include <cstdlib>
#include <span>
#include <string_view>
#include <unordered_set>

#include "stablemask/base/random.h"

namespace stablemask::synth {

const std::array<Craft, 12> kCrafts = {{
    {"bridge builder", "bridges", "built", true},
    {"millwright", "mills and sluices", "built", true},
    {"painter", "paintings", "painted", false},
    {"poet", "poems", "wrote", false},
    {"botanist", "studies of plants", "published", false},
    {"composer", "songs", "composed", false},
    {"novelist", "novels", "wrote", false},
    {"clockmaker", "tower clocks", "made", false},
    {"map maker", "maps", "drew", false},
    {"historian", "chronicles", "published", false},
    {"physician", "treatises", "published", false},
    {"playwright", "plays", "wrote", false},
}};

namespace {

using Words = std::span<const std::string_view>;

constexpr std::string_view kOnsets[] = {"b",  "br", "d",  "dr", "f", "g",  "gl", "h", "k",
                                        "kr", "l",  "m",  "n",  "p", "pr", "r",  "s", "sk",
                                        "st", "t",  "th", "tr", "v", "w",  "y",  "z"};
constexpr std::string_view kVowels[] = {"a", "e", "i", "o", "u", "a", "e", "o", "ai", "ei", "ou"};
constexpr std::string_view kCodas[] = {"",   "",   "l", "n",  "r",  "s",  "m",  "rn",
                                       "nd", "ld", "v", "sk", "th", "lm", "rr", "st"};
constexpr std::string_view kTownEndings[] = {"mere",  "holt",  "garth", "wick", "stow",   "haven",
                                             "combe", "field", "bury",  "ness", "thorpe", "well",
                                             "moor",  "gate",  "cliff", "ham"};
constexpr std::string_view kRiverEndings[] = {"e", "a", "en", "er", "el", "ow", "is", "une"};
constexpr std::string_view kProvinceEndings[] = {"ia", "mark", "land", "onia", "esse", "are"};
constexpr std::string_view kFamilyEndings[] = {"er", "man", "sen", "ov", "ard", "ick", "ell", "o"};
constexpr std::string_view kWomen[] = {"Alda",  "Berit",  "Cosima",  "Dorle", "Edla",  "Fenna",
                                       "Gerda", "Hanne",  "Ilse",    "Jorun", "Katla", "Lioba",
                                       "Marit", "Nele",   "Ottilie", "Petra", "Runa",  "Sunniva",
                                       "Thora", "Ulrike", "Vesna",   "Wanda", "Ylva",  "Zora"};
constexpr std::string_view kMen[] = {"Anselm",  "Benno",  "Casimir", "Detlev", "Egon",   "Falk",
                                     "Gero",    "Henrik", "Ivo",     "Joris",  "Knut",   "Lorenz",
                                     "Milan",   "Nils",   "Olaf",    "Pavel",  "Quirin", "Radek",
                                     "Stellan", "Tomas",  "Ulf",     "Viktor", "Wolf",   "Yorick"};
constexpr std::string_view kStones[] = {"red sandstone", "grey limestone", "black slate",
                                        "pale granite",  "yellow clay",    "white chalk"};
constexpr std::string_view kCrops[] = {"barley", "rye", "flax", "hops", "apples", "oats", "wine"};
constexpr std::string_view kFish[] = {"trout", "eels",  "pike",    "salmon",
                                      "carp",  "perch", "grayling"};
constexpr std::string_view kBirds[] = {"herons",  "kingfishers",   "black storks", "cranes",
                                       "ospreys", "reed warblers", "dippers"};
constexpr std::string_view kTrees[] = {"alders",    "willows",  "poplars",
                                       "ash trees", "old oaks", "birches"};
constexpr std::string_view kHills[] = {"Hills", "Heights", "Mountains", "Forest", "Moors"};
constexpr std::string_view kTrades[] = {
    "linen",  "rock salt", "window glass", "church bells", "oak barrels", "heather honey", "paper",
    "wool",   "cheese",    "copper pans",  "leather",      "rope",        "pottery",       "cider",
    "clocks", "lace",      "gunpowder",    "millstones",   "candles",     "blue dye"};
constexpr std::string_view kDays[] = {"Monday",   "Tuesday", "Wednesday",
                                      "Thursday", "Friday",  "Saturday"};
constexpr std::string_view kFounders[] = {
    "fishermen", "salt traders", "monks", "charcoal burners", "miners", "shepherds", "raftsmen"};
constexpr std::string_view kChurches[] = {"Saint Alban", "Saint Bride", "Saint Clement",
                                          "Saint Odile", "Saint Roch",  "the Three Kings"};
constexpr std::string_view kTitleAdjectives[] = {"Silent", "Long",   "Red",    "Last",   "Broken",
                                                 "Winter", "Hidden", "Golden", "Second", "Lame",
                                                 "Great",  "Small",  "Salt",   "Green",  "Early"};
constexpr std::string_view kTitleNouns[] = {
    "Ferryman", "Harvest", "Bridge", "Orchard", "Lantern", "Miller",  "River",
    "Journey",  "Garden",  "Winter", "Letter",  "Tower",   "Heron",   "Market",
    "Weaver",   "Island",  "Well",   "Candle",  "Forest",  "Stranger"};
constexpr std::string_view kWars[] = {"Salt War", "War of the Ferries", "Long War", "Mill War"};

constexpr int kGridKm = 120;  // provinces are squares of this side
constexpr int kPresent = 1911;

std::string capitalised(std::string word) {
  word[0] = static_cast<char>(word[0] - 'a' + 'A');
  return word;
}

// Draws one number a statement: C++ leaves the order of calls within one open, and the world must
// be the same whatever compiler built it.
class Builder {
 public:
  Builder(uint64_t seed, size_t subjects) : random_(seed), subjects_(subjects) {}

  World build() {
    world_.country = unique_name(2, kProvinceEndings);
    world_.sea = unique_name(1, kTownEndings);
    world_.war = pick(kWars);
    world_.war_begin = between(1620, 1660);
    world_.war_end = world_.war_begin + between(3, 9);
    world_.frost_year = between(1700, 1760);
    const size_t provinces = std::max<size_t>(2, subjects_ / 75);
    for (size_t i = 0; i < provinces; ++i) add_province(i, provinces);
    for (size_t i = 0; i < std::max(provinces, subjects_ * 18 / 100); ++i) add_river(i);
    for (size_t i = 0; i < std::max(3 * provinces, subjects_ * 42 / 100); ++i) add_town(i);
    for (River& river : world_.rivers) settle(river);
    for (Province& province : world_.provinces) province.capital = province.towns.front();
    pair_partners();
    add_people();
    build_bridges();
    return std::move(world_);
  }

 private:
  int between(int low, int high) {
    return low + static_cast<int>(random_.below(static_cast<uint64_t>(high - low + 1)));
  }
  bool chance(int percent) { return between(1, 100) <= percent; }
  std::string pick(Words words) { return std::string(words[random_.below(words.size())]); }
  size_t pick_index(size_t count) { return static_cast<size_t>(random_.below(count)); }

  // A capitalised invented word that nothing else in this world is called.
  std::string unique_name(int syllables, Words endings) {
    while (true) {
      std::string name;
      for (int i = 0; i < syllables; ++i) {
        name += pick(kOnsets);
        name += pick(kVowels);
        name += pick(kCodas);
      }
      name = capitalised(name + pick(endings));
      if (name.size() >= 4 && name.size() <= 12 && names_.insert(name).second) return name;
    }
  }

  void add_province(size_t index, size_t count) {
    size_t columns = 1;
    while (columns * columns < count) ++columns;
    Province province;
    province.name = unique_name(2, kProvinceEndings);
    province.stone = pick(kStones);
    province.crop = pick(kCrops);
    province.rain_mm = between(45, 120) * 10;
    province.railway_year = between(1846, 1889);
    province.x_km = static_cast<int>(index % columns) * kGridKm;
    province.y_km = static_cast<int>(index / columns) * kGridKm;
    world_.provinces.push_back(std::move(province));
  }

  void add_river(size_t index) {
    River river;
    river.province = index % world_.provinces.size();
    Province& province = world_.provinces[river.province];
    river.name = unique_name(1, kRiverEndings);
    river.hills = unique_name(1, kTownEndings);
    river.hills += ' ';
    river.hills += pick(kHills);
    river.fish = pick(kFish);
    river.bird = pick(kBirds);
    river.tree = pick(kTrees);
    river.flood_year = between(1570, 1880);
    // A province's first river reaches the sea, the others flow into one of those before them.
    const bool main = province.rivers.empty();
    river.length_km = main ? between(180, 420) : between(35, 140);
    river.source_m = main ? between(900, 2100) : between(350, 1100);
    if (!main) {
      river.mouth = province.rivers[pick_index(province.rivers.size())];
      world_.rivers[river.mouth].tributaries.push_back(index);
    }
    province.rivers.push_back(index);
    world_.rivers.push_back(std::move(river));
  }

  void add_town(size_t index) {
    Town town;
    // Every river gets towns, a province's first river most of them.
    town.river = chance(30) ? index % world_.provinces.size() : index % world_.rivers.size();
    River& river = world_.rivers[town.river];
    town.province = river.province;
    Province& province = world_.provinces[town.province];
    town.name = unique_name(1, kTownEndings);
    town.trade = pick(kTrades);
    town.market_day = pick(kDays);
    town.bank = chance(50) ? "left" : "right";
    town.founders = pick(kFounders);
    town.church = pick(kChurches);
    town.x_km = province.x_km + between(0, kGridKm - 1);
    town.y_km = province.y_km + between(0, kGridKm - 1);
    town.founded = between(780, 1560);
    town.fire_year = between(1571, 1799);
    const bool capital = province.towns.empty();
    town.population[0] = capital ? between(2400, 42000) : between(400, 7000);
    for (size_t i = 1; i < town.population.size(); ++i) {
      town.population[i] = town.population[i - 1] * between(104, 190) / 100;
    }
    river.towns.push_back(index);
    province.towns.push_back(index);
    world_.towns.push_back(std::move(town));
  }

  // Spreads a river's towns over its length, from the source down.
  void settle(River& river) {
    const auto count = static_cast<int>(river.towns.size());
    for (int i = 0; i < count; ++i) {
      Town& town = world_.towns[river.towns[static_cast<size_t>(i)]];
      const int stretch = std::max(2, river.length_km / (count + 1));
      town.river_km = stretch * (i + 1) - between(0, stretch / 2);
      town.elevation_m =
          std::max(3, river.source_m * (river.length_km - town.river_km) / river.length_km * 2 / 3);
    }
  }

  void pair_partners() {
    for (size_t i = 0; i + 1 < world_.towns.size(); i += 2) {
      world_.towns[i].partner = i + 1;
      world_.towns[i + 1].partner = i;
    }
  }

  void add_people() {
    std::vector<int> births(std::max<size_t>(12, subjects_ * 39 / 100));
    for (int& year : births) year = between(1560, 1850);
    std::sort(births.begin(), births.end());  // so that teachers come before their pupils
    for (const int year : births) add_person(year);
  }

  void add_person(int birth_year) {
    const size_t index = world_.people.size();
    Person person;
    person.female = chance(45);
    person.given = person.female ? pick(kWomen) : pick(kMen);
    person.family = unique_name(1, kFamilyEndings);
    person.craft = pick_index(kCrafts.size());
    person.birth_year = birth_year;
    person.death_year = std::min(kPresent, birth_year + between(38, 86));
    person.birth_town = pick_index(world_.towns.size());
    Town& home = world_.towns[person.birth_town];
    person.death_town = chance(50)
                            ? person.birth_town
                            : world_.provinces[home.province]
                                  .towns[pick_index(world_.provinces[home.province].towns.size())];
    home.natives.push_back(index);
    find_teacher(person, index);
    if (!kCrafts[person.craft].builds) add_works(person);
    world_.people.push_back(std::move(person));
  }

  void find_teacher(Person& person, size_t index) {
    for (size_t i = index; i-- > 0;) {
      Person& other = world_.people[i];
      const int older = person.birth_year - other.birth_year;
      if (older > 45) break;
      const bool free = other.pupils.size() < 3 && other.death_year > person.birth_year + 20;
      if (older < 18 || other.craft != person.craft || !free) continue;
      person.teacher = i;
      other.pupils.push_back(index);
      return;
    }
  }

  void add_works(Person& person) {
    const int last = std::min(person.death_year, person.birth_year + 70);
    int year = person.birth_year + between(21, 28);
    for (int i = between(2, 4); i > 0 && year <= last; --i) {
      std::string title = "The ";
      title += pick(kTitleAdjectives);
      title += ' ';
      title += pick(kTitleNouns);
      person.works.push_back({std::move(title), year});
      year += between(2, 9);
    }
  }

  void build_bridges() {
    for (size_t i = 0; i < world_.people.size(); ++i) {
      Person& person = world_.people[i];
      if (!kCrafts[person.craft].builds) continue;
      int year = person.birth_year + between(26, 34);
      for (int n = 5; n > 0 && year <= person.death_year; --n) {
        const size_t place = pick_index(world_.towns.size());
        Town& town = world_.towns[place];
        if (town.builder != kNone) continue;
        town.builder = i;
        town.bridge_year = year;
        town.arches = between(3, 12);
        person.bridges.push_back(place);
        year += between(2, 8);
      }
    }
  }

  SplitMix64 random_;
  size_t subjects_;
  World world_;
  std::unordered_set<std::string> names_;
};

}  // namespace

World make_world(uint64_t seed, size_t subjects) { return Builder(seed, subjects).build(); }

std::string direction(const Town& from, const Town& to) {
  const int east = to.x_km - from.x_km;
  const int north = to.y_km - from.y_km;
  const std::string vertical = north >= 0 ? "north" : "south";
  const std::string horizontal = east >= 0 ? "east" : "west";
  if (std::abs(north) > 2 * std::abs(east)) return vertical;
  if (std::abs(east) > 2 * std::abs(north)) return horizontal;
  return vertical + " @-@ " + horizontal;
}

int distance_km(const Town& from, const Town& to) {
  const int x = to.x_km - from.x_km;
  const int y = to.y_km - from.y_km;
  int distance = 1;
  while ((distance + 1) * (distance + 1) <= x * x + y * y) ++distance;
  return distance;
}

}  // namespace stablemask::synth
