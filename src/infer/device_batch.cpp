#include "stablemask/infer/device_batch.h"

#include <ATen/ATen.h>

namespace stablemask {
namespace {

at::Tensor host_view(const std::vector<int64_t>& values, int64_t rows, int64_t columns) {
  // from_blob wants a mutable pointer; nothing writes through it.
  return at::from_blob(const_cast<int64_t*>(values.data()), {rows, columns}, at::kLong);
}

}  // namespace

DeviceBatch::DeviceBatch(const Batch& batch, at::Device device)
    : tokens(host_view(batch.tokens, batch.rows, batch.columns).to(device)),
      targets(host_view(batch.targets, batch.rows, batch.columns).to(device)) {
  if (!batch.document_start.empty()) {
    document_start = host_view(batch.document_start, batch.rows, batch.columns).to(device);
  }
}

void DeviceBatch::copy_from(const Batch& batch) {
  tokens.copy_(host_view(batch.tokens, batch.rows, batch.columns));
  targets.copy_(host_view(batch.targets, batch.rows, batch.columns));
  if (document_start.defined()) {
    document_start.copy_(host_view(batch.document_start, batch.rows, batch.columns));
  }
}

}  // namespace stablemask
