#include "stablemask/io/finite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"

namespace stablemask {
namespace {

/// Whether one of `count` numbers has all bits of `exponent` set, which a NaN and an infinity have.
/// No branch in the inner loop, so that it runs at the speed of the memory.
template <typename Bits>
bool has_full_exponent(const void* data, size_t count, Bits exponent) {
  const auto* bytes = static_cast<const char*>(data);
  constexpr size_t kBlock = 4096;
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t end = std::min(begin + kBlock, count);
    Bits found = 0;
    for (size_t k = begin; k < end; ++k) {
      Bits bits = 0;
      std::memcpy(&bits, bytes + k * sizeof(Bits), sizeof(Bits));
      found |= static_cast<Bits>((bits & exponent) == exponent ? 1 : 0);
    }
    if (found != 0) return true;
  }
  return false;
}

bool is_finite(ElementType type, const void* data, size_t count) {
  switch (type) {
    case ElementType::kF64:
      return !has_full_exponent<uint64_t>(data, count, 0x7FF0000000000000);
    case ElementType::kF32:
      return !has_full_exponent<uint32_t>(data, count, 0x7F800000);
    case ElementType::kF16:
      return !has_full_exponent<uint16_t>(data, count, 0x7C00);
    case ElementType::kBf16:
      return !has_full_exponent<uint16_t>(data, count, 0x7F80);
    default:
      return true;
  }
}

}  // namespace

bool is_finite(const TensorView& tensor) {
  return is_finite(tensor.type, tensor.data, tensor.bytes() / element_size(tensor.type));
}

std::string first_not_finite(const std::map<std::string, TensorView>& tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (!is_finite(tensor)) return name;
  }
  return "";
}

std::string first_not_finite(const std::string& path) {
  const InputFile file(path, ExitCode::kCheckpoint);
  const SafetensorsLayout layout = read_safetensors_layout(file, path, kSafetensorsMaxHeaderBytes);
  std::vector<char> piece(size_t{1} << 20);  // a multiple of every element's size
  for (const auto& [name, entry] : layout.header.entries) {
    for (uint64_t begin = entry.begin; begin < entry.end; begin += piece.size()) {
      const size_t bytes = std::min<uint64_t>(piece.size(), entry.end - begin);
      file.read(layout.data_offset + begin, piece.data(), bytes);
      if (!is_finite(entry.type, piece.data(), bytes / element_size(entry.type))) return name;
    }
  }
  return "";
}

void require_finite_weights(const Checkpoint& checkpoint) {
  std::string name = first_not_finite(checkpoint.model.tensors());
  if (name.empty() && checkpoint.trained) name = first_not_finite(checkpoint.trained->tensors());
  if (name.empty()) return;
  throw NonFiniteError("checkpoint " + checkpoint.folder + ": " + name +
                       " holds values that are not finite; use an earlier checkpoint");
}

}  // namespace stablemask
