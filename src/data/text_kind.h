#pragma once

#include <string>
#include <string_view>

namespace stablemask {

/// Throws DataError, with the command that converts it, when `head`, the first bytes of the file
/// `name`, says that the file is compressed (gzip, xz, zstd, bzip2, lz4, zip) or UTF-16 or UTF-32.
void require_plain_text(std::string_view head, const std::string& name);

/// Whether a text with these first bytes is taken for JSONL where its name says nothing: an object
/// with a first key, or an empty object.
bool begins_like_jsonl(std::string_view head);

/// Whether the name, in any case, ends as that of a file of JSON records: .jsonl, .ndjson, .json.
bool has_jsonl_name(std::string_view path);

}  // namespace stablemask
