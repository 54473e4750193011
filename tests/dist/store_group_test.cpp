#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>

#include "tests/dist/threads.h"

namespace stablemask {
namespace {

using dist::Group;
using dist::Reduce;
using testing::run_processes;
using testing::run_threads;
using testing::store_groups;
using GroupPtr = std::shared_ptr<Group>;

constexpr int64_t kSizes[] = {1, 2, 3, 5};
constexpr at::ScalarType kReducible[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kLong};

/// Numbers that differ between processes, the same in every run.
at::Tensor numbers(int64_t rank, int64_t count, at::ScalarType dtype) {
  const at::Tensor index = at::arange(count, at::kDouble);
  const at::Tensor values = at::sin(index * 1.7 + static_cast<double>(rank) * 3.1) * 1000;
  return values.to(dtype);
}

/// The reduction over `n` processes in the order of the ranks, in the dtype.
at::Tensor reduced(int64_t n, int64_t count, at::ScalarType dtype, Reduce op) {
  at::Tensor result = numbers(0, count, dtype);
  for (int64_t rank = 1; rank < n; ++rank) {
    const at::Tensor next = numbers(rank, count, dtype);
    result = op == Reduce::kSum ? result + next : at::maximum(result, next);
  }
  return result;
}

/// A count of whole parts: no element to parts that are exchanged in two rounds.
std::vector<int64_t> counts(int64_t n) { return {0, n, 7 * n, 9001 * n}; }

TEST(StoreGroup, AllReduceEqualsTheSumInTheOrderOfTheRanks) {
  for (const int64_t n : kSizes) {
    run_processes(n, [&](const GroupPtr& group) {
      ASSERT_EQ(group->size(), n);
      for (const auto dtype : kReducible) {
        for (const Reduce op : {Reduce::kSum, Reduce::kMax}) {
          for (const int64_t count : {0, 1, 6, 20011}) {
            const at::Tensor tensor = numbers(group->rank(), count, dtype);
            group->all_reduce(tensor, op);
            EXPECT_TRUE(tensor.equal(reduced(n, count, dtype, op)))
                << n << " " << dtype << " " << count;
          }
        }
      }
    });
  }
}

TEST(StoreGroup, KeepsTheShape) {
  run_processes(2, [](const GroupPtr& group) {
    const at::Tensor scalar = at::scalar_tensor(1.5 + group->rank(), at::kDouble);
    group->all_reduce(scalar, Reduce::kSum);
    EXPECT_EQ(scalar.dim(), 0);
    EXPECT_EQ(scalar.item<double>(), 4.0);
    const at::Tensor matrix = at::ones({4, 3});
    group->all_reduce(matrix, Reduce::kMax);
    EXPECT_TRUE(matrix.equal(at::ones({4, 3})));
  });
}

TEST(StoreGroup, ReduceScatterThenAllGatherIsAllReduce) {
  for (const int64_t n : kSizes) {
    run_processes(n, [&](const GroupPtr& group) {
      for (const auto dtype : kReducible) {
        for (const int64_t count : counts(n)) {
          const at::Tensor flat = numbers(group->rank(), count, dtype);
          const at::Tensor expected = reduced(n, count, dtype, Reduce::kSum);
          group->reduce_scatter(flat, Reduce::kSum);
          const int64_t part = count / n;
          EXPECT_TRUE(flat.narrow(0, group->rank() * part, part)
                          .equal(expected.narrow(0, group->rank() * part, part)));
          group->all_gather(flat);
          EXPECT_TRUE(flat.equal(expected)) << n << " " << dtype << " " << count;
        }
      }
    });
  }
}

TEST(StoreGroup, AllGatherAndBroadcastMoveBytesOfAnyDtype) {
  for (const int64_t n : kSizes) {
    run_processes(n, [&](const GroupPtr& group) {
      for (const auto dtype : {at::kByte, at::kShort, at::kBool, at::kHalf, at::kComplexFloat}) {
        const at::Tensor flat = at::zeros({3 * n}, dtype);
        flat.narrow(0, 3 * group->rank(), 3).fill_(group->rank() + 1);
        group->all_gather(flat);
        EXPECT_TRUE(flat.equal((at::arange(3 * n) / 3).floor().add(1).to(dtype)));
        for (int64_t root = 0; root < n; ++root) {
          const at::Tensor tensor = at::full({5, 2}, group->rank() + 1, dtype);
          group->broadcast(tensor, root);
          EXPECT_TRUE(tensor.equal(at::full({5, 2}, root + 1, dtype)));
        }
      }
    });
  }
}

TEST(StoreGroup, LargeTensorsArriveWhole) {
  constexpr int64_t kCount = (10 << 20) / 4;  // 10 MiB, more than one value of the store takes
  run_processes(2, [](const GroupPtr& group) {
    const at::Tensor tensor = at::arange(kCount, at::kFloat).add_(group->rank());
    group->broadcast(tensor, 1);
    EXPECT_TRUE(tensor.equal(at::arange(kCount, at::kFloat).add_(1)));
  });
}

TEST(StoreGroup, CollectivesLeaveAutogradAlone) {
  run_processes(2, [](const GroupPtr& group) {
    const at::Tensor weight = at::ones({4}).set_requires_grad(true);
    group->all_reduce(weight, Reduce::kSum);
    EXPECT_TRUE(weight.is_leaf());
    EXPECT_TRUE(weight.detach().equal(at::full({4}, 2.0)));
  });
}

TEST(StoreGroup, RefusesTensorsThatItCannotExchange) {
  run_processes(2, [](const GroupPtr& group) {
    EXPECT_THROW(group->all_reduce(at::ones({4, 4}).t().narrow(0, 0, 2), Reduce::kSum), c10::Error);
    EXPECT_THROW(group->all_reduce(at::ones({4}, at::kHalf), Reduce::kSum), c10::Error);
    EXPECT_THROW(group->reduce_scatter(at::ones({3}), Reduce::kSum), c10::Error);
    EXPECT_THROW(group->all_gather(at::ones({3})), c10::Error);
    EXPECT_THROW(group->broadcast(at::ones({3}), 2), c10::Error);
  });
}

TEST(StoreGroup, TensorsOfOtherSizesAreNoticed) {
  const auto run = [](const GroupPtr& group) {
    group->all_reduce(at::ones({4 + group->rank()}), Reduce::kSum);
  };
  EXPECT_THROW(run_processes(2, run), c10::Error);
}

TEST(StoreGroup, OtherCallsAreNoticed) {
  const auto run = [](const GroupPtr& group) {
    group->agree(0);
    group->agree(0);
    if (group->rank() == 0) {
      group->all_reduce(at::ones({4}), Reduce::kSum);
    } else {
      group->broadcast(at::ones({4}), 0);
    }
  };
  EXPECT_THROW(run_processes(2, run), c10::Error);
}

TEST(StoreGroup, ReadIsACopy) {
  run_processes(2, [](const GroupPtr& group) {
    const at::Tensor tensor = at::full({3}, 1.0);
    const at::Tensor copy = group->read(tensor);
    tensor.zero_();
    EXPECT_TRUE(copy.equal(at::full({3}, 1.0)));
  });
}

TEST(HostGroup, AgreesOnTheLargestDecision) {
  for (const int64_t n : kSizes) {
    run_processes(n, [&](const GroupPtr& group) {
      for (int64_t highest = 0; highest < n; ++highest) {
        EXPECT_EQ(group->agree(group->rank() == highest ? 143 : -7), 143);
      }
      EXPECT_EQ(group->agree(INT64_MIN), INT64_MIN);
      EXPECT_EQ(group->agree(INT64_MAX - group->rank()), INT64_MAX);
    });
  }
}

TEST(HostGroup, SharesTextsByRank) {
  for (const int64_t n : kSizes) {
    run_processes(n, [&](const GroupPtr& group) {
      const auto text = [](int64_t rank) {
        std::string result(static_cast<size_t>(rank) * 700000, static_cast<char>('a' + rank));
        return result + "\n\0end" + std::to_string(rank);
      };
      const std::vector<std::string> texts = group->share(text(group->rank()));
      ASSERT_EQ(texts.size(), static_cast<size_t>(n));
      for (int64_t rank = 0; rank < n; ++rank) EXPECT_EQ(texts[rank], text(rank));
    });
  }
}

TEST(HostGroup, OneProcessMakesWhatAllTake) {
  std::atomic<int> made = 0;
  run_processes(3, [&](const GroupPtr& group) {
    const auto make = [&] {
      ++made;
      return "made by " + std::to_string(group->rank());
    };
    const std::string first = group->once("gemm 1", make);
    for (const std::string& text : group->share(first)) EXPECT_EQ(text, first);
    EXPECT_EQ(group->once("gemm 1", make), first);
    // Not all ask.
    if (group->rank() != 1) {
      EXPECT_EQ(group->once("gemm 2", [] { return ""; }), "");
    }
    group->agree(0);
    if (group->rank() == 1) {
      EXPECT_EQ(group->once("gemm 2", [] { return "too late"; }), "");
    }
  });
  EXPECT_EQ(made, 1);
}

TEST(HostGroup, TheNextProcessMakesWhatOneCouldNot) {
  run_processes(2, [](const GroupPtr& group) {
    const auto refuse = []() -> std::string { throw DataError("no"); };
    if (group->rank() == 1) {
      EXPECT_THROW(group->once("key", refuse), DataError);
    }
    group->agree(0);
    EXPECT_EQ(group->once("key", [] { return "yes"; }), "yes");
  });
}

TEST(HostGroup, StoreDoesNotGrow) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::atomic<int64_t> after_few = 0, after_many = 0;
  run_threads(store_groups(3, {}, store), [&](const GroupPtr& group) {
    const auto rounds = [&](int count) {
      for (int i = 0; i < count; ++i) {
        group->agree(i);
        group->share("text");
        group->all_reduce(at::ones({10}), Reduce::kSum);
        group->reduce_scatter(at::ones({30000}), Reduce::kSum);
        group->all_gather(at::ones({30000}));
        group->broadcast(at::ones({10}), 1);
      }
      group->share(std::string(5 << 20, 'x'));  // several values of the store
      group->agree(0);
      group->agree(0);
      if (group->rank() == 0) return store->getNumKeys();
      return int64_t{0};
    };
    after_few += rounds(2);
    after_many += rounds(50);
  });
  EXPECT_LE(after_few, 24);
  EXPECT_LE(after_many, 24);
}

}  // namespace
}  // namespace stablemask
