#include "src/infer/evaluate_samples.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>

#include "src/infer/windows.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/stop.h"
#include "stablemask/data/packed_samples.h"
#include "stablemask/infer/device_batch.h"
#include "stablemask/ops/memory.h"

namespace stablemask {
namespace {

/// Packed rows [first, first + rows) of equal length T.
Batch packed_rows(const PackedSamples& packed, int64_t T, int64_t first, int64_t rows) {
  Batch batch;
  batch.rows = rows;
  batch.columns = T;
  for (auto* values : {&batch.tokens, &batch.targets, &batch.document_start}) {
    values->resize(static_cast<size_t>(rows * T));
  }
  for (int64_t row = 0; row < rows; ++row) packed.fill(first + row, row, batch);
  return batch;
}

/// Training targets of the first `rows` packed rows of length T.
int64_t targets_of(const PackedSamples& packed, int64_t T, int64_t rows) {
  if (rows == packed.rows()) return packed.counts().targets;
  int64_t targets = 0;
  for (int64_t row = 0; row < rows; ++row) targets += packed_rows(packed, T, row, 1).valid_targets;
  return targets;
}

void require_usable(const nn::Transformer& model, const Shard& shard, const EvalOptions& options,
                    const PackedSamples& packed) {
  const StableMaskConfig& mask = model->config().stable_mask;
  if (mask.enabled && mask.mask_length.kind == MaskLengthSpec::Kind::kSequence) {
    throw ConfigError(
        "model.stable_mask.mask_length \"sequence\" cannot be used with samples, which share "
        "windows; use a number (--mask-length of eval)");
  }
  if (packed.rows() > 0) return;
  throw DataError(
      format("%s: no sample has a training target in its first %lld tokens; use a "
             "longer window",
             shard.path().c_str(), static_cast<long long>(options.window + 1)));
}

}  // namespace

Perplexity evaluate_samples(nn::Transformer& model, const Shard& shard,
                            const EvalOptions& options) {
  window_plan(shard, options, model->config().vocab_size);  // its checks
  const int64_t T = options.window;
  const PackedSamples packed({&shard}, T);
  require_usable(model, shard, options, packed);
  Perplexity result;
  result.documents = static_cast<uint64_t>(packed.counts().samples);
  result.samples = packed.counts();
  const std::shared_ptr<dist::Group> group =
      options.group ? options.group : dist::single_process_group();
  const at::Device device = model->head_weight().device();
  int64_t rows = packed.rows();
  if (options.tokens > 0) rows = std::min(rows, (options.tokens + T - 1) / T);
  const int64_t of_pass = windows_of_pass(options, rows, device.is_cpu());
  at::NoGradGuard no_grad;
  model->eval();
  // Rounds of one pass for each process, whose NLLs are added in the order of the rows, so that the
  // sum depends on neither the batch nor the number of processes. NLLs that do not count are 0.
  const at::Tensor round =
      at::zeros({group->size(), of_pass * T}, at::TensorOptions(at::kFloat).device(device));
  for (int64_t begin = 0; begin < rows; begin += group->size() * of_pass) {
    if (group->agree(stop_signal()) != 0) {
      result.complete = false;
      return result;
    }
    round.zero_();
    const int64_t first = begin + group->rank() * of_pass;
    ops::with_memory_hint("lower eval.batch or eval.window (--batch, --window of eval)", [&] {
      if (first >= rows) return;
      const Batch rows_of_pass = packed_rows(packed, T, first, std::min(of_pass, rows - first));
      const DeviceBatch batch(rows_of_pass, device);  // on a CPU a view of it
      const at::Tensor nll =
          model->token_nll(batch.tokens, batch.targets, batch.document_start).reshape({-1});
      round[group->rank()].narrow(0, 0, nll.numel()).copy_(nll);
    });
    group->all_gather(round.view({-1}));
    const at::Tensor values = group->read(round).contiguous();
    const float* const nll = values.const_data_ptr<float>();
    for (int64_t i = 0; i < values.numel(); ++i) result.nll += nll[i];
    if (options.progress) {
      options.progress(std::min(rows, begin + group->size() * of_pass) * T, rows * T);
    }
  }
  result.tokens = static_cast<uint64_t>(targets_of(packed, T, rows));
  return result;
}

}  // namespace stablemask
