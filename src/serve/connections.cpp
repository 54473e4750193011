#include "src/serve/connections.h"

#include <dirent.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <system_error>

namespace stablemask::serve {
namespace {

constexpr size_t kMaxRefused = 64;

thread_local bool refusing = false;

/// Address and port of a socket; port −1 for what is no internet socket.
struct Endpoint {
  std::string address;
  int port = -1;
};

/// `name` is ::getsockname or ::getpeername.
template <class Name>
Endpoint endpoint(int descriptor, const Name& name) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  if (name(descriptor, address, &size) != 0) return {};
  if (storage.ss_family != AF_INET && storage.ss_family != AF_INET6) return {};
  std::array<char, NI_MAXHOST> host = {};
  std::array<char, NI_MAXSERV> service = {};
  if (::getnameinfo(address, size, host.data(), host.size(), service.data(), service.size(),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return {};
  }
  return {host.data(), std::atoi(service.data())};
}

/// Calls `visit` with each descriptor of this process until it returns true.
template <class Visit>
void visit_descriptors(const Visit& visit) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/fd"), ::closedir);
  if (!folder) return;
  while (const dirent* entry = ::readdir(folder.get())) {
    if (entry->d_name[0] != '.' && visit(std::atoi(entry->d_name))) return;
  }
}

}  // namespace

ConnectionPool::ConnectionPool(size_t limit) : limit_(limit) {
  refuser_ = std::thread([this] { work(refused_); });
}

ConnectionPool::Enqueued ConnectionPool::enqueue(std::function<void()> connection) {
  add(std::move(connection));
  return static_cast<Enqueued>(true);
}

void ConnectionPool::add(std::function<void()> connection) {
  std::unique_lock lock(mutex_);
  if (has_thread()) {
    push(served_, std::move(connection));
    return;
  }
  refused_one_.wait(lock, [&] { return refused_.open < kMaxRefused || ends_; });
  push(refused_, std::move(connection));
}

void ConnectionPool::push(Queue& queue, std::function<void()> connection) {
  queue.connections.push_back(std::move(connection));
  ++queue.open;
  queue.come.notify_one();
}

bool ConnectionPool::has_thread() {
  if (served_.open < threads_.size()) return true;
  if (threads_.size() == limit_) return false;
  try {
    threads_.emplace_back([this] { work(served_); });
    return true;
  } catch (const std::system_error&) {  // the system has no more threads
    return false;
  }
}

void ConnectionPool::work(Queue& queue) {
  refusing = &queue == &refused_;
  std::unique_lock lock(mutex_);
  while (true) {
    queue.come.wait(lock, [&] { return !queue.connections.empty() || ends_; });
    if (queue.connections.empty()) return;
    const std::function<void()> connection = std::move(queue.connections.front());
    queue.connections.pop_front();
    lock.unlock();
    connection();
    lock.lock();
    --queue.open;
    if (refusing) refused_one_.notify_one();
  }
}

void ConnectionPool::shutdown() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  served_.come.notify_all();
  refused_.come.notify_all();
  refused_one_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  refuser_.join();
}

bool ConnectionPool::is_refusing() { return refusing; }

int find_connection(const std::string& address, int port) {
  int found = -1;
  visit_descriptors([&](int descriptor) {
    const Endpoint peer = endpoint(descriptor, ::getpeername);
    if (peer.port == port && peer.address == address) found = descriptor;
    return found >= 0;
  });
  return found;
}

bool peer_left(int descriptor) {
  pollfd watched = {descriptor, POLLRDHUP, 0};
  return ::poll(&watched, 1, 0) > 0 && (watched.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void shut_down_connections(int port, int how) {
  visit_descriptors([&](int descriptor) {
    const bool ours = endpoint(descriptor, ::getsockname).port == port &&
                      endpoint(descriptor, ::getpeername).port >= 0;
    if (ours) ::shutdown(descriptor, how);
    return false;
  });
}

}  // namespace stablemask::serve
