#pragma once

#include <memory>
#include <string>
#include <vector>

#include "src/train/run_inputs.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/dist/group.h"

namespace stablemask {

/// Token shards were overwritten while the run read them.
struct InputsChanged : DataError {
  using DataError::DataError;
};

/// Notices shards that are overwritten or replaced while a run has them open. Asking costs two
/// system calls a shard, unless its size or times have changed: then its tokens are hashed.
class InputWatch {
 public:
  InputWatch(const RunInputs& inputs, std::shared_ptr<dist::Group> group);

  /// Throws InputsChanged in a process whose training shards were overwritten, and PeerLostError in
  /// the others; all call it. A file that was replaced by one with other tokens, or removed, is a
  /// warning, once: the run goes on with the file that it has open.
  void require_train_tokens() { require(train_); }
  /// The same for the validation shard.
  void require_valid_tokens() { require(valid_); }

 private:
  struct Watched {
    std::shared_ptr<const Shard> shard;
    FileStamps known;
    bool warned = false;
  };
  void require(std::vector<Watched>& shards);
  static void look_at(Watched& watched);

  std::shared_ptr<dist::Group> group_;
  std::vector<Watched> train_, valid_;
};

}  // namespace stablemask
