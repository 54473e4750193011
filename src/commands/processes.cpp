#include "src/commands/processes.h"

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/dist/connect.h"
#include "stablemask/infer/load.h"
#include "stablemask/ops/memory.h"

namespace stablemask::commands {

Processes::Processes() : world_(dist::world_from_environment()) {
  share_terminal(world_.rank, /*warnings=*/false);
}

void Processes::together(
    DeviceKind device, double timeout_s,
    const std::function<void(const std::shared_ptr<dist::Group>&)>& work) const {
  if (world_.size == 1) return work(dist::single_process_group());
  dist::ConnectOptions options;
  options.world = world_;
  options.timeout_s = timeout_s;
  options.end_process = true;
  std::exception_ptr no_device;  // told to the others, which would wait for this process
  try {
    options.device = select_device(device, world_.local_rank);
  } catch (const ConfigError&) {
    no_device = std::current_exception();
  }
  const std::shared_ptr<dist::Group> group = dist::connect(options);
  share_terminal(world_.rank, /*warnings=*/true);
  try {
    if (no_device) std::rethrow_exception(no_device);
    work(group);
  } catch (const PeerLostError&) {
    throw;  // the others know
  } catch (const std::exception& error) {
    group->fail(error_text(error));
    throw;
  }
}

std::string error_text(const std::exception& error) {
  if (dynamic_cast<const Error*>(&error) != nullptr) return error.what();
  if (dynamic_cast<const Stopped*>(&error) != nullptr) return error.what();
  const std::string memory = ops::out_of_memory_message(error);
  if (!memory.empty()) {
    return "out of memory: " + memory + "; free memory, or lower the batch or the model";
  }
  // LibTorch's messages end with a stack trace.
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace stablemask::commands
