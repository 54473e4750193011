#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <utility>
#include <vector>

#include "src/dist/nccl_group.h"
#include "stablemask/base/error.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/stream.h"

namespace stablemask::dist {
namespace {

using Clock = std::chrono::steady_clock;
/// What a process does with its group on its GPU.
using Work = std::function<void(Group& group, at::Device device)>;

struct Limits {
  double silence_s = 6, timeout_s = 60;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Fills the allocator's cache and loads kernels. In one process a thread that allocates or loads
/// may wait for the GPUs, and they for a collective that this thread has not called yet.
void warm_up(at::Device device) {
  const at::TensorOptions options = at::TensorOptions(at::kFloat).device(device);
  std::vector<at::Tensor> blocks = {at::empty({32 << 20}, options)};
  for (int i = 0; i < 16; ++i) blocks.push_back(at::empty({200000}, options));
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kLong}) {
    at::Tensor x = at::zeros({100}, options.dtype(type));
    x.fill_(1).add_(1).mul_(2).copy_(x.clone());
    x.sum().item();
  }
}

/// Threads with one group and one GPU each; `devices` by rank.
class Processes {
 public:
  explicit Processes(std::vector<at::Device> devices, const Limits& limits = {})
      : devices_(std::move(devices)), failures_(devices_.size()) {
    const auto store = c10::make_intrusive<c10d::HashStore>();
    const auto size = static_cast<int64_t>(devices_.size());
    WatchdogOptions options;
    options.silence_s = limits.silence_s;
    options.timeout_s = limits.timeout_s;
    for (int64_t rank = 0; rank < size; ++rank) {
      options.names.push_back("process " + std::to_string(rank));
      Watchdog::announce(*store, rank);
    }
    for (options.rank = 0; options.rank < size; ++options.rank) {
      parts_.push_back({store, std::make_shared<Watchdog>(store, options)});
    }
  }

  /// Connects the groups, calls `work` in all threads and ends the groups. A process that fails
  /// tells the others. Returns the processes' error messages, "" for none.
  std::vector<std::string> run(const Work& work) {
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < devices_.size(); ++rank) {
      threads.emplace_back([&, rank] { run_one(rank, work); });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<std::string> messages;
    for (const std::exception_ptr& failure : failures_) messages.push_back(message_of(failure));
    return messages;
  }

  const std::exception_ptr& failure(size_t rank) const { return failures_.at(rank); }

 private:
  void run_one(size_t rank, const Work& work) {
    try {
      ops::use_device(devices_[rank]);
      warm_up(devices_[rank]);
      const std::shared_ptr<Group> group =
          make_nccl_group(std::exchange(parts_[rank], {}), devices_[rank]);
      try {
        work(*group, devices_[rank]);
      } catch (const std::exception& error) {
        group->fail(error.what());
        throw;
      }
    } catch (...) {
      failures_[rank] = std::current_exception();
    }
  }

  static std::string message_of(const std::exception_ptr& failure) {
    if (!failure) return "";
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      const std::string what = error.what();
      return what.substr(0, what.find('\n'));
    }
  }

  std::vector<at::Device> devices_;
  std::vector<HostPart> parts_;
  std::vector<std::exception_ptr> failures_;
};

std::vector<at::Device> all_gpus() {
  std::vector<at::Device> devices;
  for (int64_t i = 0; i < std::min<int64_t>(ops::gpu_count(), 4); ++i) {
    devices.emplace_back(at::kCUDA, static_cast<at::DeviceIndex>(i));
  }
  return devices;
}

/// Runs `work` on every GPU; it must succeed.
void on_all(const Work& work) {
  Processes processes(all_gpus());
  const std::vector<std::string> messages = processes.run(work);
  EXPECT_EQ(messages, std::vector<std::string>(messages.size()));
}

/// Integers in [-8, 8] that differ between elements and ranks: exact in every dtype, and so are
/// their sums over few processes.
at::Tensor integers(int64_t count, int64_t rank, at::ScalarType type) {
  const at::Tensor index = at::arange(count, at::kLong);
  return ((index * 7 + rank * 5 + (index * rank).remainder(3)).remainder(17) - 8).to(type);
}

