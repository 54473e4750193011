// An evaluation that several processes share, each on a GPU of its own.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "stablemask/ops/device.h"
#include "tests/commands/launch.h"
#include "tests/commands/pipeline.h"

namespace stablemask::testing {
namespace {

using GpuEvaluate = PipelineTest;

TEST_F(GpuEvaluate, HasTheBitsOfOneProcess) {
  const int gpus = static_cast<int>(ops::gpu_count());
  if (gpus < 2) GTEST_SKIP() << "needs 2 GPUs, found " << gpus;
  const TemporaryFolder& folder = pipeline().folder;
  nlohmann::json config = base_config();
  config["model"] = {{"layers", 2}, {"channels", 128}, {"heads", 2}, {"ffn_hidden", 256}};
  config["train"].update({{"device", "cuda"}, {"out", "gpu"}, {"steps", 20}});
  write_file(folder / "gpu.json", config.dump());
  pipeline().succeed("pretrain gpu.json");
  std::string alone;
  for (int size = 1; size <= gpus; ++size) {
    Launch launch(folder, size,
                  {"eval", "--checkpoint", "gpu", "--data", "valid.shard", "--window", "48",
                   "--stride", "17", "--batch", "3", "--json", "-"});
    EXPECT_EQ(launch.codes(), std::vector<int>(size, 0)) << launch.said();
    if (size == 1) alone = launch.out(0);
    EXPECT_EQ(launch.out(0), alone) << size << " processes";
    EXPECT_NE(alone.find("nll"), std::string::npos) << alone;
  }
}

}  // namespace
}  // namespace stablemask::testing
