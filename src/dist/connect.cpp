#include "stablemask/dist/connect.h"

#include <c10/util/Logging.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <future>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "src/dist/exchange.h"
#include "src/dist/host_name.h"
#include "src/dist/meeting.h"
#include "src/dist/nccl_group.h"
#include "src/dist/signs.h"
#include "src/dist/store_group.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"

namespace stablemask::dist {
namespace {

using std::chrono::steady_clock;

/// Longest wait for a host name to become known: containers start before their names do.
constexpr double kNameWait_s = 30;

/// Longest wait for an answer of the store.
constexpr int64_t kAnswer_s = 60;

std::string store_place(const World& world) {
  return world.address + ":" + std::to_string(world.port);
}

/// LibTorch logs each broken connection with a stack trace, beside the exception that it throws.
/// A user who has chosen a level keeps it.
void silence_log_of_torch() {
  constexpr int kFatal = 3;
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = kFatal;
}

/// Tries one address; "": connected, else the error.
std::string try_address(const addrinfo& address) {
  constexpr int kWait_ms = 1000;
  const int socket =
      ::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, address.ai_protocol);
  if (socket < 0) return std::strerror(errno);
  int error = ::connect(socket, address.ai_addr, address.ai_addrlen) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    pollfd ready = {socket, POLLOUT, 0};
    socklen_t size = sizeof(error);
    error = ETIMEDOUT;
    if (::poll(&ready, 1, kWait_ms) == 1) ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size);
  }
  ::close(socket);
  return error == 0 ? "" : std::strerror(error);
}

/// Tries all addresses of a host once; "": one of them accepts connections, else the last error.
/// `known`: whether the host's name is.
std::string try_host(const std::string& host, int64_t port, bool& known) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  known = code == 0;
  if (!known) return ::gai_strerror(code);
  std::string error = "no address";
  for (const addrinfo* address = found; address != nullptr && !error.empty();
       address = address->ai_next) {
    error = try_address(*address);
  }
  ::freeaddrinfo(found);
  return error;
}

/// Until the store accepts connections. TCPStore itself would log every failure and wait longer
/// between its attempts.
void wait_for_server(const ConnectOptions& options) {
  const World& world = options.world;
  const auto begin = steady_clock::now();
  Backoff backoff(/*most_ms=*/250);
  while (true) {
    check_stop("waiting for the store");
    bool known = false;
    const std::string error = try_host(world.address, world.port, known);
    if (error.empty()) return;
    const double limit_s = known ? options.timeout_s : std::min(options.timeout_s, kNameWait_s);
    if (std::chrono::duration<double>(steady_clock::now() - begin).count() > limit_s) {
      throw ConfigError(
          format("cannot reach the store at %s within %g s: %s; check MASTER_ADDR and "
                 "MASTER_PORT, and that %s is running there",
                 store_place(world).c_str(), limit_s, error.c_str(),
                 world.launcher_serves ? "torchrun" : "process 0"));
    }
    backoff.sleep();
  }
}

/// TCPStore's constructor waits without a limit for an answer of whatever listens there.
StorePtr construct_store(const std::string& host, const c10d::TCPStoreOptions& store,
                         double limit_s) {
  const auto promise = std::make_shared<std::promise<StorePtr>>();
  std::future<StorePtr> result = promise->get_future();
  std::thread([promise, host, store] {
    try {
      promise->set_value(c10::make_intrusive<c10d::TCPStore>(host, store));
    } catch (...) {
      promise->set_exception(std::current_exception());
    }
  }).detach();
  const auto end = steady_clock::now() + std::chrono::duration<double>(limit_s);
  while (result.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) {
    check_stop("connecting to the store");
    TORCH_CHECK(steady_clock::now() < end, "no answer within ", limit_s, " s");
  }
  return result.get();
}

/// A connection to the store; with `serve` this process serves it, as long as the result lives.
StorePtr open_store(const ConnectOptions& options, bool serve) {
  const World& world = options.world;
  c10d::TCPStoreOptions store;
  store.port = static_cast<uint16_t>(world.port);
  store.isServer = serve;
  store.waitWorkers = false;
  store.timeout = std::chrono::seconds(kAnswer_s);  // all requests find their keys
  const bool serves = world.rank == 0 && !world.launcher_serves;
  try {
    const StorePtr tcp = construct_store(serves ? "localhost" : world.address, store,
                                         std::min<double>(options.timeout_s, kAnswer_s));
    return c10::make_intrusive<c10d::PrefixStore>("stablemask/" + world.attempt, tcp);
  } catch (const c10::Error& error) {
    std::string text = cut_to_line(error.what_without_backtrace());
    if (text.find("EADDRINUSE") != std::string::npos) text = "it is in use";
    throw ConfigError((serve ? "cannot serve the store on port " + std::to_string(world.port)
                             : "cannot use the store at " + store_place(world)) +
                      ": " + text + "; set MASTER_PORT to a free port" +
                      (serve ? ", and start one process with number 0" : ", the same for all"));
  }
}

HostPart host_part(const ConnectOptions& options) {
  const World& world = options.world;
  const bool serves = world.rank == 0 && !world.launcher_serves;
  if (!serves && !world.launcher_serves) wait_for_server(options);
  HostPart part;
  part.store = open_store(options, serves);
  // Before the others expect signs of life: opening it may take seconds, since client and server
  // look up each other's names, and the server answers nobody meanwhile.
  const StorePtr connection = open_store(options, false);
  WatchdogOptions watchdog;
  watchdog.rank = world.rank;
  watchdog.names =
      meet(*part.store, {world.rank, world.size, host_name(), options.timeout_s, serves});
  watchdog.store_name = "the store at " + store_place(world);
  watchdog.store_server = world.launcher_serves ? "torchrun" : watchdog.names[0];
  watchdog.silence_s = options.silence_s;
  watchdog.timeout_s = options.timeout_s;
  watchdog.grace_s = std::min(watchdog.grace_s, options.silence_s / 2);
  watchdog.serves_store = serves;
  watchdog.end_process = options.end_process;
  part.watchdog = std::make_shared<Watchdog>(connection, watchdog);
  return part;
}

}  // namespace

std::shared_ptr<Group> connect(const ConnectOptions& options) {
  if (options.world.size == 1) return single_process_group();
  silence_log_of_torch();
  HostPart part = host_part(options);
  return options.device.is_cpu() ? make_store_group(std::move(part))
                                 : make_nccl_group(std::move(part), options.device);
}

}  // namespace stablemask::dist
