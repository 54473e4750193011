// Real processes, which meet in a TCPStore that process 0 serves.
#include "stablemask/dist/connect.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "stablemask/base/error.h"
#include "stablemask/base/stop.h"
#include "tests/dist/free_port.h"

namespace stablemask {
namespace {

using dist::ConnectOptions;
using GroupPtr = std::shared_ptr<dist::Group>;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::free_port;

ConnectOptions options_of(int64_t rank, int64_t size, int64_t port, double silence_s = 1.5) {
  ConnectOptions options;
  options.world.rank = rank;
  options.world.size = size;
  options.world.address = "127.0.0.1";
  options.world.port = port;
  options.silence_s = silence_s;
  options.timeout_s = 30;
  options.end_process = true;
  return options;
}

/// A process that this test has forked, which has no threads of LibTorch at that time.
class Process {
 public:
  explicit Process(const std::function<void()>& body) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(ends[1], STDERR_FILENO);
      ::close(ends[0]);
      ::close(ends[1]);
      ::_exit(run(body));
    }
    ::close(ends[1]);
    output_ = ends[0];
  }
  ~Process() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      finish();
    }
    ::close(output_);
  }
  Process(Process&& other) noexcept
      : pid_(std::exchange(other.pid_, 0)), output_(std::exchange(other.output_, -1)) {}

  void signal(int number) const { ::kill(pid_, number); }

  /// Waits for its end. Returns its exit code, or minus the signal that ended it.
  int finish() {
    if (pid_ == 0) return code_;
    char buffer[4096];
    for (ssize_t count; (count = ::read(output_, buffer, sizeof(buffer))) > 0;) {
      text_.append(buffer, count);
    }
    int status = 0;
    ::waitpid(std::exchange(pid_, 0), &status, 0);
    code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return code_;
  }
  /// Its standard error, after finish().
  const std::string& text() const { return text_; }

 private:
  static int run(const std::function<void()>& body) {
    try {
      body();
      return 0;
    } catch (const Error& error) {
      std::fprintf(stderr, "stablemask: error: %s\n", error.what());
      return static_cast<int>(error.code());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "unexpected: %s\n", error.what());
      return 1;
    }
  }

  pid_t pid_ = 0;
  int output_ = -1, code_ = 0;
  std::string text_;
};

void expect_end(Process& process, int code, const std::string& text) {
  EXPECT_EQ(process.finish(), code) << process.text();
  EXPECT_NE(process.text().find(text), std::string::npos)
      << "\"" << process.text() << "\" lacks \"" << text << "\"";
  if (code == 0) return;
  EXPECT_EQ(std::count(process.text().begin(), process.text().end(), '\n'), 1) << process.text();
}

/// `n` processes that connect and then call `run(group)`; an exception fails the group.
std::vector<Process> start(int64_t n, const std::function<void(const GroupPtr&)>& run,
                           double silence_s = 1.5) {
  const int64_t port = free_port();
  std::vector<Process> processes;
  for (int64_t rank = 0; rank < n; ++rank) {
    processes.emplace_back([&run, rank, n, port, silence_s] {
      const GroupPtr group = dist::connect(options_of(rank, n, port, silence_s));
      try {
        run(group);
      } catch (const std::exception& error) {
        group->fail(error.what());
        throw;
      }
    });
  }
  return processes;
}

