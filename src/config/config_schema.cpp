#include <nlohmann/json.hpp>

#include "src/config/config_fields.h"
#include "src/config/config_values.h"
#include "stablemask/base/json_text.h"
#include "stablemask/config/config.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

Json object_schema(const Section& section, const Config& defaults) {
  Json properties = Json::object();
  for (const Field& field : section.fields) {
    Json schema = value_schema(field);
    schema["default"] = value_json(field, defaults);
    schema["description"] = field.meaning;
    properties[field.name] = std::move(schema);
  }
  return {{"type", "object"},
          {"description", section.meaning},
          {"properties", std::move(properties)},
          {"additionalProperties", false}};
}

/// Text of a table cell: code when it is a value.
std::string code(const std::string& text) { return "`" + text + "`"; }

std::string in_cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) escaped += c == '|' ? "\\|" : std::string(1, c);
  return escaped;
}

std::string table_row(const Field& field, const Config& defaults) {
  return "| " + code(std::string(field.name)) + " | " + in_cell(expectation(field)) + " | " +
         code(json_text(value_json(field, defaults))) + " | " + (field.frozen ? "yes" : "") +
         " | " + in_cell(std::string(field.meaning)) + " |\n";
}

}  // namespace

std::string config_schema() {
  const Config defaults;
  Json root = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
               {"title", "StableMask config"},
               {"type", "object"},
               {"properties", Json::object()},
               {"additionalProperties", false}};
  root["properties"]["version"] = {{"type", "integer"},
                                   {"minimum", 0},
                                   {"maximum", kConfigVersion},
                                   {"description",
                                    "Format version of the config. A file without it has the field "
                                    "names of version 0 and the defaults of today."}};
  std::string parent;  // name of the last top-level section, which nested ones follow
  for (const Section& section : config_sections()) {
    Json schema = object_schema(section, defaults);
    const size_t slash = section.pointer.rfind('/');
    const std::string name(section.pointer.substr(slash + 1));
    Json* properties = &root["properties"];
    if (slash > 0) properties = &(*properties)[parent]["properties"];
    if (slash == 0) parent = name;
    (*properties)[name] = section.on_off
                              ? Json{{"anyOf", Json::array({{{"type", "boolean"}}, schema})}}
                              : std::move(schema);
  }
  return json_text(root, 2) + "\n";
}

std::string config_reference() {
  const Config defaults;
  std::string text;
  for (const Section& section : config_sections()) {
    std::string path(section.pointer.substr(1));
    for (char& c : path) c = c == '/' ? '.' : c;
    if (!text.empty()) text += "\n";
    text += "## " + path + "\n\n" + std::string(section.meaning) + "\n\n" +
            "| field | value | default | frozen | meaning |\n| --- | --- | --- | --- | --- |\n";
    for (const Field& field : section.fields) text += table_row(field, defaults);
  }
  return text;
}

}  // namespace stablemask
