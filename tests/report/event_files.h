#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "src/report/tensorboard_event.h"
#include "src/report/tfrecord.h"
#include "tests/io/scratch.h"

namespace stablemask {

/// Names of the event files in a folder, in the order in which TensorBoard reads them.
inline std::vector<std::string> event_files_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.find("tfevents") != std::string::npos) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// All events in a folder, each of which must be sound.
inline std::vector<TensorboardEvent> events_in(const std::string& folder) {
  std::vector<TensorboardEvent> events;
  for (const std::string& name : event_files_in(folder)) {
    const std::string file = read_bytes(folder + "/" + name);
    TfrecordReader reader(file);
    while (const auto payload = reader.next()) {
      const auto event = decode_event(*payload);
      EXPECT_TRUE(event) << name;
      if (event) events.push_back(*event);
    }
    EXPECT_EQ(reader.offset(), file.size()) << name;
  }
  return events;
}

}  // namespace stablemask