/// The plain reduction of all processes' integers.
at::Tensor reduced(int64_t count, int64_t size, at::ScalarType type, Reduce op) {
  at::Tensor result = integers(count, 0, at::kDouble);
  for (int64_t rank = 1; rank < size; ++rank) {
    const at::Tensor next = integers(count, rank, at::kDouble);
    result = op == Reduce::kSum ? result + next : at::maximum(result, next);
  }
  return result.to(type);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

class GpuNccl : public ::testing::Test {
 protected:
  void SetUp() override {
    if (ops::gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  }
};

constexpr at::ScalarType kReducible[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kLong};

TEST_F(GpuNccl, ReductionsMatchPlainOnes) {
  on_all([](Group& group, at::Device device) {
    const int64_t rank = group.rank(), size = group.size();
    for (const at::ScalarType type : kReducible) {
      for (const Reduce op : {Reduce::kSum, Reduce::kMax}) {
        for (const int64_t part : {1, 3, 1000, 262145}) {
          const int64_t count = part * size;
          const at::Tensor expected = reduced(count, size, type, op);
          const at::Tensor all = integers(count, rank, type).to(device);
          group.all_reduce(all, op);
          EXPECT_TRUE(group.read(all).equal(expected)) << type << " " << count;
          const at::Tensor parts = integers(count, rank, type).to(device);
          group.reduce_scatter(parts, op);
          EXPECT_TRUE(group.read(parts.narrow(0, rank * part, part))
                          .equal(expected.narrow(0, rank * part, part)))
              << type << " part of " << count;
        }
      }
    }
    const at::Tensor scalar = at::full({}, rank + 1, at::TensorOptions(at::kDouble).device(device));
    group.all_reduce(scalar, Reduce::kSum);
    EXPECT_EQ(group.read(scalar).item<double>(), static_cast<double>(size * (size + 1) / 2));
    group.all_reduce(at::empty({0}, scalar.options()), Reduce::kSum);
  });
}

TEST_F(GpuNccl, EveryProcessReceivesTheSameBitsInEveryRun) {
  constexpr int64_t kCount = 1000003;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    std::vector<at::Tensor> results(3 * all_gpus().size());
    for (size_t run = 0; run < 2; ++run) {
      on_all([&](Group& group, at::Device device) {
        const int64_t rank = group.rank(), size = group.size();
        // Values whose sum depends on the order.
        const at::Tensor own =
            at::sin(at::arange(kCount, at::kDouble) * static_cast<double>(rank + 1)).to(type);
        for (int64_t repeat = 0; repeat < (run == 0 ? 2 : 1); ++repeat) {
          const at::Tensor sum = own.to(device);
          group.all_reduce(sum, Reduce::kSum);
          results.at((2 * run + repeat) * size + rank) = group.read(sum);
        }
      });
    }
    EXPECT_GT(results[0].to(at::kDouble).abs().max().item<double>(), 0.5);
    for (const at::Tensor& result : results) EXPECT_TRUE(same_bits(result, results[0])) << type;
  }
}

TEST_F(GpuNccl, GatherAndBroadcastMoveAnyDtype) {
  on_all([](Group& group, at::Device device) {
    const int64_t rank = group.rank(), size = group.size();
    for (const at::ScalarType type :
         {at::kByte, at::kShort, at::kInt, at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
      for (const int64_t part : {1, 5, 100001}) {
        at::Tensor flat = at::zeros({part * size}, at::TensorOptions(type).device(device));
        flat.narrow(0, rank * part, part).copy_(integers(part, rank, at::kInt).abs());
        group.all_gather(flat);
        const at::Tensor all = group.read(flat);
        for (int64_t r = 0; r < size; ++r) {
          EXPECT_TRUE(
              all.narrow(0, r * part, part).equal(integers(part, r, at::kInt).abs().to(type)))
              << type << " part " << r;
        }
        for (int64_t root = 0; root < size; ++root) {
          const at::Tensor tensor = integers(part, rank, at::kInt).abs().to(device, type);
          group.broadcast(tensor, root);
          EXPECT_TRUE(group.read(tensor).equal(integers(part, root, at::kInt).abs().to(type)))
              << type << " from " << root;
        }
      }
    }
  });
}

TEST_F(GpuNccl, ReadReturnsTheValuesAfterTheWorkQueuedBefore) {
  on_all([](Group& group, at::Device device) {
    // More than the staging buffer takes at once.
    const at::Tensor large = at::arange(5000011, at::TensorOptions(at::kLong).device(device));
    EXPECT_TRUE(group.read(large).equal(at::arange(5000011, at::kLong)));
    const at::Tensor rows = large.narrow(0, 0, 12).view({3, 4}).t();
    EXPECT_TRUE(group.read(rows).equal(at::arange(12, at::kLong).view({3, 4}).t()));
    EXPECT_EQ(group.read(at::empty({0, 3}, large.options())).sizes(), at::IntArrayRef({0, 3}));
    EXPECT_EQ(group.read(at::full({}, 5.5)).item<double>(), 5.5) << "of a CPU tensor";
    ops::SideStream side(device);
    const at::Tensor counter = at::zeros({1}, large.options());
    {
      const ops::SideStream::Entered entered(side);
      for (int64_t i = 0; i < 200; ++i) counter.add_(1);
      EXPECT_EQ(group.read(counter).item<int64_t>(), 200);
    }
  });
}

TEST_F(GpuNccl, AgreementIsTheMaximum) {
  on_all([](Group& group, at::Device) {
    for (int64_t i = 0; i < group.size(); ++i) {
      EXPECT_EQ(group.agree(group.rank() == i ? 143 : -i), 143) << i;
    }
    EXPECT_EQ(group.agree(INT64_MIN), INT64_MIN);
    EXPECT_EQ(group.agree(group.rank()), group.size() - 1);
  });
}

TEST_F(GpuNccl, UnfitTensorsAreRefusedAndTheGroupGoesOn) {
  on_all([](Group& group, at::Device device) {
    const at::TensorOptions options = at::TensorOptions(at::kFloat).device(device);
    const at::Tensor matrix = at::zeros({4, 4}, options);
    EXPECT_THROW(group.all_reduce(at::zeros({4}), Reduce::kSum), c10::Error) << "on the CPU";
    EXPECT_THROW(group.all_reduce(matrix.t(), Reduce::kSum), c10::Error) << "not contiguous";
    EXPECT_THROW(group.all_reduce(matrix.to(at::kHalf), Reduce::kSum), c10::Error) << "fp16";
    const at::Tensor odd = at::zeros({group.size() * 4 + 1}, options);
    EXPECT_THROW(group.reduce_scatter(odd, Reduce::kSum), c10::Error);
    EXPECT_THROW(group.all_gather(odd), c10::Error);
    EXPECT_THROW(group.broadcast(matrix, group.size()), c10::Error);
    EXPECT_EQ(group.agree(group.rank()), group.size() - 1);
  });
}

/// What a training step does: gradients are reduced on a side stream, each process changes its
/// part, and the parts are gathered.
struct StepExchange {
  StepExchange(Group& group_in, at::Device device, int64_t part_in)
      : group(group_in),
        part(part_in),
        side(device),
        input(at::zeros({part * group.size()}, at::TensorOptions(at::kFloat).device(device))),
        flat(at::zeros_like(input)),
        sum(at::zeros({1}, input.options().dtype(at::kDouble))) {}

  void enqueue() {
    flat.copy_(input);
    {
      const ops::SideStream::Entered entered(side);
      group.reduce_scatter(flat, Reduce::kSum);
    }
    sum.fill_(1.0);  // beside it
    side.point().wait();
    flat.narrow(0, group.rank() * part, part).mul_(2.0);
    group.all_gather(flat);
    group.all_reduce(sum, Reduce::kSum);
  }

  void expect_result(int64_t number) const {
    const at::Tensor expected =
        reduced(part * group.size(), group.size(), at::kFloat, Reduce::kSum) * 2 * number;
    EXPECT_TRUE(group.read(flat).equal(expected)) << "number " << number;
    EXPECT_EQ(group.read(sum).item<double>(), static_cast<double>(group.size()));
  }

  Group& group;
  int64_t part;
  ops::SideStream side;
  at::Tensor input, flat, sum;
};

/// Records `exchange` in `graph`; on a stream that is not the default one. Another thread may do
/// what a capture in global mode forbids.
void record(at::cuda::CUDAGraph& graph, StepExchange& exchange) {
  graph.capture_begin(at::cuda::graph_pool_handle(), cudaStreamCaptureModeThreadLocal);
  exchange.enqueue();
  graph.capture_end();
}

TEST_F(GpuNccl, RecordedCollectivesReplay) {
  on_all([](Group& group, at::Device device) {
    const c10::cuda::CUDAStreamGuard on_stream(
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
    StepExchange exchange(group, device, 100003);
    for (int64_t number = 1; number <= 3; ++number) {
      exchange.input.copy_(integers(exchange.input.numel(), group.rank(), at::kFloat) * number);
      exchange.enqueue();
      exchange.expect_result(number);
    }
    at::cuda::CUDAGraph graph;
    record(graph, exchange);
    for (int64_t number = 4; number <= 6; ++number) {
      exchange.input.copy_(integers(exchange.input.numel(), group.rank(), at::kFloat) * number);
      graph.replay();
      exchange.expect_result(number);
    }
    exchange.enqueue();
    exchange.expect_result(6);
  });
}

/// The exceptions of all processes but number 1 are PeerLostErrors with `text` in the message.
void expect_lost(const Processes& processes, const std::string& text) {
  for (size_t rank = 0; rank < all_gpus().size(); ++rank) {
    if (rank == 1) continue;
    ASSERT_TRUE(processes.failure(rank)) << "process " << rank;
    try {
      std::rethrow_exception(processes.failure(rank));
    } catch (const PeerLostError& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  }
}

/// Each GPU and a new group work as if nothing had been.
void expect_usable() {
  on_all([](Group& group, at::Device device) {
    const at::Tensor ones = at::ones({1000}, at::TensorOptions(at::kFloat).device(device));
    group.all_reduce(ones, Reduce::kSum);
    EXPECT_EQ(group.read(ones.sum()).item<double>(), 1000.0 * group.size());
  });
}

/// Process 1 leaves the others waiting until one of them has given up.
struct Absence {
  std::promise<void> promise;
  std::shared_future<void> over = promise.get_future().share();
  std::once_flag once;

  void end() {
    std::call_once(once, [this] { promise.set_value(); });
  }
};

TEST_F(GpuNccl, OneThatNeverCallsEndsTheOthersWithinTheTimeout) {
  Absence absence;
  Processes processes(all_gpus(), {.silence_s = 6, .timeout_s = 2});
  processes.run([&](Group& group, at::Device device) {
    const at::Tensor tensor = at::ones({1000}, at::TensorOptions(at::kFloat).device(device));
    group.all_reduce(tensor, Reduce::kSum);
    group.read(tensor);
    if (group.rank() == 1) {
      absence.over.wait_for(std::chrono::seconds(60));
      return;
    }
    const auto start = Clock::now();
    try {
      group.all_reduce(tensor, Reduce::kSum);
      group.read(tensor);
    } catch (const PeerLostError&) {
      EXPECT_LT(seconds_since(start), 10);
      EXPECT_THROW(group.agree(0), PeerLostError) << "from now on";
      absence.end();
      throw;
    }
    absence.end();
  });
  expect_lost(processes, "process 1");
  expect_usable();
}

/// The communicator is aborted while a graph that contains collectives exists.
TEST_F(GpuNccl, ReplayedGraphIsAbortedToo) {
  Absence absence;
  Processes processes(all_gpus(), {.silence_s = 6, .timeout_s = 2});
  const auto start = Clock::now();
  processes.run([&](Group& group, at::Device device) {
    const c10::cuda::CUDAStreamGuard on_stream(
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
    StepExchange exchange(group, device, 100003);
    for (int64_t number = 0; number < 3; ++number) exchange.enqueue();
    group.read(exchange.flat);
    at::cuda::CUDAGraph graph;
    record(graph, exchange);
    graph.replay();
    group.read(exchange.flat);
    if (group.rank() == 1) {
      absence.over.wait_for(std::chrono::seconds(60));
      return;
    }
    try {
      graph.replay();
      group.read(exchange.flat);
      group.agree(0);  // the collective may end when another process gives up before this one
    } catch (const PeerLostError&) {
      absence.end();
      throw;
    }
    absence.end();
  });
  expect_lost(processes, "process 1");
  EXPECT_LT(seconds_since(start), 30);
  expect_usable();
}

TEST_F(GpuNccl, FailureOfOneReachesThoseThatWaitForTheirGpu) {
  Processes processes(all_gpus());
  const auto start = Clock::now();
  const std::vector<std::string> messages = processes.run([](Group& group, at::Device device) {
    const at::Tensor tensor = at::ones({1000}, at::TensorOptions(at::kFloat).device(device));
    group.all_reduce(tensor, Reduce::kSum);
    group.read(tensor);
    if (group.rank() == 1) throw DataError("the shard is damaged");
    group.all_reduce(tensor, Reduce::kSum);
    group.read(tensor);
  });
  EXPECT_EQ(messages[1], "the shard is damaged");
  expect_lost(processes, "the shard is damaged");
  EXPECT_LT(seconds_since(start), 20);
  expect_usable();
}

/// Needs one GPU only.
TEST(GpuNcclPeers, TwoOnOneGpuAreRefused) {
  if (ops::gpu_count() < 1) GTEST_SKIP() << "no CUDA device";
  const at::Device gpu(at::kCUDA, 0);
  Processes processes({gpu, gpu});
  for (const std::string& message :
       processes.run([](Group&, at::Device) { ADD_FAILURE() << "connected"; })) {
    EXPECT_EQ(message.rfind("process 0 and process 1 use the same GPU (", 0), 0u) << message;
  }
}

}  // namespace
}  // namespace stablemask::dist
