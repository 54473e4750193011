#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stablemask/infer/inspect.h"
#include "stablemask/infer/load.h"

namespace stablemask::commands {

/// Edges of the bins of positions: e_0 = 0 < … < e_B = window. One bin per position up to 128;
/// longer windows have about 100 equal bins, and single positions at the start and before `end`,
/// the position where the pseudo mass changes fast.
std::vector<int64_t> position_edges(int64_t window, int64_t end);

/// The mean of `values` [window] in each bin.
std::vector<double> bin_means(const std::vector<double>& values, const std::vector<int64_t>& edges);

double mean(const std::vector<double>& values);

/// inspect.json (docs/formats.md). `data`: the text, as the user named it.
std::string inspection_json(const Inspection& inspection, const LoadedModel& loaded,
                            const std::string& data);

/// The beginning of maps.json, up to the first map.
std::string maps_json_head(const std::vector<int64_t>& tokens, const Tokenizer& tokenizer);
/// One map with what separates it from the map before, if there is one, and starts its layer.
std::string map_json(const AttentionMap& map);
/// The end of maps.json after the last map.
std::string maps_json_tail();

}  // namespace stablemask::commands
