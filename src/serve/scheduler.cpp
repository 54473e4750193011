#include "src/serve/scheduler.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "stablemask/base/error.h"

namespace stablemask::serve {

void Channel::push(Event event) {
  bool wakes = each_;
  {
    const std::lock_guard lock(mutex_);
    if (!event.draw) {
      --left_;
      wakes = wakes || left_ == 0;
    }
    events_.push_back(std::move(event));
  }
  if (wakes) come_.notify_one();
}

std::vector<Event> Channel::take(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  come_.wait_for(lock, limit, [&] { return !events_.empty() && (each_ || left_ == 0); });
  return std::exchange(events_, {});
}

void Channel::drop_all() {
  for (auto& wanted : wanted_) wanted = false;
}

Scheduler::Submitted Scheduler::submit(std::vector<Text> texts,
                                       const std::shared_ptr<Channel>& channel) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return Submitted::kClosed;
    std::erase_if(waiting_, [](const Waiting& text) { return !text.channel->wanted(text.index); });
    if (waiting_.size() + texts.size() > static_cast<size_t>(options_.queue)) {
      return Submitted::kFull;
    }
    const Clock::time_point now = Clock::now();
    for (size_t i = 0; i < texts.size(); ++i) {
      waiting_.push_back({std::move(texts[i]), channel, i, now});
    }
  }
  come_.notify_one();
  return Submitted::kTaken;
}

void Scheduler::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

int64_t Scheduler::waiting() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(waiting_.size());
}

void Scheduler::run(const std::function<bool()>& leave) {
  try {
    while (!leave()) {
      if (texts_.empty()) wait_for_texts();
      cancel_unwanted();
      begin_texts();
      if (!texts_.empty()) engine_.step();
    }
  } catch (const std::exception& error) {
    end_all(End::kFailed, error.what());
    throw;
  }
  end_all(End::kCancelled, "");
}

void Scheduler::wait_for_texts() {
  std::unique_lock lock(mutex_);
  come_.wait_for(lock, std::chrono::milliseconds(20), [&] { return !waiting_.empty(); });
}

void Scheduler::cancel_unwanted() {
  std::vector<uint64_t> numbers;  // `done` may be called by cancel
  for (const auto& [key, text] : texts_) {
    if (!text.channel->wanted(text.index)) numbers.push_back(text.number);
  }
  for (const uint64_t number : numbers) engine_.cancel(number);
}

void Scheduler::begin_texts() {
  while (running_ < options_.batch) {
    Waiting next;
    {
      const std::lock_guard lock(mutex_);
      if (waiting_.empty()) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    if (next.channel->wanted(next.index)) begin(std::move(next));
  }
}

void Scheduler::begin(Waiting waiting) {
  const uint64_t key = ++last_;
  const std::shared_ptr<Channel> channel = waiting.channel;
  const size_t index = waiting.index;
  Text text = std::move(waiting.text);
  text.emit = [this, channel, index, since = waiting.since, first = true](Draw draw) mutable {
    if (!channel->wanted(index)) return false;
    if (std::exchange(first, false)) {
      metrics_.first_token(std::chrono::duration<double>(Clock::now() - since).count());
    }
    metrics_.generated_token();
    channel->push({index, std::move(draw)});
    return true;
  };
  text.done = [this, key, channel, index](End end, const std::string& error) {
    texts_.erase(key);
    running_ = static_cast<int64_t>(texts_.size());
    channel->push({index, {}, end, error});
  };
  texts_[key] = {0, channel, index};
  running_ = static_cast<int64_t>(texts_.size());
  const auto prompt = static_cast<int64_t>(text.prompt.size());
  try {
    texts_[key].number = engine_.add(std::move(text));
    metrics_.prompt_tokens(prompt);
  } catch (const ConfigError& error) {
    texts_.erase(key);
    running_ = static_cast<int64_t>(texts_.size());
    channel->push({index, {}, End::kFailed, error.what()});
  }
}

void Scheduler::end_all(End end, const std::string& error) {
  std::deque<Waiting> waiting;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    waiting.swap(waiting_);
  }
  for (const Waiting& text : waiting) text.channel->push({text.index, {}, end, error});
  for (const auto& [key, text] : texts_) text.channel->push({text.index, {}, end, error});
  texts_.clear();
  running_ = 0;
}

}  // namespace stablemask::serve
