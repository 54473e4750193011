#include "src/dist/nccl_setup.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "src/dist/nccl_library.h"
#include "stablemask/base/error.h"

namespace stablemask::dist {
namespace {

const std::vector<std::string> kNames = {"process 0 (a)", "process 1 (a)", "process 2 (b)"};

std::vector<NcclPeer> healthy() {
  return {{"", "0a", "0000:1b:00.0", "1234"}, {"", "0b", "0000:43:00.0", ""}, {"", "0c", "", ""}};
}

std::string refusal(const std::vector<NcclPeer>& peers) {
  try {
    check_nccl_peers(peers, kNames);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(NcclPeers, TextRoundTrips) {
  const NcclPeer peer{"no library", "0a", "0000:1b:00.0", "00ff"};
  const NcclPeer found = nccl_peer_from_text(text_of(peer));
  EXPECT_EQ(found.problem, peer.problem);
  EXPECT_EQ(found.gpu_uuid, peer.gpu_uuid);
  EXPECT_EQ(found.gpu_place, peer.gpu_place);
  EXPECT_EQ(found.unique_id, peer.unique_id);
  const NcclPeer broken{"no library\nin several lines", "", "", ""};
  EXPECT_EQ(nccl_peer_from_text(text_of(broken)).problem, "no library");
  EXPECT_THROW(nccl_peer_from_text("a\nb"), c10::Error);
}

TEST(NcclPeers, EachWithADeviceOfItsOwnAreAccepted) { EXPECT_EQ(refusal(healthy()), ""); }

TEST(NcclPeers, TwoOnOneDeviceAreRefusedByName) {
  std::vector<NcclPeer> peers = healthy();
  peers[2].gpu_uuid = peers[1].gpu_uuid;
  peers[2].gpu_place = peers[1].gpu_place;
  const std::string message = refusal(peers);
  EXPECT_NE(message.find("process 1 (a) and process 2 (b)"), std::string::npos) << message;
  EXPECT_NE(message.find("0000:43:00.0"), std::string::npos) << message;
}

/// Whose UUID is unknown, so that it is not the second one without.
TEST(NcclPeers, ProblemOfOneIsReportedByAll) {
  std::vector<NcclPeer> peers = healthy();
  peers[1] = {"libnccl.so.2 is missing", "", "", ""};
  peers[2] = peers[1];
  EXPECT_EQ(refusal(peers), "process 1 (a): libnccl.so.2 is missing");
}

TEST(NcclPeers, HexadecimalRoundTripsEveryByte) {
  std::array<unsigned char, 256> bytes{}, found{};
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i);
  const std::string hex = to_hex(bytes.data(), bytes.size());
  EXPECT_EQ(hex.substr(0, 6), "000102");
  EXPECT_EQ(hex.substr(hex.size() - 4), "feff");
  from_hex(hex, found.data(), found.size());
  EXPECT_EQ(found, bytes);
  for (const std::string other : {"", "0", "000", "0g", "-1", " 1", "00000"}) {
    EXPECT_THROW(from_hex(other, found.data(), 1), c10::Error) << other;
  }
}

TEST(NcclMaxCtas, IsANumberOrTheDefault) {
  EXPECT_GT(nccl_max_ctas(nullptr), 0);
  EXPECT_EQ(nccl_max_ctas("0"), 0);
  EXPECT_EQ(nccl_max_ctas("64"), 64);
  for (const char* setting : {"", "65", "-1", "8x", " 8", "1e1", "99999999999"}) {
    try {
      nccl_max_ctas(setting);
      ADD_FAILURE() << "accepted \"" << setting << '"';
    } catch (const ConfigError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("STABLEMASK_NCCL_MAX_CTAS is \"" + std::string(setting) + "\""),
                std::string::npos)
          << message;
    }
  }
}

/// The library that LibTorch has loaded; it needs no GPU for this.
TEST(NcclLibrary, IsFoundAndSaysWhatFailed) {
  const NcclLibrary& nccl = NcclLibrary::get();
  int version = 0;
  ASSERT_EQ(nccl.get_version(&version), ncclSuccess);
  EXPECT_EQ(version / 10000, NCCL_MAJOR);
  const std::string message = nccl.message("all_reduce", ncclInvalidArgument, nullptr);
  EXPECT_EQ(message.rfind("NCCL: all_reduce: invalid argument", 0), 0u) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

}  // namespace
}  // namespace stablemask::dist
