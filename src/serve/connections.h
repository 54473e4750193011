#pragma once

#include <httplib.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace stablemask::serve {

/// A thread for each connection, up to a limit. Connections beyond it go to one more thread, which
/// is to answer that the server is overloaded; while many of them wait, no more are accepted, so
/// that further ones wait in the system's queue.
class ConnectionPool : public httplib::TaskQueue {
 public:
  /// void in older releases of httplib, bool in newer ones.
  using Enqueued =
      decltype(std::declval<httplib::TaskQueue&>().enqueue(std::declval<std::function<void()>>()));

  explicit ConnectionPool(size_t limit);

  Enqueued enqueue(std::function<void()> connection) override;
  void shutdown() override;

  /// Whether the calling thread handles a connection beyond the limit.
  static bool is_refusing();

 private:
  struct Queue {
    std::deque<std::function<void()>> connections;
    std::condition_variable come;
    size_t open = 0;  ///< connections that wait here or are handled
  };

  void add(std::function<void()> connection);
  void push(Queue& queue, std::function<void()> connection);
  /// Whether there is a thread for one more connection.
  bool has_thread();
  /// A thread: handles the connections of a queue until shutdown.
  void work(Queue& queue);

  const size_t limit_;
  std::mutex mutex_;
  Queue served_, refused_;
  std::condition_variable refused_one_;
  std::vector<std::thread> threads_;
  std::thread refuser_;
  bool ends_ = false;
};

/// The descriptor of this process's connection from that peer (httplib gives handlers none); −1
/// when there is none.
int find_connection(const std::string& address, int port);

/// Whether the peer has closed its side of a connection, or the connection is broken.
bool peer_left(int descriptor);

/// shutdown(2) of each connection that this process accepted on `port`.
void shut_down_connections(int port, int how);

}  // namespace stablemask::serve
