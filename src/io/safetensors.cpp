// The reader. A file is
//
//   8 bytes        n, the header's length, little-endian
//   n bytes        header: a JSON object, name → {"dtype", "shape", "data_offsets": [begin, end]},
//                  and perhaps "__metadata__": name → string; padded with spaces
//   the rest       data: the tensors without gaps, row-major, little-endian; offsets count from
//   here
//
// and may come from an untrusted source. The errors, each with its name in the message:
//
//   not-regular        (no name in the message) a folder, a pipe, a device
//   too-short          fewer than 8 bytes
//   header-too-long    n above the cap, 16 MiB unless the caller says otherwise
//   header-truncated   n above what the file has
//   encoding           the header is not UTF-8, has a byte order mark or a NUL
//   not-an-object      its first byte is not '{'
//   after-object       bytes other than spaces after the object
//   syntax             any other JSON error
//   duplicate-key      a key twice in one object, at any level
//   depth              nested deeper than 3 levels
//   unknown-field      a key of a tensor other than dtype, shape, data_offsets
//   missing-field      one of them absent
//   wrong-type         a value of the wrong type for its field
//   metadata           __metadata__ is not an object of strings
//   number             negative, with fraction or exponent, or above 2^53
//   unknown-dtype      no type of the format
//   unsupported-dtype  a type of the format that ElementType lacks
//   rank               more than 16 dimensions
//   overflow           number of elements or bytes beyond 63 bits
//   offsets            begin > end, or end beyond the data; not two numbers
//   size-mismatch      end − begin differs from the size of dtype and shape
//   overlap, gap       two tensors share bytes; there are bytes between or before tensors
//   trailing-data      there are bytes after the last tensor
//   name               empty, longer than 512 bytes, or with control characters
//   too-many-tensors   more than a million
//
// and a file that is shortened while it is read. The data pointers of tensors may be unaligned,
// because offsets are arbitrary.
#include "stablemask/io/safetensors.h"

#include <bit>
#include <utility>

#include "src/io/safetensors_header.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"

namespace stablemask {

static_assert(std::endian::native == std::endian::little,
              "tensors are stored in the memory's byte order");

struct SafetensorsFile::State {
  std::unique_ptr<char[]> data;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> metadata;
};

SafetensorsLayout read_safetensors_layout(const InputFile& file, const std::string& path,
                                          size_t max_header_bytes) {
  if (file.size() < kSafetensorsLengthBytes) {
    fail_safetensors(path, "too-short",
                     format("%llu bytes cannot hold the header's length",
                            static_cast<unsigned long long>(file.size())));
  }
  uint64_t length = 0;
  file.read(0, &length, sizeof length);
  const uint64_t rest = file.size() - kSafetensorsLengthBytes;
  if (length > max_header_bytes) {
    fail_safetensors(path, "header-too-long",
                     format("a header of %llu bytes; at most %zu are read",
                            static_cast<unsigned long long>(length), max_header_bytes));
  }
  if (length > rest) {
    fail_safetensors(
        path, "header-truncated",
        format("a header of %llu bytes in a file with %llu after the length",
               static_cast<unsigned long long>(length), static_cast<unsigned long long>(rest)));
  }
  std::string json(length, '\0');
  file.read(kSafetensorsLengthBytes, json.data(), json.size());
  return {parse_safetensors_header(json, rest - length, path), kSafetensorsLengthBytes + length};
}

SafetensorsFile SafetensorsFile::open(const std::string& path, size_t max_header_bytes) {
  return read(InputFile(path, ExitCode::kCheckpoint), path, max_header_bytes);
}

SafetensorsFile SafetensorsFile::read(const InputFile& file, const std::string& path,
                                      size_t max_header_bytes) {
  SafetensorsLayout layout = read_safetensors_layout(file, path, max_header_bytes);
  auto state = std::make_unique<State>();
  const uint64_t data_bytes = file.size() - layout.data_offset;
  state->data = std::make_unique_for_overwrite<char[]>(data_bytes);
  file.read(layout.data_offset, state->data.get(), data_bytes);
  for (auto& [name, entry] : layout.header.entries) {
    state->tensors[name] = {entry.type, std::move(entry.shape), state->data.get() + entry.begin};
  }
  state->metadata = std::move(layout.header.metadata);
  return SafetensorsFile(std::move(state));
}

SafetensorsFile::SafetensorsFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

const std::map<std::string, TensorView>& SafetensorsFile::tensors() const {
  return state_->tensors;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return state_->metadata;
}

}  // namespace stablemask
