#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stablemask::dist {

/// What a process tells the others before their GPUs are connected.
struct NcclPeer {
  std::string problem;    ///< why it cannot take part; "": it can
  std::string gpu_uuid;   ///< 32 hexadecimal digits
  std::string gpu_place;  ///< for messages: PCI address
  std::string unique_id;  ///< of the communicator, in hexadecimal digits; process 0's counts
};

/// One line each.
std::string text_of(const NcclPeer& peer);
/// Inverse of text_of. Throws c10::Error for other text.
NcclPeer nccl_peer_from_text(const std::string& text);

/// Throws ConfigError if a process has a problem or two have one GPU; `names` and `peers` by rank.
void check_nccl_peers(const std::vector<NcclPeer>& peers, const std::vector<std::string>& names);

std::string to_hex(const void* data, size_t bytes);
/// Throws c10::Error unless `hex` consists of 2 · `bytes` digits.
void from_hex(const std::string& hex, void* data, size_t bytes);

/// Thread blocks that one collective may occupy: `setting`, the value of STABLEMASK_NCCL_MAX_CTAS;
/// null: not set. 0 leaves it to NCCL. Throws ConfigError unless it is a number from 0 to 64.
int nccl_max_ctas(const char* setting);

}  // namespace stablemask::dist
