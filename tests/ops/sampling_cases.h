#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cstdint>
#include <random>
#include <vector>

#include "stablemask/ops/sampling.h"

/// Settings and logits for the tests of ops::sample.
namespace stablemask::ops::testing {

/// The settings of one sequence.
struct Draw {
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double penalty = 1;
  int64_t seed = 1;
  int64_t drawn = 0;
};

/// On the CPU; `seen` is left undefined.
inline Sampling sampling_of(const std::vector<Draw>& draws) {
  const auto each = [&](auto member) {
    std::vector<std::decay_t<decltype(draws[0].*member)>> values;
    for (const Draw& draw : draws) values.push_back(draw.*member);
    return at::tensor(values);
  };
  return {each(&Draw::temperature),
          each(&Draw::top_k),
          each(&Draw::top_p),
          each(&Draw::min_p),
          each(&Draw::penalty),
          each(&Draw::seed),
          each(&Draw::drawn),
          {},
          {}};
}

/// Every combination of some values of each setting, with a seed of its own.
inline std::vector<Draw> combinations(int64_t vocabulary) {
  std::vector<Draw> draws;
  for (const double temperature : {0.0, 0.02, 0.7, 1.0, 30.0}) {
    for (const int64_t top_k : {int64_t{0}, int64_t{1}, int64_t{7}, vocabulary - 1}) {
      for (const double top_p : {1.0, 0.9, 0.3, 1e-300}) {
        for (const double min_p : {0.0, 1e-4, 0.2, 1.0}) {
          for (const double penalty : {1.0, 1.7, 0.4}) {
            const auto number = static_cast<int64_t>(draws.size());
            draws.push_back({temperature, top_k, top_p, min_p, penalty, number * 7919 - 3,
                             number % 5 == 0 ? number * 1'000'003 : number % 17});
          }
        }
      }
    }
  }
  return draws;
}

/// Logits [rows, columns] as models and accidents make them: kind 0 normal, 1 with many ties, 2 all
/// equal, 3 one far above the others, 4 of very different sizes, 5 as 0, rounded to bf16.
constexpr int kKinds = 6;
inline at::Tensor random_logits(int kind, int64_t rows, int64_t columns, uint64_t seed) {
  const at::Tensor normal =
      at::randn({rows, columns}, at::detail::createCPUGenerator(seed), at::kFloat);
  switch (kind) {
    case 1:
      return (normal * 2).round();
    case 2:
      return at::full({rows, columns}, -3.5f);
    case 3:
      return at::where(normal == normal.amax(1, true), normal + 30, normal);
    case 4:
      return normal * at::exp(normal.flip(1) * 20);
    case 5:
      return (normal * 4).to(at::kBFloat16);
    default:
      return normal * 3;
  }
}

/// uint8 [rows, columns], a third of it 1.
inline at::Tensor random_seen(int64_t rows, int64_t columns, uint64_t seed) {
  return at::randint(3, {rows, columns}, at::detail::createCPUGenerator(seed), at::kLong)
      .eq(0)
      .to(at::kByte);
}

/// Draws of random settings.
inline std::vector<Draw> random_draws(size_t count, int64_t vocabulary, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](uint64_t n) { return static_cast<int64_t>(random() % n); };
  const auto one_of = [&](std::vector<double> values) {
    return values[static_cast<size_t>(below(values.size()))];
  };
  std::vector<Draw> draws(count);
  for (Draw& draw : draws) {
    draw.temperature = one_of({0.0, 0.01, 0.3, 0.7, 1.0, 1.3, 4.0, 1e6});
    draw.top_k = one_of({0, 1}) == 0 ? 0 : 1 + below(static_cast<uint64_t>(vocabulary) + 3);
    draw.top_p = one_of({1.0, 1.0, 0.95, 0.6, 1e-9, 0.999999});
    draw.min_p = one_of({0.0, 0.0, 0.05, 0.5, 1.0, 1e-9});
    draw.penalty = one_of({1.0, 1.0, 1.2, 0.7, 1e-3});
    draw.seed = static_cast<int64_t>(random());
    draw.drawn = below(1 << 20);
  }
  return draws;
}

}  // namespace stablemask::ops::testing
