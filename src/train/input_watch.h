#pragma once

#include <memory>
#include <string>
#include <vector>

#include "src/train/run_inputs.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"

namespace stablemask {

/// Token shards were overwritten while the run read them.
struct InputsChanged : DataError {
  using DataError::DataError;
};

/// Notices shards that are overwritten or replaced while a run has them open. Asking costs two
/// system calls a shard, unless its size or times have changed: then its tokens are hashed.
class InputWatch {
 public:
  explicit InputWatch(const RunInputs& inputs);

  /// What is wrong with a training shard; "": nothing. A file that was replaced by one with other
  /// tokens, or removed, is a warning, once: the run goes on with the file that it has open.
  std::string train_problem();
  /// The same for the validation shard.
  std::string valid_problem();

 private:
  struct Watched {
    std::shared_ptr<const Shard> shard;
    FileStamps known;
    bool warned = false;
    std::string problem;
  };
  static void look_at(Watched& watched);

  std::vector<Watched> train_, valid_;
};

}  // namespace stablemask
