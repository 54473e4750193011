#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "stablemask/config/train_config.h"
#include "stablemask/dist/group.h"
#include "stablemask/dist/world.h"

namespace stablemask::commands {

/// The processes that a launcher started for one command. Constructed first, it makes the processes
/// other than 0 print nothing, as all of them read the same config; once they have met, these print
/// warnings that begin with their number.
class Processes {
 public:
  /// Reads the environment. Throws ConfigError.
  Processes();

  bool is_first() const { return world_.rank == 0; }
  int64_t size() const { return world_.size; }
  int64_t local_rank() const { return world_.local_rank; }

  /// What the processes need to meet.
  struct Meeting {
    DeviceKind device = DeviceKind::kAuto;
    double timeout_s = TrainConfig().peer_timeout_s;
  };
  /// Calls `prepare`, which reads what each process reads by itself, then `work` with the group of
  /// the processes. When one of the two throws, the others are told, so that they do not wait for
  /// this one. Stopped must not be thrown for a stop that all processes agreed on: one of the
  /// others might then see a lost process instead.
  void together(const std::function<Meeting()>& prepare,
                const std::function<void(const std::shared_ptr<dist::Group>&)>& work) const;

 private:
  dist::World world_;
};

/// What the program prints for an exception other than Stopped: one line, except for several
/// problems of a config.
std::string error_text(const std::exception& error);

}  // namespace stablemask::commands
