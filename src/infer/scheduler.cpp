#include "src/infer/scheduler.h"

#include <algorithm>
#include <utility>

namespace stablemask::infer {

Scheduler::Scheduler(int64_t rows) {
  for (int64_t row = rows; row > 0; --row) free_rows_.push_back(row - 1);
}

uint64_t Scheduler::add(GenerateRequest request) {
  auto sequence = std::make_shared<Sequence>();
  sequence->number = ++last_number_;
  sequence->last = request.prompt.back();
  sequence->request = std::move(request);
  waiting_.push_back(std::move(sequence));
  return last_number_;
}

void Scheduler::cancel(uint64_t number) {
  const auto mark = [number](const SequencePtr& sequence) {
    if (sequence->number == number) sequence->cancelled = true;
  };
  std::ranges::for_each(waiting_, mark);
  std::ranges::for_each(running_, mark);
}

void Scheduler::begin() {
  std::vector<SequencePtr> cancelled;
  const auto collect = [&](const SequencePtr& sequence) {
    if (sequence->cancelled) cancelled.push_back(sequence);
  };
  std::ranges::for_each(running_, collect);
  std::ranges::for_each(waiting_, collect);
  for (const SequencePtr& sequence : cancelled) end(sequence, {Finish::kCancelled, {}});
  while (!waiting_.empty() && !free_rows_.empty()) {
    waiting_.front()->row = free_rows_.back();
    free_rows_.pop_back();
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

std::vector<SequencePtr> Scheduler::to_prefill() const {
  std::vector<SequencePtr> found;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->prefilled()) found.push_back(sequence);
  }
  return found;
}

std::vector<SequencePtr> Scheduler::to_decode() const {
  std::vector<SequencePtr> found;
  for (const SequencePtr& sequence : running_) {
    const bool complete = sequence->launched == sequence->request.settings.max_tokens;
    if (sequence->prefilled() && !complete) found.push_back(sequence);
  }
  return found;
}

void Scheduler::deliver(const SequencePtr& sequence, const DrawnToken& token) {
  if (sequence->ended || sequence->cancelled) return;
  ++sequence->drawn;
  sequence->last = token.id;
  const GenerateRequest& request = sequence->request;
  const bool goes_on = !request.emit || request.emit(token);
  if (sequence->cancelled) return end(sequence, {Finish::kCancelled, {}});
  if (!goes_on || std::ranges::find(request.stop_ids, token.id) != request.stop_ids.end()) {
    return end(sequence, {Finish::kStop, {}});
  }
  if (sequence->drawn == request.settings.max_tokens) end(sequence, {Finish::kLength, {}});
}

void Scheduler::end(const SequencePtr& sequence, const Outcome& outcome) {
  // The list that the argument may refer into changes.
  const SequencePtr kept = sequence;  // NOLINT(performance-unnecessary-copy-initialization)
  kept->ended = true;
  if (kept->row >= 0) {
    free_rows_.push_back(kept->row);
    std::erase(running_, kept);
  } else {
    std::erase(waiting_, kept);
  }
  if (kept->request.done) kept->request.done(outcome);
}

}  // namespace stablemask::infer
