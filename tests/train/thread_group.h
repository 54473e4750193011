#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <barrier>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/dist/lone_group.h"

/// Threads as the processes of a group, in memory.
namespace stablemask::testing_processes {

/// What all threads of a group share.
struct Meeting {
  explicit Meeting(int64_t count) : barrier(count), tensors(count), numbers(count) {}
  std::barrier<> barrier;
  std::vector<at::Tensor> tensors;  ///< by rank
  std::vector<int64_t> numbers;     ///< by rank
};

/// Reductions add in the order of the ranks. What the interface leaves unspecified is made NaN.
class ThreadGroup : public LoneGroup {
 public:
  ThreadGroup(int64_t rank, std::shared_ptr<Meeting> meeting)
      : rank_(rank), meeting_(std::move(meeting)) {}

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return static_cast<int64_t>(meeting_->tensors.size()); }

  void all_reduce(const at::Tensor& tensor, dist::Reduce op) override {
    tell("all_reduce", tensor);
    tensor.copy_(reduced(tensor, op));
  }
  void reduce_scatter(const at::Tensor& flat, dist::Reduce op) override {
    tell("reduce_scatter", flat);
    const at::Tensor own = part(reduced(flat, op), rank_);
    // Not NaN where every process has 0: padding has to stay 0.
    flat.copy_(at::where(flat == 0, 0.0, NAN));
    part(flat, rank_).copy_(own);
  }
  void all_gather(const at::Tensor& flat) override {
    tell("all_gather", flat);
    exchange(part(flat, rank_));
    for (int64_t rank = 0; rank < size(); ++rank) part(flat, rank).copy_(meeting_->tensors[rank]);
    meeting_->barrier.arrive_and_wait();
  }
  at::Tensor read(const at::Tensor& tensor) override { return tensor.cpu().clone(); }
  int64_t agree(int64_t decision) override {
    meeting_->numbers[rank_] = decision;
    meeting_->barrier.arrive_and_wait();
    const int64_t largest = *std::max_element(meeting_->numbers.begin(), meeting_->numbers.end());
    meeting_->barrier.arrive_and_wait();
    return largest;
  }

  /// Called at the beginning of each collective of this process.
  std::function<void(const std::string& call, const at::Tensor& tensor)> on_call;

 private:
  void tell(const char* call, const at::Tensor& tensor) const {
    ASSERT_TRUE(tensor.is_contiguous()) << call;
    if (on_call) on_call(call, tensor);
  }
  at::Tensor part(const at::Tensor& flat, int64_t rank) const {
    EXPECT_EQ(flat.numel() % size(), 0);
    return flat.narrow(0, rank * flat.numel() / size(), flat.numel() / size());
  }
  /// Afterwards meeting_->tensors is complete, until the next wait at the barrier.
  void exchange(const at::Tensor& tensor) const {
    meeting_->tensors[rank_] = tensor.clone();
    meeting_->barrier.arrive_and_wait();
    for (const at::Tensor& other : meeting_->tensors) {
      EXPECT_EQ(other.sizes(), tensor.sizes()) << "calls of the processes that do not match";
    }
  }
  at::Tensor reduced(const at::Tensor& tensor, dist::Reduce op) const {
    exchange(tensor);
    at::Tensor result = meeting_->tensors[0].clone();
    for (int64_t rank = 1; rank < size(); ++rank) {
      const at::Tensor& other = meeting_->tensors[rank];
      if (op == dist::Reduce::kSum) {
        result.add_(other);
      } else {
        at::maximum_out(result, result, other);
      }
    }
    meeting_->barrier.arrive_and_wait();
    return result;
  }

  const int64_t rank_;
  const std::shared_ptr<Meeting> meeting_;
};

/// Runs `work` in `count` threads, each with its group, and throws the first exception.
inline void run_processes(int64_t count,
                          const std::function<void(const std::shared_ptr<ThreadGroup>&)>& work) {
  const auto meeting = std::make_shared<Meeting>(count);
  std::vector<std::exception_ptr> errors(count);
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        work(std::make_shared<ThreadGroup>(rank, meeting));
      } catch (...) {
        errors[rank] = std::current_exception();
        meeting->barrier.arrive_and_drop();  // so that the others end, with wrong numbers
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace stablemask::testing_processes