/// Tells the test that processes are where it wants them.
class Arrivals {
 public:
  Arrivals() { EXPECT_EQ(::pipe(ends_), 0); }
  ~Arrivals() {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  void arrive() const { EXPECT_EQ(::write(ends_[1], ".", 1), 1); }
  void wait_for(int64_t count) const {
    constexpr int kWait_ms = 60000;
    char byte;
    for (; count > 0; --count) {
      pollfd ready = {ends_[0], POLLIN, 0};
      ASSERT_EQ(::poll(&ready, 1, kWait_ms), 1) << count << " processes have not arrived";
      ASSERT_EQ(::read(ends_[0], &byte, 1), 1);
    }
  }

 private:
  int ends_[2];
};

/// Takes part in collectives for far longer than a test lasts.
void train(const GroupPtr& group, const Arrivals& arrivals) {
  const at::Tensor tensor = at::ones({1000});
  group->agree(0);
  arrivals.arrive();
  for (int step = 0; step < 3000; ++step) {
    group->all_reduce(tensor.fill_(1), dist::Reduce::kSum);
    std::this_thread::sleep_for(milliseconds(10));
  }
}

TEST(Connect, OneProcessNeedsNoStore) {
  const GroupPtr group = dist::connect({});
  EXPECT_EQ(group->size(), 1);
}

TEST(Connect, ProcessesMeetAndReduce) {
  std::vector<Process> processes = start(3, [](const GroupPtr& group) {
    const at::Tensor tensor = at::full({100000}, group->rank() + 1.0, at::kFloat);
    group->all_reduce(tensor, dist::Reduce::kSum);
    if (!tensor.equal(at::full({100000}, 6.0f))) throw DataError("wrong sum");
    // More than the server takes as one value.
    const at::Tensor large = at::full({3 << 20}, group->rank() + 1.0, at::kFloat);
    group->broadcast(large, 2);
    if (!large.equal(at::full({3 << 20}, 3.0f))) throw DataError("wrong tensor");
    if (group->agree(group->rank()) != 2) throw DataError("wrong decision");
    if (group->share(std::to_string(group->rank()))[1] != "1") throw DataError("wrong text");
    const std::string made = group->once("k", [&] { return std::to_string(group->rank()); });
    if (group->share(made)[0] != made) throw DataError("made twice");
  });
  for (Process& process : processes) {
    expect_end(process, 0, "");
    EXPECT_EQ(process.text(), "");
  }
}

/// Three processes that train; `signalled` gets a signal.
struct Trio {
  Trio(size_t signalled_process, const Arrivals& arrivals)
      : signalled(signalled_process),
        processes(start(3, [&](const GroupPtr& group) { train(group, arrivals); })) {
    arrivals.wait_for(3);  // one trio at a time: each connection asks the name server
  }

  /// The others end and name it.
  void expect_others_to_end() {
    for (size_t rank = 0; rank < processes.size(); ++rank) {
      if (rank == signalled) continue;
      expect_end(processes[rank], 6, "process " + std::to_string(signalled) + " (");
    }
  }

  size_t signalled;
  std::vector<Process> processes;
};

TEST(Connect, ALostProcessIsNoticedByAll) {
  const Arrivals arrivals;
  // Process 0 serves the store.
  Trio killed(2, arrivals), killed_server(0, arrivals), stopped(1, arrivals);
  Trio stopped_server(0, arrivals);
  const auto begin = steady_clock::now();
  for (Trio* trio : {&killed, &killed_server}) trio->processes[trio->signalled].signal(SIGKILL);
  for (Trio* trio : {&stopped, &stopped_server}) trio->processes[trio->signalled].signal(SIGSTOP);
  for (Trio* trio : {&killed, &killed_server, &stopped, &stopped_server}) {
    trio->expect_others_to_end();
  }
  EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(10));
  // Those that go on find that the others have ended.
  for (Trio* trio : {&stopped, &stopped_server}) {
    trio->processes[trio->signalled].signal(SIGCONT);
    expect_end(trio->processes[trio->signalled], 6, "");
  }
}

TEST(Connect, AFailureIsToldWithItsReason) {
  const Arrivals arrivals;
  for (const int64_t failing : {1, 0}) {
    std::vector<Process> processes = start(3, [&](const GroupPtr& group) {
      group->agree(0);
      if (group->rank() == failing) throw DataError("shard 7 is damaged");
      train(group, arrivals);
    });
    for (int64_t rank = 0; rank < 3; ++rank) {
      if (rank == failing) {
        expect_end(processes[rank], 3, "shard 7 is damaged");
      } else {
        expect_end(processes[rank], 6, ") ended: shard 7 is damaged");
      }
    }
  }
}

