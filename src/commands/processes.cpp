#include "src/commands/processes.h"

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/dist/connect.h"
#include "stablemask/infer/load.h"
#include "stablemask/ops/memory.h"

namespace stablemask::commands {

namespace {

/// Longest wait for the others of a process that has nothing but an error to tell.
constexpr double kToTell_s = 10;

/// connect(). When that fails, too, the process's `problem`, if it has one, is the error.
std::shared_ptr<dist::Group> meet(const dist::ConnectOptions& options,
                                  const std::exception_ptr& problem) {
  try {
    return dist::connect(options);
  } catch (const std::exception&) {
    if (problem) std::rethrow_exception(problem);
    throw;
  }
}

}  // namespace

Processes::Processes() : world_(dist::world_from_environment()) {
  share_terminal(world_.rank, /*warnings=*/false);
}

void Processes::together(
    const std::function<Meeting()>& prepare,
    const std::function<void(const std::shared_ptr<dist::Group>&)>& work) const {
  if (world_.size == 1) {
    prepare();
    return work(dist::single_process_group());
  }
  dist::ConnectOptions options;
  options.world = world_;
  options.end_process = true;
  options.timeout_s = kToTell_s;
  std::exception_ptr problem;  // a process that has one joins the others to tell them
  try {
    const Meeting meeting = prepare();
    options.timeout_s = meeting.timeout_s;
    options.device = select_device(meeting.device, world_.local_rank);
  } catch (const std::exception&) {
    problem = std::current_exception();
  }
  const std::shared_ptr<dist::Group> group = meet(options, problem);
  share_terminal(world_.rank, /*warnings=*/true);
  try {
    if (problem) std::rethrow_exception(problem);
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
