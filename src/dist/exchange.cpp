#include "src/dist/exchange.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace stablemask::dist {
namespace {

/// A TCPStore takes 8 MiB at most, and scans a value anew whenever more of it has come.
constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kHeaderBytes = sizeof(uint64_t);  ///< of the first piece: size of the whole value

}  // namespace

void Backoff::sleep() {
  std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(next_us_));
  next_us_ = std::min(next_us_ * 1.5, most_us_);
}

void wait_for_store(Watchdog& watchdog, const std::function<bool()>& ready) {
  Backoff backoff(/*most_ms=*/5);
  while (!ask_store(watchdog, ready)) {
    watchdog.check();
    backoff.sleep();
  }
}

Exchange::Exchange(StorePtr store, std::shared_ptr<Watchdog> watchdog)
    : store_(std::move(store)),
      watchdog_(std::move(watchdog)),
      rank_(watchdog_->options().rank),
      size_(static_cast<int64_t>(watchdog_->options().names.size())) {}

std::string Exchange::key(int64_t round, const std::string& name) const {
  return "round/" + std::to_string(round) + "/" + name;
}

std::string Exchange::piece_key(int64_t rank, int64_t part, size_t piece) const {
  return std::to_string(rank) + "/" + std::to_string(part) + "/" + std::to_string(piece);
}

void Exchange::post(int64_t part, ByteView value) {
  const uint64_t bytes = value.size();
  Bytes piece(kHeaderBytes);
  std::memcpy(piece.data(), &bytes, kHeaderBytes);
  size_t begin = 0;
  for (size_t number = 0; number == 0 || begin < value.size(); ++number) {
    const size_t count = std::min(kPieceBytes - piece.size(), value.size() - begin);
    const ByteView slice = value.slice(begin, count);
    piece.insert(piece.end(), slice.begin(), slice.end());
    posted_.push_back(key(round_, piece_key(rank_, part, number)));
    ask_store(*watchdog_, [&] { store_->set(posted_.back(), piece); });
    piece.clear();
    begin += count;
  }
}

void Exchange::meet() {
  const Watchdog::Waiting waiting(*watchdog_);
  const std::string all_posted = key(round_, "all");
  ask_store(*watchdog_, [&] {
    // After the values, on the same connection: the server has them before it counts this process.
    if (store_->add(key(round_, "count"), 1) == size_) store_->set(all_posted, Bytes{1});
  });
  wait_for_store(*watchdog_, [&] { return store_->check({all_posted}); });
  // All have come to this round, so all have read the one before.
  if (round_ > 0) clean(round_ - 1);
  read_ = std::move(posted_);
  posted_.clear();
  ++round_;
}

void Exchange::clean(int64_t round) {
  if (rank_ == 0) {
    read_.push_back(key(round, "count"));
    read_.push_back(key(round, "all"));
  }
  ask_store(*watchdog_, [&] {
    for (const std::string& name : read_) store_->deleteKey(name);
  });
}

Bytes Exchange::get(int64_t rank, int64_t part) {
  Bytes value =
      ask_store(*watchdog_, [&] { return store_->get(key(round_ - 1, piece_key(rank, part, 0))); });
  get_rest(rank, part, value);
  return value;
}

std::vector<Bytes> Exchange::get_others(int64_t part) {
  std::vector<std::string> keys;
  for (int64_t rank = 0; rank < size_; ++rank) {
    if (rank != rank_) keys.push_back(key(round_ - 1, piece_key(rank, part, 0)));
  }
  if (keys.empty()) return {Bytes()};
  std::vector<Bytes> values = ask_store(*watchdog_, [&] { return store_->multiGet(keys); });
  values.insert(values.begin() + rank_, Bytes());
  for (int64_t rank = 0; rank < size_; ++rank) {
    if (rank != rank_) get_rest(rank, part, values[rank]);
  }
  return values;
}

/// `value` is the first piece; afterwards the whole value.
void Exchange::get_rest(int64_t rank, int64_t part, Bytes& value) {
  uint64_t bytes = 0;
  TORCH_CHECK(value.size() >= kHeaderBytes, "a value in the store is too short");
  std::memcpy(&bytes, value.data(), kHeaderBytes);
  value.erase(value.begin(), value.begin() + kHeaderBytes);
  for (size_t number = 1; value.size() < bytes; ++number) {
    const Bytes piece = ask_store(
        *watchdog_, [&] { return store_->get(key(round_ - 1, piece_key(rank, part, number))); });
    TORCH_CHECK(!piece.empty(), "a piece of a value in the store is empty");
    value.insert(value.end(), piece.begin(), piece.end());
  }
}

}  // namespace stablemask::dist