TEST(Connect, AProcessThatDoesNotLookIsEnded) {
  std::vector<Process> processes = start(2, [](const GroupPtr& group) {
    group->agree(0);
    if (group->rank() == 1) throw DataError("disk");
    std::this_thread::sleep_for(std::chrono::seconds(60));
  });
  expect_end(processes[1], 3, "disk");
  expect_end(processes[0], 6, "process 1 (");
}

TEST(Connect, ProcessesLeaveAtDifferentTimes) {
  std::vector<std::vector<Process>> pairs;
  for (const int64_t last : {0, 1}) {
    const auto run = [last](const GroupPtr& group) {
      group->agree(0);
      if (group->rank() == last) std::this_thread::sleep_for(milliseconds(1200));
    };
    pairs.push_back(start(2, run, /*silence_s=*/0.8));
  }
  for (auto& pair : pairs) {
    for (Process& process : pair) expect_end(process, 0, "");
  }
}

TEST(Connect, TwoProcessesOfOneNumberAreRefused) {
  const int64_t port = free_port();
  std::vector<Process> processes;
  for (const int64_t rank : {0, 1, 1}) {
    processes.emplace_back([&, rank] { dist::connect(options_of(rank, 3, port)); });
  }
  for (Process& process : processes) expect_end(process, 2, "have the same number");
}

TEST(Connect, DifferentSizesAreRefused) {
  const int64_t port = free_port();
  std::vector<Process> processes;
  for (const int64_t rank : {0, 1}) {
    processes.emplace_back([&, rank] { dist::connect(options_of(rank, 3 + rank, port)); });
  }
  for (Process& process : processes) expect_end(process, 2, "; start all with the same WORLD_SIZE");
}

TEST(Connect, AProcessThatDoesNotComeIsNamed) {
  Process process([] {
    ConnectOptions options = options_of(0, 3, free_port());
    options.timeout_s = 0.3;
    dist::connect(options);
  });
  expect_end(process, 6, "processes 1, 2 of 3 have not come within 0.3 s");
}

TEST(Connect, AStoreThatIsNotThereIsNamed) {
  const int64_t port = free_port();
  Process process([&] {
    ConnectOptions options = options_of(1, 2, port);
    options.timeout_s = 0.3;
    dist::connect(options);
  });
  expect_end(process, 2,
             "cannot reach the store at 127.0.0.1:" + std::to_string(port) +
                 " within 0.3 s: Connection refused");
}

/// A server that accepts connections and says nothing.
class SilentServer {
 public:
  SilentServer() : socket_(::socket(AF_INET6, SOCK_STREAM, 0)) {
    sockaddr_in6 address = {};
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_any;
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(socket_, 10), 0);
    ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    port = ntohs(address.sin6_port);
  }
  ~SilentServer() { ::close(socket_); }
  int64_t port;

 private:
  int socket_;
};

TEST(Connect, APortInUseIsNamed) {
  const SilentServer other;
  Process process([&] { dist::connect(options_of(0, 2, other.port)); });
  expect_end(process, 2,
             "cannot serve the store on port " + std::to_string(other.port) + ": it is in use");
}

TEST(Connect, AnotherServerIsNoStore) {
  const SilentServer other;
  Process process([&] {
    ConnectOptions options = options_of(1, 2, other.port);
    options.timeout_s = 0.3;
    dist::connect(options);
  });
  expect_end(process, 2,
             "cannot use the store at 127.0.0.1:" + std::to_string(other.port) +
                 ": no answer within 0.3 s");
}

TEST(Connect, ASignalEndsTheWait) {
  Process process([] {
    request_stop(SIGTERM);
    try {
      dist::connect(options_of(0, 2, free_port()));
    } catch (const Stopped& stopped) {
      throw DataError(stopped.what());
    }
  });
  expect_end(process, 3, "stopped by SIGTERM while waiting for the other processes");
}

}  // namespace
}  // namespace stablemask
