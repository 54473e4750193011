#include "src/infer/launched_step.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace stablemask::infer {
namespace {

at::Tensor to_host(const at::Tensor& values) {
  at::Tensor host =
      at::empty(values.sizes(), values.options().device(at::kCPU).pinned_memory(values.is_cuda()));
  return host.copy_(values, /*non_blocking=*/true);
}

}  // namespace

at::Tensor to_device(const std::vector<int64_t>& values, at::Device device) {
  at::Tensor host = at::empty({static_cast<int64_t>(values.size())},
                              at::TensorOptions(at::kLong).pinned_memory(device.is_cuda()));
  std::ranges::copy(values, host.mutable_data_ptr<int64_t>());
  return host.to(device, /*non_blocking=*/true);
}

void LaunchedStep::read_logprobs(const at::Tensor& logits, const at::Tensor& sampled,
                                 int64_t vocabulary) {
  int64_t count = -1;
  for (const SequencePtr& sequence : sequences) {
    count = std::max(count, sequence->request.logprobs);
  }
  if (count < 0) return;
  const at::Tensor all = at::log_softmax(logits.narrow(1, 0, vocabulary), 1, at::kFloat);
  logprobs = to_host(all.gather(1, sampled.clamp_min(0).unsqueeze(1)).squeeze(1));
  if (count == 0) return;
  const auto [values, ids_by_rank] = at::topk(all, std::min(count, vocabulary), 1);
  top_logprobs = to_host(values);
  top_ids = to_host(ids_by_rank);
}

DrawnToken LaunchedStep::token(int64_t slot) const {
  DrawnToken token;
  token.id = static_cast<int32_t>(ids.const_data_ptr<int64_t>()[slot]);
  const int64_t count = sequences[slot]->request.logprobs;
  if (count < 0) return token;
  token.logprob = logprobs.const_data_ptr<float>()[slot];
  if (count == 0) return token;
  const int64_t columns = top_ids.size(1);
  const float* values = top_logprobs.const_data_ptr<float>() + slot * columns;
  const int64_t* top = top_ids.const_data_ptr<int64_t>() + slot * columns;
  for (int64_t i = 0; i < std::min(count, columns); ++i) {
    token.top.emplace_back(static_cast<int32_t>(top[i]), values[i]);
  }
  return token;
}

}  // namespace stablemask::infer
