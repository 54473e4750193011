#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

namespace stablemask::testing {

/// A TCP port that was free a moment ago. Not one of those that the system gives to connections
/// that go out: another process, or the client that waits for the server on this port, could get it
/// before the server does.
inline int free_port() {
  std::mt19937 random{std::random_device{}()};
  std::uniform_int_distribution<int> ports(10000, 31999);
  for (int attempt = 0; attempt < 100; ++attempt) {
    const int port = ports(random);
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    const bool bound = ::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    ::close(socket);
    if (bound) return port;
  }
  ADD_FAILURE() << "no free port from 10000 to 31999";
  return 0;
}

}  // namespace stablemask::testing
