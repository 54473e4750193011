#include "src/dist/store_group.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

namespace stablemask::dist {
namespace {

/// Up to here a tensor is exchanged as a whole: one round in place of two.
constexpr size_t kWholeBytes = size_t{64} << 10;

void check_tensor(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(),
              "this group exchanges contiguous tensors on the CPU, not one of shape ",
              tensor.sizes(), " and strides ", tensor.strides(), " on ", tensor.device());
}

void check_reducible(const at::Tensor& tensor) {
  check_tensor(tensor);
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kLong,
      "reductions need a float32, float64, bfloat16 or int64 tensor, not ", dtype);
}

ByteView bytes_of(const at::Tensor& tensor) {
  return {static_cast<const uint8_t*>(tensor.const_data_ptr()), tensor.nbytes()};
}

void write(const Bytes& bytes, const at::Tensor& tensor, int64_t from) {
  TORCH_CHECK(bytes.size() == tensor.nbytes(), "process ", from, " has sent ", bytes.size(),
              " bytes for a tensor of ", tensor.nbytes(), ": its shape or dtype differs");
  if (!bytes.empty()) std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
}

class StoreGroup : public HostGroup {
 public:
  using HostGroup::HostGroup;

  void all_reduce(const at::Tensor& tensor, Reduce op) override;
  void reduce_scatter(const at::Tensor& flat, Reduce op) override;
  void all_gather(const at::Tensor& flat) override;
  void broadcast(const at::Tensor& tensor, int64_t root) override;

 private:
  /// `own` is reduced with what the others have posted as `part`.
  void reduce(const at::Tensor& own, int64_t part, Reduce op);
  void reduce_parts(const std::vector<at::Tensor>& parts, Reduce op);
  void gather_parts(const std::vector<at::Tensor>& parts);
};

void StoreGroup::reduce(const at::Tensor& own, int64_t part, Reduce op) {
  const std::vector<Bytes> others = exchange().get_others(part);
  at::Tensor sum, other = at::empty_like(own);
  for (int64_t r = 0; r < size(); ++r) {
    if (r != rank()) write(others[r], other, r);
    const at::Tensor& next = r == rank() ? own : other;
    if (!sum.defined()) {
      sum = next.clone();
    } else if (op == Reduce::kSum) {
      sum.add_(next);
    } else {
      sum = at::maximum(sum, next);
    }
  }
  if (own.numel() > 0) std::memcpy(own.mutable_data_ptr(), sum.const_data_ptr(), own.nbytes());
}

/// Each process reduces the part of its number.
void StoreGroup::reduce_parts(const std::vector<at::Tensor>& parts, Reduce op) {
  for (int64_t r = 0; r < size(); ++r) {
    if (r != rank()) exchange().post(r, bytes_of(parts[r]));
  }
  exchange().meet();
  reduce(parts[rank()], rank(), op);
}

void StoreGroup::gather_parts(const std::vector<at::Tensor>& parts) {
  exchange().post(0, bytes_of(parts[rank()]));
  exchange().meet();
  const std::vector<Bytes> others = exchange().get_others(0);
  for (int64_t r = 0; r < size(); ++r) {
    if (r != rank()) write(others[r], parts[r], r);
  }
}

void StoreGroup::all_reduce(const at::Tensor& tensor, Reduce op) {
  check_reducible(tensor);
  const at::Tensor flat = tensor.detach().view({-1});
  if (flat.nbytes() <= kWholeBytes) {
    exchange().post(0, bytes_of(flat));
    exchange().meet();
    return reduce(flat, 0, op);
  }
  const std::vector<at::Tensor> parts = flat.tensor_split(size());
  reduce_parts(parts, op);
  gather_parts(parts);
}

void StoreGroup::reduce_scatter(const at::Tensor& flat, Reduce op) {
  check_reducible(flat);
  TORCH_CHECK(flat.numel() % size() == 0, flat.numel(), " elements have no ", size(),
              " equal parts");
  reduce_parts(flat.detach().view({-1}).tensor_split(size()), op);
}

void StoreGroup::all_gather(const at::Tensor& flat) {
  check_tensor(flat);
  TORCH_CHECK(flat.numel() % size() == 0, flat.numel(), " elements have no ", size(),
              " equal parts");
  gather_parts(flat.detach().view({-1}).tensor_split(size()));
}

void StoreGroup::broadcast(const at::Tensor& tensor, int64_t root) {
  check_tensor(tensor);
  TORCH_CHECK(root >= 0 && root < size(), "no process ", root);
  if (rank() == root) exchange().post(0, bytes_of(tensor));
  exchange().meet();
  if (rank() != root) write(exchange().get(root, 0), tensor, root);
}

}  // namespace

std::shared_ptr<Group> make_store_group(HostPart part) {
  return std::make_shared<StoreGroup>(std::move(part));
}

}  // namespace stablemask::dist
