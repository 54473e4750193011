// The sentences of the invented encyclopedia. Each states facts of the world; the alternatives in
// brackets only vary the wording.
#include "src/synth/synth_articles.h"

namespace stablemask::synth {

const std::vector<Section>& province_sections() {
  static const std::vector<Section> kSections = {
      {0,
       "",
       {{{"{province} is a province of {country} . Its capital is {capital} , a town of "
          "{capital_people} people on the {capital_river} .",
          "[The province|{province}] has {town_count} [towns|towns and boroughs] , in which "
          "{people_count} people lived [at the time of|according to] the census of {census} .",
          "[It is known for its {crop} and its {stone}|{crop_cap} and {stone} are what the rest of "
          "{country} [buys|orders] from {province}] ."}}}},
      {2,
       "Geography",
       {{{"{province} [lies on|is built on|stands on] {stone} , which [gives|lends] the older "
          "houses of [its towns|the province] their colour .",
          "[The yearly rainfall is|It receives] about {rain} millimetres [of rain a year|in an "
          "ordinary year] , [most of it in autumn|and snow lies for some weeks] .",
          "[{crop_cap} is grown|The farms grow {crop}] [in the valleys|on the lower "
          "slopes|wherever the ground is level] ."}},
        {{"The {river} rises in the {hills} and is {length} kilometres long ; [it flows into|its "
          "waters reach] the {mouth} ."},
         "rivers"}}},
      {2,
       "History",
       {{{"The {war} , which lasted from {war_begin} to {war_end} , [cost {province} a third of "
          "its farms|emptied many villages of the province|passed through {province} twice] .",
          "In the winter of {frost} [all its rivers froze to the bottom|the Great Frost killed the "
          "orchards] , and [grain had to be brought|bread was carried] from the coast of the {sea} "
          ".",
          "[The railway came to {province} in|The first train ran in {province} in] {railway} [ , "
          "and the barges lost their trade| , to the anger of the boatmen|] ."}}}},
      {2,
       "Towns",
       {{{"{town} , on the {river} , was founded in {founded} and had {population} inhabitants in "
          "{census} ; it is known for its {trade} .",
          "[Its market is held|The market is] {on_day} ."},
         "towns"}}},
      {2,
       "People",
       {{{"{name} ( {birth} – {death} ) , {craft} , [was born in|came from] {birth_town} ."},
         "natives"}}},
  };
  return kSections;
}

const std::vector<Section>& river_sections() {
  static const std::vector<Section> kSections = {
      {0,
       "",
       {{{"The {river} is a river in the province of {province} in {country} , {length} kilometres "
          "long . It [rises|has its source] in the {hills} and [flows into|joins|ends in] the "
          "{mouth} .",
          "[Its valley is|The valley is] [wide and open|narrow and wooded|mostly meadow] in its "
          "lower part , [lined with|shaded by] {tree} ."}}}},
      {2,
       "Course",
       {{{"The {river} [springs from|begins at] a [marsh|cleft in the {stone}|small lake] in the "
          "{hills} , {source} metres above the sea ."}},
        {{"[After|At] {km} kilometres it [reaches|passes] {town} , [a town of {population} "
          "people|where {population} people live] , which stands on the {bank} bank {elevation} "
          "metres above the sea ."},
         "towns"},
        {{"[One of its tributaries|A tributary] is the {river} , which [comes down from|rises in] "
          "the {hills} and is {length} kilometres long ."},
         "tributaries"}}},
      {2,
       "Wildlife",
       {{{"[The river is rich in|Its waters hold many] {fish} , [and|while] {bird} [nest|breed] "
          "[along the banks|among the {tree}|on the islands] .",
          "[In the cold spring of {frost}|During the Great Frost of {frost}] the {fish} [died "
          "out|all but vanished] [in the upper reaches|above the first weir] , and [returned|came "
          "back] only after [some|a dozen|many] years .",
          "[Fishing is [forbidden|allowed only with a licence] in May .|A few families still live "
          "by fishing .|]"}}}},
      {2,
       "Floods",
       {{{"The [worst|highest] flood [on record|of the {river}] [was that of|came in] {flood} , "
          "[when the water stood in the church of {last_town}|which carried away the mills of "
          "{last_town}|and a mark on the church of {last_town} shows its height] .",
          "[Since then|After it] [dykes|new banks] were raised around {last_town} [with {stone}|by "
          "order of the council of {capital}] ."}}}},
      {2,
       "Bridges",
       {{{"The bridge of {town} has {arches} arches and was built in {bridge_year} by {builder} .",
          "[It replaced a [ferry|ford|wooden bridge]|Until then people crossed by ferry|It is "
          "built of {stone}] ."},
         "bridges"}}},
  };
  return kSections;
}

const std::vector<Section>& town_sections() {
  static const std::vector<Section> kSections = {
      {0,
       "",
       {{{"{town} is a [town|market town|river town] in the province of {province} in {country} , "
          "on the {bank} bank of the {river} .",
          "[It had|The town had|{town} had] {population} inhabitants at the census of {census} .",
          "It is known for its {trade} and for the market that is held {on_day} .",
          "[{town} was founded in {founded} by {founders}|Founded by {founders} in {founded} , it "
          "still holds a feast [for them|in their honour] in May] ."}}}},
      {2,
       "Geography",
       {{{"{town} [stands|lies] {elevation} metres above the sea , {km} kilometres from the source "
          "of the {river} in the {hills} .",
          "The capital of the province , {capital} , is {capital_distance} kilometres to the "
          "{capital_direction} .",
          "[Upstream|Up the river] lies {upstream} , [and|while] down the river [one comes "
          "to|lies] {downstream} .",
          "[The old quarter|The upper town] [is built of {stone}|stands on a terrace of "
          "{stone}|has narrow lanes and houses of {stone}] , [while the newer streets|and the "
          "streets by the station] [are of brick|are wide and straight] ."}},
        {{"[Rain falls|It rains] [often|mostly in autumn] , about {rain} millimetres a year , [and "
          "the gardens are famous for|which is enough for] {crop} .",
          "[Along the river|On the islands] [grow|stand] {tree} , in which {bird} nest ."}}}},
      {2,
       "History",
       {{{"[The oldest charter of {town} is from|A charter names {town} for the first time in] "
          "{founded} , [when|the year in which] {founders} [were given the right to build a "
          "wall|settled by the {river}|built a chapel here] .",
          "[During|In] the {war} ( {war_begin} – {war_end} ) the town [was besieged [twice|for a "
          "summer]|paid a ransom|lost its walls] [ , and half of its people fled to {capital}|] .",
          "A fire destroyed [two thirds|a third|most] of the houses in {fire} ; the church of "
          "{church} [was spared|burned for three days|was rebuilt in {stone}] ."}},
        {{"[The railway reached|The first train came to] {town} in {railway} , [and the "
          "[tolls|barges] lost their worth|and with it came visitors from {capital}] .",
          "[The population grew|The town grew] from {population_first} in {census_first} to "
          "{population_middle} in {census_middle} and {population} in {census} ."}}}},
      {3,
       "The bridge",
       {{{"The bridge over the {river} was built in {bridge_year} by {builder} . [It has|With its] "
          "{arches} arches [of {stone} .|it is the pride of the town .]",
          "[Before {bridge_year}|Until {bridge_year}] [a ferry crossed the river , and travellers "
          "waited [for hours|half a day]|there was only a ford , which was closed in every flood] "
          "."}}}},
      {2,
       "Economy",
       {{{"[Most families live|Half of the town lives] by {trade} , [which is|a trade] [mentioned "
          "as early as the {war}|as old as the town itself] .",
          "Most of the {trade} goes to {partner} , {partner_distance} kilometres to the "
          "{partner_direction} , from where {partner_trade} [comes|is brought] in return .",
          "[On market days|{on_day_cap}] [farmers bring {crop} and {fish}|the square is full of "
          "{crop}|the inns are full] [ , and the bells of {church} open the market|] ."}}}},
      {2,
       "Notable people",
       {{{"{name} ( {birth} – {death} ) , {craft} , [was born in {town}|was a child of this town] "
          "; [{he} is remembered for|among {his} {made} is] {work} ( {work_year} ) .",
          "[{his_cap} teacher was {teacher} .|]"},
         "natives"},
        {{"{name} ( {birth} – {death} ) , {craft} , built the bridge of {bridge_town} ."},
         "native_builders"}}},
  };
  return kSections;
}

const std::vector<Section>& person_sections() {
  static const std::vector<Section> kSections = {
      {0,
       "",
       {{{"{name} ( {birth} – {death} ) was a {craft} from {birth_town} in the province of "
          "{province} .",
          "{he_cap} is [best known|remembered] for {work} ( {work_year} ) .",
          "{he_cap} is [best known|remembered] for the bridge of {bridge_town} , which has "
          "{arches} arches ."}}}},
      {2,
       "Early life",
       {{{"{given} {family} was born in {birth} in {birth_town} , a town on the {birth_river} "
          "known for its {birth_trade} .",
          "{his_cap} [father|mother|uncle] [sold|dealt in] {birth_trade} , and [the family|the "
          "household] [lived|had rooms] [near|behind] the church of {birth_church} .",
          "[As a child|As a young {man}] {he} [was often ill|walked along the {birth_river} for "
          "days|helped at the market {birth_on_day}] [ , and watched the {birth_bird}|] ."}},
        {{"At the age of {apprentice_age} {he} [went|was sent] to {teacher_town} to learn from the "
          "{craft} {teacher} , [whose {made} were famous in all of {country}|who took no other "
          "pupil that year|and stayed for [three|four|five] years] ."}}}},
      {2,
       "Career",
       {{{"In {work_year} {he} {verb} {work} , [which was praised|which was much talked "
          "about|which few understood] in {capital} .",
          "[{family} said later that it [came|had come] to {him} by the {birth_river} .|It was "
          "{his} [answer|debt] to {birth_town} .|The council of {capital} paid for it .|]"},
         "works"},
        {{"In {bridge_year} {he} built the bridge of {bridge_town} over the {bridge_river} , with "
          "{arches} arches .",
          "[The work took [two|three] [years|summers]|It was built of {bridge_stone}|The first "
          "flood did it no harm] ."},
         "bridges"},
        {{"{family} wrote : \" [A river|A town|Good work] [is never finished , and neither am "
          "I|needs patience|asks for more than it gives|teaches those who wait] . \""}}}},
      {2,
       "Later life and legacy",
       {{{"{he_cap} died in {death} in {death_town} , at the age of {age} , [and is buried|and was "
          "laid to rest] [near|beside] the church of {death_church} .",
          "[A street in {birth_town} bears {his} name .|{birth_town} keeps {his} "
          "[letters|tools|house] .|]"}},
        {{"{pupil} , [born in|from] {pupil_town} , was {his} pupil and became a {craft} too ."},
         "pupils"}}},
  };
  return kSections;
}

}  // namespace stablemask::synth
