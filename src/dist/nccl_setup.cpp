#include "src/dist/nccl_setup.h"

#include <c10/util/Exception.h>

#include <charconv>
#include <cstring>
#include <map>

#include "stablemask/base/error.h"

namespace stablemask::dist {
namespace {

/// More of them move data faster when nothing else runs, but take more multiprocessors from the
/// backward pass that a collective overlaps with.
constexpr int kDefaultMaxCtas = 16;

std::string first_line_of(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

std::string text_of(const NcclPeer& peer) {
  return first_line_of(peer.problem) + "\n" + first_line_of(peer.gpu_uuid) + "\n" +
         first_line_of(peer.gpu_place) + "\n" + first_line_of(peer.unique_id);
}

NcclPeer nccl_peer_from_text(const std::string& text) {
  std::vector<std::string> lines(1);
  for (const char c : text) {
    if (c == '\n') {
      lines.emplace_back();
    } else {
      lines.back() += c;
    }
  }
  TORCH_CHECK(lines.size() == 4, "NCCL: a process sent ", lines.size(), " lines, expected 4");
  return {lines[0], lines[1], lines[2], lines[3]};
}

void check_nccl_peers(const std::vector<NcclPeer>& peers, const std::vector<std::string>& names) {
  std::map<std::string, size_t> rank_of_gpu;
  for (size_t rank = 0; rank < peers.size(); ++rank) {
    const NcclPeer& peer = peers[rank];
    if (!peer.problem.empty()) throw ConfigError(names.at(rank) + ": " + peer.problem);
    const auto [first, is_new] = rank_of_gpu.try_emplace(peer.gpu_uuid, rank);
    if (!is_new) {
      throw ConfigError(names.at(first->second) + " and " + names.at(rank) + " use the same GPU (" +
                        peer.gpu_place +
                        "); start at most as many processes on a machine as it has GPUs");
    }
  }
}

std::string to_hex(const void* data, size_t bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  const auto* const values = static_cast<const unsigned char*>(data);
  std::string hex;
  for (size_t i = 0; i < bytes; ++i) {
    hex += kDigits[values[i] >> 4];
    hex += kDigits[values[i] & 15];
  }
  return hex;
}

void from_hex(const std::string& hex, void* data, size_t bytes) {
  auto* const values = static_cast<unsigned char*>(data);
  bool valid = hex.size() == 2 * bytes;
  for (size_t i = 0; valid && i < bytes; ++i) {
    const char* const first = hex.data() + 2 * i;
    valid = std::from_chars(first, first + 2, values[i], 16).ptr == first + 2;
  }
  TORCH_CHECK(valid, "NCCL: expected ", 2 * bytes, " hexadecimal digits, got \"", hex, "\"");
}

int nccl_max_ctas(const char* setting) {
  if (setting == nullptr) return kDefaultMaxCtas;
  constexpr int kMost = 64;
  const char* const end = setting + std::strlen(setting);
  int value = 0;
  const auto [stop, error] = std::from_chars(setting, end, value);
  if (error != std::errc() || stop != end || value < 0 || value > kMost) {
    throw ConfigError(std::string("STABLEMASK_NCCL_MAX_CTAS is \"") + setting +
                      "\"; set it to a number from 1 to 64, or to 0 for NCCL's own choice");
  }
  return value;
}

}  // namespace stablemask::dist
