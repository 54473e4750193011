#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/bench/op_cases.h"
#include "src/ops/cuda/projections.h"
#include "stablemask/ops/decode.h"
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"
#include "stablemask/ops/sampling.h"

namespace stablemask::bench {
namespace {

using namespace stablemask::ops;
using at::Tensor;

/// Products of a decoding step of `rows` sequences.
Case few_rows_up(const Shape& s, int64_t rows) {
  const Tensor x = random({rows, s.channels}), weight = random({2 * s.hidden, s.channels}) * 0.02;
  const Tensor norm = random({s.channels}), none;
  Tensor out = at::empty({rows, s.hidden}, gpu(at::kBFloat16));
  const Run run = [=]() mutable {
    cuda::thin_projection(x, weight, {none, norm, 1e-5, /*gated=*/true}, out);
  };
  const auto error = [=]() mutable {
    run();
    const Tensor normed = reference::rms_norm(x, norm, 1e-5);
    const Tensor gate_up = at::mm(fp32(normed), fp32(weight).t()).to(at::kBFloat16);
    return difference(out, reference::swiglu(fp32(gate_up)));
  };
  return {"norm + up + swiglu, " + std::to_string(rows), bytes_of({x, weight, out}), error, run};
}

Case few_rows_down(const Shape& s, int64_t rows) {
  const Tensor x = random({rows, s.hidden}), weight = random({s.channels, s.hidden}) * 0.02;
  const Tensor residual = random({rows, s.channels}), none;
  Tensor out = at::empty_like(residual);
  const Run run = [=]() mutable {
    cuda::thin_projection(x, weight, {residual, none, 0, /*gated=*/false}, out);
  };
  const auto error = [=]() mutable {
    run();
    return difference(out, at::addmm(fp32(residual), fp32(x), fp32(weight).t()));
  };
  return {"down + residual, " + std::to_string(rows), bytes_of({x, weight, residual, out}), error,
          run};
}

Case few_rows_head(const Shape& s, int64_t rows) {
  const Tensor x = random({rows, s.channels}), weight = random({50257, s.channels}) * 0.02, none;
  Tensor out = at::empty({rows, weight.size(0)}, gpu(at::kBFloat16));
  const Run run = [=]() mutable {
    cuda::thin_projection(x, weight, {none, none, 0, /*gated=*/false}, out);
  };
  const auto error = [=]() mutable {
    run();
    return difference(out, at::mm(fp32(x), fp32(weight).t()));
  };
  return {"head V=50257, " + std::to_string(rows), bytes_of({x, weight, out}), error, run};
}

DecodeOptions decode_options(const Shape& s, bool masked) {
  const Tensor gamma = at::full({s.heads}, 0.5, gpu(at::kFloat));
  const PseudoScores scores{gamma, at::zeros_like(gamma), {MaskLength::Kind::kFixed, 2 * s.length}};
  DecodeOptions options;
  options.pseudo = masked ? std::optional(scores) : std::nullopt;
  options.rope_dims = s.head_dim;
  options.rope_table = rope_table(s.length, s.head_dim, 10000.0).to(at::kCUDA);
  return options;
}

/// A decoding step at the last position of `batch` sequences.
Case decode(const Shape& s, int64_t batch, bool masked) {
  const Tensor packed = random({batch, 3 * s.heads, s.head_dim});
  const DecodeCache cache{random({batch, s.length, s.heads, s.head_dim}),
                          random({batch, s.length, s.heads, s.head_dim})};
  const Tensor positions = at::full({batch}, s.length - 1, gpu(at::kLong));
  const DecodeOptions options = decode_options(s, masked);
  const auto run = [=] { return decode_attention(packed, s.heads, cache, {}, positions, options); };
  const auto error = [=] {
    const auto part = [](const Tensor& x) {
      return x.narrow(0, 0, std::min<int64_t>(4, x.size(0)));
    };
    const DecodeCache wide{fp32(part(cache.keys)), fp32(part(cache.values))};
    return difference(part(run()), reference::decode_attention(fp32(part(packed)), s.heads, wide,
                                                               {}, part(positions), options));
  };
  return {"decode B=" + std::to_string(batch) + (masked ? " StableMask" : ""),
          bytes_of({cache.keys, cache.values}), error, run};
}

/// Drawing a token for each of `batch` sequences.
Case sampling(const Shape& s, int64_t batch, double temperature, int64_t top_k, double top_p) {
  const Tensor logits = random({batch, s.vocab}) * 3;
  const auto each = [&](auto value, at::ScalarType type) {
    return at::full({batch}, value, at::TensorOptions(type));
  };
  const auto settings = [=](at::Device device) {
    const auto on = [&](const Tensor& x) { return x.to(device); };
    return Sampling{on(each(temperature, at::kDouble)),
                    on(each(top_k, at::kLong)),
                    on(each(top_p, at::kDouble)),
                    on(each(0.0, at::kDouble)),
                    on(each(1.0, at::kDouble)),
                    on(at::arange(batch, at::kLong)),
                    on(each(int64_t{3}, at::kLong)),
                    {},
                    {}};
  };
  const Sampling gpu_settings = settings(at::kCUDA);
  const Run run = [=] { sample(logits, s.vocab, gpu_settings); };
  const auto error = [=] {
    const Tensor truth = sample(logits.cpu(), s.vocab, settings(at::kCPU));
    return sample(logits, s.vocab, gpu_settings)
        .cpu()
        .ne(truth)
        .to(at::kDouble)
        .mean()
        .item<double>();
  };
  const char* name = temperature == 0 ? "greedy" : top_k > 0 ? "top-k, top-p" : "temperature";
  return {std::string("sample ") + name + " B=" + std::to_string(batch), bytes_of({logits}), error,
          run};
}

}  // namespace

std::vector<CaseMaker> decoding_cases() {
  return {[](const Shape& s) { return few_rows_up(s, 1); },
          [](const Shape& s) { return few_rows_up(s, 8); },
          [](const Shape& s) { return few_rows_down(s, 1); },
          [](const Shape& s) { return few_rows_down(s, 8); },
          [](const Shape& s) { return few_rows_head(s, 1); },
          [](const Shape& s) { return few_rows_head(s, 8); },
          [](const Shape& s) { return decode(s, 1, false); },
          [](const Shape& s) { return decode(s, 1, true); },
          [](const Shape& s) { return decode(s, 64, false); },
          [](const Shape& s) { return decode(s, 64, true); },
          [](const Shape& s) { return sampling(s, 1, 0.0, 0, 1.0); },
          [](const Shape& s) { return sampling(s, 1, 1.0, 0, 1.0); },
          [](const Shape& s) { return sampling(s, 1, 0.8, 50, 0.9); },
          [](const Shape& s) { return sampling(s, 64, 0.8, 50, 0.9); }};
}

}  // namespace stablemask::bench
