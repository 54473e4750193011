#include "src/commands/config_section.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "stablemask/base/input_stream.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/config/config.h"

namespace stablemask::commands {

std::vector<std::string> stated_fields(const std::string& path, const std::string& section) {
  // The largest context, because a stride must be compared with the checkpoint's context, not with
  // the file's.
  constexpr size_t kMax = size_t{1} << 20;
  const std::string text = InputStream(path, ExitCode::kConfig).rest(kMax);
  parse_config(text, path, {"train.context=16777216"});
  const auto json = nlohmann::ordered_json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  std::vector<std::string> fields, ignored;
  for (const auto& [name, value] : json.items()) {
    if (name == section) {
      for (const auto& [field, setting] : value.items()) {
        fields.push_back(section + "." + field + "=" + json_text(setting));
      }
    } else if (value.is_object()) {
      ignored.push_back(name);
    }
  }
  if (!ignored.empty()) {
    log_warning(path + ": only the section \"" + section + "\" is used; ignored: " +
                join(ignored, ", ") + " (the checkpoint's apply; see --set)");
  }
  return fields;
}

CLI::Validator value_of_field(const std::string& path) {
  std::string pointer = "/" + path;
  std::replace(pointer.begin(), pointer.end(), '.', '/');
  const auto check = [path, pointer](std::string& text) -> std::string {
    try {
      parse_config("{}", path, {path + "=" + text});
      return "";
    } catch (const ConfigError& error) {
      const std::string message = error.what(), before = pointer + ": ";
      const size_t at = message.find(before);
      return at == std::string::npos ? message : message.substr(at + before.size());
    }
  };
  return {check, ""};
}

}  // namespace stablemask::commands
