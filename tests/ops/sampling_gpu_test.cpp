#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "stablemask/ops/sampling.h"
#include "tests/ops/gpu_errors.h"
#include "tests/ops/sampling_cases.h"

namespace stablemask::ops {
namespace {

using at::Tensor;
using testing::Draw;
using testing::kKinds;
using testing::random_draws;
using testing::random_logits;
using testing::random_seen;
using testing::sampling_of;

class GpuSampling : public testing_gpu::GpuTest {};

Sampling on_gpu(const Sampling& s) {
  const auto moved = [](const Tensor& x) { return x.defined() ? x.to(at::kCUDA) : x; };
  return {moved(s.temperature),
          moved(s.top_k),
          moved(s.top_p),
          moved(s.min_p),
          moved(s.repetition_penalty),
          moved(s.seed),
          moved(s.drawn),
          moved(s.rows),
          moved(s.seen)};
}

/// Draws the same on both devices; returns the number of rows.
int64_t expect_same(int kind, int64_t rows, int64_t columns, int64_t vocabulary, uint64_t seed) {
  Tensor logits = random_logits(kind, rows, columns, seed);
  if (vocabulary < columns) logits.narrow(1, vocabulary, columns - vocabulary).fill_(NAN);
  if (rows > 3)
    logits[2][static_cast<int64_t>(seed) % vocabulary] = seed % 2 == 0 ? NAN : -INFINITY;
  Sampling cpu = sampling_of(random_draws(static_cast<size_t>(rows), vocabulary, seed));
  cpu.seen = random_seen(rows + 2, columns, seed + 1);
  cpu.rows = at::arange(rows, at::kLong).flip(0) + 1;
  const Sampling gpu = on_gpu(cpu);
  const Tensor ids = sample(logits.to(at::kCUDA), vocabulary, gpu).cpu();
  const Tensor expected = sample(logits, vocabulary, cpu);
  const Tensor wrong = ids.ne(expected).nonzero();
  EXPECT_EQ(wrong.numel(), 0) << "kind " << kind << ", " << rows << " x " << vocabulary << ", row "
                              << wrong[0].item<int64_t>();
  EXPECT_TRUE(gpu.seen.cpu().equal(cpu.seen)) << "kind " << kind;
  if (rows > 3) {
    EXPECT_EQ(ids[2].item<int64_t>(), -1);
  }
  return rows;
}

TEST_F(GpuSampling, DrawsTheCpusIds) {
  int64_t drawn = 0;
  for (int kind = 0; kind < kKinds; ++kind) {
    const auto seed = static_cast<uint64_t>(1000 * kind + 7);
    for (const int64_t vocabulary : {1, 2, 31, 257, 1023, 2049}) {
      drawn += expect_same(kind, 280, vocabulary + vocabulary % 3, vocabulary, seed + vocabulary);
    }
    drawn += expect_same(kind, 1, 50304, 50257, seed);  // clusters of 8, 4, 2 blocks and one
    drawn += expect_same(kind, 64, 50304, 50257, seed + 1);
    drawn += expect_same(kind, 100, 9001, 9001, seed + 2);
    drawn += expect_same(kind, 150, 9001, 9000, seed + 3);
    drawn += expect_same(kind, 8, 151936, 151936, seed + 4);
  }
  EXPECT_GE(drawn, 10000);
}

TEST_F(GpuSampling, AGraphReadsSettingsAndLogitsAnew) {
  constexpr int64_t kRows = 3, kColumns = 5000;
  Tensor logits = random_logits(0, kRows, kColumns, 1).to(at::kCUDA);
  const std::vector<Draw> draws = random_draws(kRows, kColumns, 2);
  Sampling gpu = on_gpu(sampling_of(draws));
  gpu.seen = random_seen(kRows, kColumns, 3).to(at::kCUDA);
  at::cuda::CUDAGraph graph;
  Tensor ids;
  {
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
    sample(logits, kColumns, gpu);
    c10::cuda::getCurrentCUDAStream().synchronize();
    graph.capture_begin();
    ids = sample(logits, kColumns, gpu);
    graph.capture_end();
  }
  for (uint64_t round = 0; round < 20; ++round) {
    Sampling cpu = sampling_of(random_draws(kRows, kColumns, 10 + round));
    cpu.seen = gpu.seen.cpu();
    const Tensor fresh = random_logits(static_cast<int>(round) % kKinds, kRows, kColumns, round);
    logits.copy_(fresh);
    for (const auto member :
         {&Sampling::temperature, &Sampling::top_k, &Sampling::top_p, &Sampling::min_p,
          &Sampling::repetition_penalty, &Sampling::seed, &Sampling::drawn}) {
      (gpu.*member).copy_(cpu.*member);
    }
    graph.replay();
    EXPECT_TRUE(ids.cpu().equal(sample(fresh.to(at::kFloat), kColumns, cpu))) << round;
    EXPECT_TRUE(gpu.seen.cpu().equal(cpu.seen)) << round;
  }
}

TEST_F(GpuSampling, RefusesSettingsOfAnotherDevice) {
  const Tensor logits = at::zeros({1, 5}, testing_gpu::gpu(at::kFloat));
  EXPECT_THROW(sample(logits, 5, sampling_of({{}})), c10::Error);
}

}  // namespace
}  // namespace stablemask::ops
