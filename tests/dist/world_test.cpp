#include "stablemask/dist/world.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "stablemask/base/error.h"

namespace stablemask {
namespace {

using Variables = std::map<std::string, std::string>;

dist::World world_of(const Variables& variables) {
  return dist::world_from_environment([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

/// `variables` with some changed; "-" removes one.
Variables with(Variables variables, const Variables& changes) {
  for (const auto& [name, value] : changes) {
    if (value == "-") {
      variables.erase(name);
    } else {
      variables[name] = value;
    }
  }
  return variables;
}

const Variables kTorchrun = {{"RANK", "5"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "gpu1"},
                             {"MASTER_PORT", "29500"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                             {"TORCHELASTIC_RESTART_COUNT", "2"},
                             {"TORCHELASTIC_RUN_ID", "job7"}};
const Variables kSrun = {{"SLURM_STEP_ID", "3"},
                         {"SLURM_PROCID", "9"},
                         {"SLURM_STEP_NUM_TASKS", "11"},
                         {"SLURM_NTASKS", "16"},
                         {"SLURM_LOCALID", "1"},
                         {"SLURM_NODEID", "2"},
                         {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"},
                         {"SLURM_TASKS_PER_NODE", "16"},
                         {"SLURM_STEP_NODELIST", "gpu[003-007,9],x1"},
                         {"SLURM_JOB_NODELIST", "other1"},
                         {"SLURM_JOB_ID", "123456"},
                         {"SLURM_RESTART_COUNT", "1"}};

void expect_alone(const dist::World& world) {
  EXPECT_EQ(world.rank, 0);
  EXPECT_EQ(world.size, 1);
  EXPECT_EQ(world.local_rank, 0);
  EXPECT_EQ(world.local_size, 1);
  EXPECT_EQ(world.address, "");
  EXPECT_FALSE(world.launcher_serves);
}

TEST(World, IsOneProcessWithoutALauncher) {
  const dist::World world = world_of({{"MASTER_ADDR", "gpu1"}, {"LOCAL_RANK", "3"}});
  expect_alone(world);
  EXPECT_EQ(world.launcher, "");
}

TEST(World, IsReadFromTorchrun) {
  const dist::World world = world_of(kTorchrun);
  EXPECT_EQ(world.rank, 5);
  EXPECT_EQ(world.size, 8);
  EXPECT_EQ(world.local_rank, 1);
  EXPECT_EQ(world.local_size, 4);
  EXPECT_EQ(world.launcher, "torchrun");
  EXPECT_EQ(world.address, "gpu1");
  EXPECT_EQ(world.port, 29500);
  EXPECT_TRUE(world.launcher_serves);
}

TEST(World, ProcessZeroServesTheStoreUnlessTorchrunDoes) {
  for (const char* value : {"-", "", "False"}) {
    const Variables change = {{"TORCHELASTIC_USE_AGENT_STORE", value}};
    EXPECT_FALSE(world_of(with(kTorchrun, change)).launcher_serves) << value;
  }
  EXPECT_FALSE(world_of(kSrun).launcher_serves);
}

TEST(World, AttemptsOfOneJobDiffer) {
  const std::string torchrun = world_of(kTorchrun).attempt, srun = world_of(kSrun).attempt;
  for (const Variables& change :
       {Variables{{"TORCHELASTIC_RESTART_COUNT", "3"}}, Variables{{"TORCHELASTIC_RUN_ID", "job8"}},
        Variables{{"WORLD_SIZE", "12"}}}) {
    EXPECT_NE(world_of(with(kTorchrun, change)).attempt, torchrun);
  }
  for (const Variables& change :
       {Variables{{"SLURM_RESTART_COUNT", "-"}}, Variables{{"SLURM_STEP_ID", "4"}}}) {
    EXPECT_NE(world_of(with(kSrun, change)).attempt, srun);
  }
}

TEST(World, RankAndWorldSizeByHandMeanOneMachine) {
  const dist::World world = world_of(
      {{"RANK", "1"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "2000"}});
  EXPECT_EQ(world.rank, 1);
  EXPECT_EQ(world.local_rank, 1);
  EXPECT_EQ(world.local_size, 3);
  EXPECT_FALSE(world.launcher_serves);
}

TEST(World, OneProcessOfALauncherNeedsNoStore) {
  expect_alone(world_of({{"RANK", "0"}, {"WORLD_SIZE", "1"}}));
  expect_alone(world_of({{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}));
}

TEST(World, IsReadFromSrun) {
  const dist::World world = world_of(kSrun);
  EXPECT_EQ(world.rank, 9);
  EXPECT_EQ(world.size, 11);
  EXPECT_EQ(world.local_rank, 1);
  EXPECT_EQ(world.local_size, 3);
  EXPECT_EQ(world.launcher, "srun");
  EXPECT_EQ(world.address, "gpu003");
  EXPECT_EQ(world.port, 20000 + (123456 + 3) % 20000);
}

TEST(World, VariablesOfTheJobStandInForThoseOfTheStep) {
  const dist::World world = world_of(with(kSrun, {{"SLURM_STEP_NUM_TASKS", "-"},
                                                  {"SLURM_STEP_TASKS_PER_NODE", "-"},
                                                  {"SLURM_TASKS_PER_NODE", "6(x2),4"},
                                                  {"SLURM_STEP_NODELIST", "-"}}));
  EXPECT_EQ(world.size, 16);
  EXPECT_EQ(world.local_size, 4);
  EXPECT_EQ(world.address, "other1");
}

TEST(World, ServerOfAStepCanBeSet) {
  const dist::World world = world_of(
      with(kSrun, {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "4000"}, {"SLURM_JOB_ID", "-"}}));
  EXPECT_EQ(world.address, "10.0.0.1");
  EXPECT_EQ(world.port, 4000);
}

TEST(World, FirstHostOfANodeList) {
  const std::vector<std::pair<std::string, std::string>> lists = {
      {"x1", "x1"},
      {"x1,x2", "x1"},
      {"gpu[003-007,9],x1", "gpu003"},
      {"gpu[9,11-12]", "gpu9"},
      {"rack[1-2]n[03-04].site", "rack1n03.site"}};
  for (const auto& [list, host] : lists) {
    EXPECT_EQ(world_of(with(kSrun, {{"SLURM_STEP_NODELIST", list}})).address, host);
  }
}

TEST(World, ABatchScriptIsOneProcess) {
  expect_alone(world_of(with(kSrun, {{"SLURM_STEP_ID", "-"}})));
  expect_alone(world_of(with(kSrun, {{"SLURM_PROCID", "-"}})));
  expect_alone(world_of(with(kSrun, {{"SLURM_STEP_ID", "4294967291"}})));
}

TEST(World, TorchrunInsideSrunIsTorchrun) {
  const dist::World world = world_of(with(kSrun, kTorchrun));
  EXPECT_EQ(world.launcher, "torchrun");
  EXPECT_EQ(world.size, 8);
  EXPECT_EQ(world.address, "gpu1");
}

struct Malformed {
  Variables base, change;
  std::string variable;  ///< which the message must name, with its value
};

TEST(World, MalformedVariablesAreRefusedByName) {
  std::vector<Malformed> cases = {
      {kTorchrun, {{"RANK", "-"}}, "RANK is not set"},
      {kTorchrun, {{"WORLD_SIZE", ""}}, "WORLD_SIZE is not set"},
      {kTorchrun, {{"LOCAL_RANK", "-"}}, "LOCAL_RANK is not set"},
      {kTorchrun, {{"LOCAL_WORLD_SIZE", "-"}}, "LOCAL_WORLD_SIZE is not set"},
      {kTorchrun, {{"MASTER_ADDR", "-"}}, "MASTER_ADDR is not set"},
      {kTorchrun, {{"MASTER_PORT", "-"}}, "MASTER_PORT is not set"},
      {kSrun, {{"SLURM_LOCALID", "-"}}, "SLURM_LOCALID is not set"},
      {kSrun, {{"SLURM_NODEID", "-"}}, "SLURM_NODEID is not set"},
      {kSrun, {{"SLURM_JOB_ID", "-"}}, "SLURM_JOB_ID is not set"},
      {kSrun,
       {{"SLURM_STEP_NUM_TASKS", "-"}, {"SLURM_NTASKS", "-"}},
       "SLURM_STEP_NUM_TASKS is not"},
      {kSrun,
       {{"SLURM_STEP_NODELIST", "-"}, {"SLURM_JOB_NODELIST", "-"}},
       "SLURM_STEP_NODELIST is not set"},
      {kSrun,
       {{"SLURM_STEP_TASKS_PER_NODE", "-"}, {"SLURM_TASKS_PER_NODE", "-"}},
       "SLURM_STEP_TASKS_PER_NODE is not set"},
      {kSrun, {{"SLURM_STEP_TASKS_PER_NODE", "-"}}, "SLURM_TASKS_PER_NODE is \"16\""}};
  const std::vector<std::pair<std::string, std::vector<std::string>>> values = {
      {"RANK", {"8", "-1", "x", "1.5", " 1", "1 ", "99999999999999999999"}},
      {"WORLD_SIZE", {"0", "-8", "eight", "2000000"}},
      {"LOCAL_RANK", {"4", "-1", "one"}},
      {"LOCAL_WORLD_SIZE", {"0", "9", "all"}},
      {"MASTER_PORT", {"0", "65536", "http"}},
      {"TORCHELASTIC_USE_AGENT_STORE", {"maybe"}},
      {"TORCHELASTIC_RESTART_COUNT", {"-1", "twice"}},
      {"SLURM_STEP_ID", {"batch", "-1"}},
      {"SLURM_PROCID", {"11", "-1", "x"}},
      {"SLURM_STEP_NUM_TASKS", {"0", "x", "9999999"}},
      {"SLURM_LOCALID", {"3", "-1"}},
      {"SLURM_NODEID", {"3", "-1"}},
      {"SLURM_STEP_TASKS_PER_NODE",
       {"4(x2)", "4(x2),4", "4(x2", "4(2),3", "(x2),3", "4(x),3", "4(x0),3", "4,,3", "4,4,3,", ",",
        "4(x9999999999),3", "-4"}},
      {"SLURM_STEP_NODELIST", {"gpu[", "gpu[]", "gpu]1", ",x1", "gpu[-3]", "gpu[,4]"}},
      {"SLURM_JOB_ID", {"x", "-7"}},
      {"SLURM_RESTART_COUNT", {"-1", "x"}}};
  for (const auto& [name, texts] : values) {
    for (const std::string& text : texts) {
      const Variables& base = name.starts_with("SLURM") ? kSrun : kTorchrun;
      cases.push_back({base, {{name, text}}, name + " is \"" + text + "\""});
    }
  }
  for (const Malformed& malformed : cases) {
    try {
      world_of(with(malformed.base, malformed.change));
      ADD_FAILURE() << "accepted: " << malformed.variable;
    } catch (const ConfigError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find(malformed.variable), std::string::npos)
          << text << " does not say " << malformed.variable;
      EXPECT_NE(text.find("; start the program with "), std::string::npos) << text;
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    }
  }
}

}  // namespace
}  // namespace stablemask
