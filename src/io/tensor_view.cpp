#include <array>
#include <cstdint>

#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"

namespace stablemask {
namespace {

struct ElementInfo {
  ElementType type;
  const char* name;
  size_t size;
};

constexpr std::array<ElementInfo, 8> kElements = {{{ElementType::kF64, "F64", 8},
                                                   {ElementType::kF32, "F32", 4},
                                                   {ElementType::kF16, "F16", 2},
                                                   {ElementType::kBf16, "BF16", 2},
                                                   {ElementType::kI64, "I64", 8},
                                                   {ElementType::kI32, "I32", 4},
                                                   {ElementType::kU8, "U8", 1},
                                                   {ElementType::kBool, "BOOL", 1}}};

const ElementInfo& info(ElementType type) {
  for (const ElementInfo& element : kElements) {
    if (element.type == type) return element;
  }
  throw std::logic_error("no such ElementType");
}

}  // namespace

size_t element_size(ElementType type) { return info(type).size; }

const char* element_name(ElementType type) { return info(type).name; }

std::optional<ElementType> parse_element_name(std::string_view name) {
  for (const ElementInfo& element : kElements) {
    if (name == element.name) return element.type;
  }
  return std::nullopt;
}

size_t TensorView::bytes() const {
  int64_t count = static_cast<int64_t>(element_size(type));
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(count, dimension, &count)) {
      throw CheckpointError("a tensor's shape has a negative dimension or too many elements");
    }
  }
  return static_cast<size_t>(count);
}

}  // namespace stablemask
