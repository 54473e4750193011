#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace stablemask::synth {

/// An invented country around 1910. Everything refers to everything else by index, so that a fact
/// reads the same in whichever article it is told.
constexpr std::array<int, 3> kCensusYears = {1801, 1851, 1901};
constexpr size_t kNone = SIZE_MAX;

struct Province {
  std::string name;
  std::string stone, crop;
  int rain_mm = 0;
  int railway_year = 0;
  int x_km = 0, y_km = 0;  ///< its south-western corner
  std::vector<size_t> towns, rivers;
  size_t capital = 0;  ///< town
};

struct River {
  std::string name;
  std::string hills, fish, bird, tree;
  size_t province = 0;
  size_t mouth = kNone;  ///< river, earlier in the list; none: the sea
  int length_km = 0;
  int source_m = 0;  ///< height of the source
  int flood_year = 0;
  std::vector<size_t> towns;  ///< from source to mouth
  std::vector<size_t> tributaries;
};

struct Town {
  std::string name;
  std::string trade, market_day, bank, founders, church;
  size_t province = 0, river = 0;
  size_t partner = kNone;  ///< the town it trades with
  int x_km = 0, y_km = 0;
  int river_km = 0;  ///< from the river's source
  int elevation_m = 0;
  int founded = 0;
  int fire_year = 0;
  std::array<int, 3> population{};  ///< at kCensusYears
  size_t builder = kNone;           ///< person who built the bridge
  int bridge_year = 0;
  int arches = 0;
  std::vector<size_t> natives;  ///< people born here
};

struct Work {
  std::string title;
  int year = 0;
};

struct Person {
  std::string given, family;
  bool female = false;
  size_t craft = 0;  ///< of kCrafts
  size_t birth_town = 0, death_town = 0;
  int birth_year = 0, death_year = 0;
  size_t teacher = kNone;  ///< person of the same craft
  std::vector<size_t> pupils;
  std::vector<Work> works;
  std::vector<size_t> bridges;  ///< towns
};

struct Craft {
  const char* name;  ///< "a botanist"
  const char* made;  ///< what such a person leaves behind, plural
  const char* verb;  ///< how a work of it came to be: "painted"
  bool builds;       ///< bridges
};
extern const std::array<Craft, 12> kCrafts;

struct World {
  std::string country, sea, war;
  int war_begin = 0, war_end = 0;
  int frost_year = 0;
  std::vector<Province> provinces;
  std::vector<River> rivers;
  std::vector<Town> towns;
  std::vector<Person> people;
};

/// A world with about `subjects` provinces, rivers, towns and people together.
World make_world(uint64_t seed, size_t subjects);

/// "north @-@ east": where `to` lies, seen from `from`; and how far, at least 1.
std::string direction(const Town& from, const Town& to);
int distance_km(const Town& from, const Town& to);

}  // namespace stablemask::synth
