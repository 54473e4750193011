#include "stablemask/dist/group.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace stablemask {
namespace {

TEST(SingleProcessGroup, IsRankZeroOfOne) {
  const auto group = dist::single_process_group();
  EXPECT_EQ(group->rank(), 0);
  EXPECT_EQ(group->size(), 1);
}

TEST(SingleProcessGroup, CollectivesLeaveTheValuesAndTheMemoryAlone) {
  const auto group = dist::single_process_group();
  const at::Tensor expected = at::arange(6, at::kDouble);
  at::Tensor tensor = expected.clone();
  const void* const memory = tensor.data_ptr();
  const int64_t version = tensor._version();
  group->all_reduce(tensor, dist::Reduce::kSum);
  group->all_reduce(tensor, dist::Reduce::kMax);
  group->reduce_scatter(tensor, dist::Reduce::kSum);
  group->all_gather(tensor);
  group->broadcast(tensor, 0);
  EXPECT_TRUE(tensor.equal(expected));
  EXPECT_EQ(tensor.data_ptr(), memory);
  EXPECT_EQ(tensor._version(), version) << "not written to";
}

TEST(SingleProcessGroup, AgreesWithItself) {
  const auto group = dist::single_process_group();
  for (const int64_t decision : {INT64_MIN, int64_t{0}, int64_t{143}}) {
    EXPECT_EQ(group->agree(decision), decision);
  }
}

}  // namespace
}  // namespace stablemask
