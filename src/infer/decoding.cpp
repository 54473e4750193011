#include "src/infer/decoding.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <exception>

#include "src/infer/prompt_cache.h"
#include "stablemask/base/log.h"
#include "stablemask/ops/memory.h"

namespace stablemask::infer {
namespace {

/// A logit that is never drawn beside one of usual size, and that every dtype holds.
constexpr double kExcluded = -1e30;

/// ops::decode_attention reads on the host where heads are wider.
constexpr int64_t kWidestRecordedHead = 256;

/// Excludes all ids but `allowed` from a row [V] of logits.
void keep_only(at::Tensor row, const at::Tensor& allowed) {
  const at::Tensor kept = row.index_select(0, allowed);
  row.fill_(kExcluded);
  row.index_copy_(0, allowed, kept);
}

bool draws_first_of_some(const SequencePtr& sequence) {
  return sequence->launched == 0 && !sequence->request.first_ids.empty();
}

bool has_penalty(const SequencePtr& sequence) {
  return sequence->request.settings.repetition_penalty != 1.0;
}

/// Which of the logits [V] is not finite, and its value.
std::string bad_logit(const at::Tensor& logits) {
  const at::Tensor host = logits.to(at::kCPU, at::kFloat).contiguous();
  const float* values = host.const_data_ptr<float>();
  const float* end = values + host.numel();
  const float* bad = std::find_if(values, end, [](float x) { return !std::isfinite(x); });
  if (bad == end) return "a logit is not finite";
  const double value = std::isnan(*bad) ? NAN : *bad;  // without the sign of a NaN
  return format("the logit of id %lld is %g", static_cast<long long>(bad - values), value);
}

std::vector<int64_t> wide(const std::vector<int32_t>& ids) { return {ids.begin(), ids.end()}; }

}  // namespace

Decoding::Decoding(nn::Transformer model, int64_t slots, int64_t capacity, int64_t vocabulary,
                   bool use_graphs)
    : device_(model->head_weight().device()),
      slots_(slots),
      vocabulary_(vocabulary),
      use_graphs_(use_graphs && device_.is_cuda() &&
                  model->config().resolved_head_dim() <= kWidestRecordedHead),
      stream_(device_),
      decoder_([&] {
        const ops::SideStream::Entered on_stream(stream_);
        return nn::Decoder(std::move(model), slots, capacity);
      }()),
      table_([&] {
        const ops::SideStream::Entered on_stream(stream_);
        return StepTable(slots, device_);
      }()) {
  for (at::Tensor& host : host_ids_) {
    host = at::empty({slots}, at::TensorOptions(at::kLong).pinned_memory(device_.is_cuda()));
  }
}

/// The memory of graphs and buffers may be used again once the device has finished. After a device
/// error that fails; the next call that synchronises reports it.
Decoding::~Decoding() {
  try {
    stream_.point().synchronize();
  } catch (const std::exception&) {
  }
}

int64_t Decoding::graphs() const {
  return std::ranges::count_if(
      steps_, [](const auto& entry) { return entry.second && entry.second->graph.recorded(); });
}

int64_t Decoding::prefill(const std::vector<SequencePtr>& sequences) {
  const ops::SideStream::Entered on_stream(stream_);
  return cache_prompts(decoder_, sequences);
}

/// Sequences of a step, filled up to a power of two on a GPU: one graph for each.
int64_t Decoding::batch_for(int64_t sequences) const {
  if (device_.is_cpu()) return sequences;
  int64_t batch = 1;
  while (batch < sequences) batch *= 2;
  return std::min(batch, slots_);
}

void Decoding::mark_prompts(const std::vector<SequencePtr>& sequences) {
  if (!seen_.defined()) {
    const auto bytes = at::TensorOptions(at::kByte).device(device_);
    seen_ = at::zeros({slots_, decoder_.model()->config().vocab_size}, bytes);
  }
  for (const SequencePtr& sequence : sequences) {
    if (sequence->launched > 0 || !has_penalty(sequence)) continue;
    at::Tensor row = seen_[sequence->row].zero_();
    row.index_fill_(0, to_device(wide(sequence->request.prompt), device_), 1);
  }
}

LaunchedStep Decoding::launch(const std::vector<SequencePtr>& sequences) {
  const ops::SideStream::Entered on_stream(stream_);
  const int64_t batch = batch_for(static_cast<int64_t>(sequences.size()));
  const bool penalised = std::ranges::any_of(sequences, has_penalty);
  if (penalised) mark_prompts(sequences);
  if (!table_.holds(sequences, batch)) table_.set(sequences, batch);

  std::unique_ptr<RecordedStep>& recorded = steps_[{batch, penalised}];
  if (use_graphs_ && !recorded) recorded = std::make_unique<RecordedStep>(device_);
  const bool by_graph = use_graphs_ && std::ranges::none_of(sequences, draws_first_of_some);
  const Results results = by_graph ? step_by_graph(*recorded, sequences, batch, penalised)
                                   : step(sequences, batch, penalised);
  LaunchedStep launched;
  launched.sequences = sequences;
  launched.ids = host_ids_[launches_++ % 2];
  launched.ids.narrow(0, 0, batch).copy_(results.sampled, /*non_blocking=*/true);
  launched.read_logprobs(results.logits, results.sampled, vocabulary_);
  launched.finished = stream_.point();
  for (const SequencePtr& sequence : sequences) ++sequence->launched;
  return launched;
}

Decoding::Results Decoding::step_by_graph(RecordedStep& recorded,
                                          const std::vector<SequencePtr>& sequences, int64_t batch,
                                          bool penalised) {
  if (!recorded.warm) {
    recorded.warm = true;
    return step(sequences, batch, penalised);
  }
  if (!recorded.graph.recorded()) {
    try {
      recorded.graph.record([&] { recorded.results = step(sequences, batch, penalised); });
    } catch (const std::exception& error) {
      if (!ops::out_of_memory_message(error).empty()) throw;
      use_graphs_ = false;
      log_warning(std::string("decoding steps cannot be recorded as CUDA graphs and run slower: ") +
                  error.what());
      return step(sequences, batch, penalised);
    }
  }
  recorded.graph.replay();
  return recorded.results;
}

Decoding::Results Decoding::step(const std::vector<SequencePtr>& sequences, int64_t batch,
                                 bool penalised) {
  Results results;
  results.logits = decoder_.decode(table_.ids(batch), table_.positions(batch), table_.rows(batch));
  at::Tensor choice = results.logits;
  for (size_t slot = 0; slot < sequences.size(); ++slot) {
    if (!draws_first_of_some(sequences[slot])) continue;
    if (choice.is_same(results.logits)) choice = results.logits.clone();
    keep_only(choice[static_cast<int64_t>(slot)],
              to_device(wide(sequences[slot]->request.first_ids), device_));
  }
  ops::Sampling sampling = table_.sampling(batch);
  if (penalised) sampling.seen = seen_;
  results.sampled = ops::sample(choice, vocabulary_, sampling);
  table_.advance(results.sampled);
  return results;
}

std::string Decoding::non_finite(const Sequence& sequence) {
  const ops::SideStream::Entered on_stream(stream_);
  const int64_t position = sequence.prompt_length() - 1 + sequence.drawn;
  const auto one = [&](int64_t value) { return to_device({value}, device_); };
  const at::Tensor logits = decoder_.decode(one(sequence.last), one(position), one(sequence.row));
  return "generated token " + std::to_string(sequence.drawn + 1) + ": " +
         bad_logit(logits[0].narrow(0, 0, vocabulary_));
}

}  // namespace stablemask::infer
