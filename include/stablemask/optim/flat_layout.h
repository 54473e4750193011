#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/dist/group.h"
#include "stablemask/nn/parameters.h"

namespace stablemask {

/// Elements [begin, end) of the trained parameters' flat buffers.
struct FlatRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

/// The part of the flat buffers that this process updates: of every bucket, cut into `parts` equal
/// parts, number `part`. With one part every process updates everything.
struct Share {
  int64_t part = 0, parts = 1;
};
/// A part for each process if the optimizer is sharded.
Share share_of(const dist::Group& group, ShardKind shard);

/// Consecutive parameters. Processes exchange gradients and weights bucket by bucket.
struct Bucket {
  enum class Kind {
    kHead,       ///< the head, or the embedding if it is tied
    kBlock,      ///< the matrices of one block
    kEmbedding,  ///< if not tied, and learned positions
    kVectors,    ///< all that does not decay
  };
  Kind kind = Kind::kVectors;
  int64_t block = -1;  ///< of kBlock
  FlatRange range;
  int64_t first = 0;  ///< range.begin in the layout with one part
};

/// Which buckets a local buffer holds the own parts of.
enum class Cover {
  kAll,
  kBlocks,  ///< the matrices of the blocks
  kRest,    ///< all others
};

/// Where each parameter of a model lies in the flat buffers.
///
/// Order: first the parameters whose gradient is overwritten by a matrix product
/// (nn::Parameter::multiplies), head before blocks, then the other ones that decay, then those that
/// do not decay; within each group the order of nn::parameters. Each parameter begins at a multiple
/// of 64 elements, and so does every part of every bucket. The elements in between are padding.
///
/// A process keeps what it needs for its own parts only, such as the optimizer's state, in local
/// buffers: the own parts of all buckets, or of those that a Cover names, one after the other.
class FlatLayout {
 public:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    int64_t offset;                    ///< in elements, from the start of the flat buffers
    std::vector<int64_t> matrix_rows;  ///< nn::Parameter::matrix_rows
    int64_t numel() const;
  };
  enum class Kind { kTrained, kFrozen };

  /// Of the parameters that a run with this freeze_layers trains, or of those that it does not.
  FlatLayout(const ModelConfig& config, int64_t freeze_layers, Kind kind, Share share = {});

  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }  ///< ascending, without gaps
  const Share& share() const { return share_; }

  int64_t size() const { return size_; }  ///< padding included
  int64_t numel() const;                  ///< without padding
  int64_t local_size(Cover cover = Cover::kAll) const;
  /// Matrix products overwrite the gradients of [0, overwritten_end).
  int64_t overwritten_end() const { return overwritten_end_; }
  int64_t decay_end() const { return decay_end_; }  ///< weight decay applies to [0, decay_end)

  FlatRange blocks() const { return blocks_; }  ///< the buckets of kBlock; empty if there is none
  FlatRange own(const Bucket& bucket) const;    ///< the part of this process
  /// All elements that this process updates, ascending: {[0, size())} with one part, else the own
  /// part of each bucket.
  const std::vector<FlatRange>& own_ranges() const { return own_ranges_; }
  /// Where `range`, inside one of own_ranges() and of what `cover` names, is in a local buffer;
  /// c10::Error if it is not inside one.
  FlatRange local(FlatRange range, Cover cover = Cover::kAll) const;
  bool covers(Cover cover, FlatRange range) const;  ///< whether it names all of `range`
  /// Number of an element, which does not depend on the number of parts: its offset in the layout
  /// with one part. The numbers of a range inside one of own_ranges() follow each other.
  int64_t number_of(int64_t offset) const;
  /// Null if there is no such parameter.
  const Entry* find(const std::string& name) const;
  /// The parameters that begin in `range`, of those that `cover` names, as views of `values`, the
  /// elements of `range`, under `prefix` + name.
  std::map<std::string, at::Tensor> views(const at::Tensor& values, FlatRange range,
                                          const std::string& prefix,
                                          Cover cover = Cover::kAll) const;

 private:
  void add(Bucket::Kind kind, const nn::Parameter& parameter);
  void end_bucket();

  Share share_;
  std::vector<Entry> entries_;
  std::vector<Bucket> buckets_;
  std::vector<FlatRange> own_ranges_;
  FlatRange blocks_;
  int64_t size_ = 0, overwritten_end_ = 0, decay_end_ = 0;
  int64_t used_ = 0;  ///< size of the last bucket without the padding at its end
};

}  // namespace stablemask
