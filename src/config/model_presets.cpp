#include "src/config/config_fields.h"

namespace stablemask {
namespace {

constexpr Preset kPresets[] = {
    {"71m", 6, 512, 8, 1536, 50257},
    {"160m", 12, 768, 12, 2048, 50257},
    {"400m", 24, 1024, 16, 2816, 50257},
    {"1.4b", 24, 2048, 16, 5632, 50257},
};

}  // namespace

std::span<const Preset> model_presets() { return kPresets; }

bool is_preset_size(std::string_view pointer) {
  return pointer == "/model/layers" || pointer == "/model/channels" || pointer == "/model/heads" ||
         pointer == "/model/ffn_hidden" || pointer == "/model/vocab_size";
}

}  // namespace stablemask
