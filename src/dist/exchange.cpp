#include "src/dist/exchange.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace stablemask::dist {
namespace {

/// A TCPStore takes 8 MiB at most, and scans a value anew whenever more of it has come.
constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr char kPostedKey[] = "posted";  ///< how many rounds have been posted by how many processes

/// Begins the first piece of a value.
struct Header {
  int64_t round, bytes;  ///< of the whole value, without the header
};

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

std::string Exchange::key(int64_t round, int64_t rank, int64_t part, size_t piece) const {
  return "value/" + std::to_string(round % 2) + "/" + std::to_string(rank) + "/" +
         std::to_string(part) + "/" + std::to_string(piece);
}

void Exchange::post(int64_t part, ByteView value) {
  const Header header = {round_, static_cast<int64_t>(value.size())};
  Bytes piece(sizeof(header));
  std::memcpy(piece.data(), &header, sizeof(header));
  size_t begin = 0;
  for (size_t number = 0; number == 0 || begin < value.size(); ++number) {
    const size_t count = std::min(kPieceBytes - piece.size(), value.size() - begin);
    const ByteView slice = value.slice(begin, count);
    piece.insert(piece.end(), slice.begin(), slice.end());
    const std::string name = key(round_, rank_, part, number);
    ask_store(*watchdog_, [&] { store_->set(name, piece); });
    if (number > 0) pieces_[round_ % 2].push_back(name);
    piece.clear();
    begin += count;
  }
}

void Exchange::meet() {
  const Watchdog::Waiting waiting(*watchdog_);
  // After the values, on the same connection: the server has them before it counts this process.
  const int64_t all = (round_ + 1) * size_;
  const int64_t posted = ask_store(*watchdog_, [&] { return store_->add(kPostedKey, 1); });
  if (posted < all) {
    wait_for_store(*watchdog_, [&] { return store_->add(kPostedKey, 0) >= all; });
  }
  ++round_;
  // The large values of the round before have been read by all.
  std::vector<std::string>& read = pieces_[round_ % 2];
  ask_store(*watchdog_, [&] {
    for (const std::string& name : read) store_->deleteKey(name);
  });
  read.clear();
}

Bytes Exchange::get(int64_t rank, int64_t part) {
  Bytes value = ask_store(*watchdog_, [&] { return store_->get(key(round_ - 1, rank, part, 0)); });
  get_rest(rank, part, value);
  return value;
}

std::vector<Bytes> Exchange::get_others(int64_t part) {
  std::vector<std::string> keys;
  for (int64_t rank = 0; rank < size_; ++rank) {
    if (rank != rank_) keys.push_back(key(round_ - 1, rank, part, 0));
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
  Header header = {};
  if (value.size() >= sizeof(header)) std::memcpy(&header, value.data(), sizeof(header));
  TORCH_CHECK(value.size() >= sizeof(header) && header.round == round_ - 1,
              watchdog_->options().names[rank], " has made another call in round ", round_ - 1);
  value.erase(value.begin(), value.begin() + sizeof(header));
  for (size_t number = 1; static_cast<int64_t>(value.size()) < header.bytes; ++number) {
    const Bytes piece =
        ask_store(*watchdog_, [&] { return store_->get(key(round_ - 1, rank, part, number)); });
    TORCH_CHECK(!piece.empty(), "a piece of a value in the store is empty");
    value.insert(value.end(), piece.begin(), piece.end());
  }
}

}  // namespace stablemask::dist
