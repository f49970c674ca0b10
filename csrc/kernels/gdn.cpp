// SPDX-License-Identifier: Apache-2.0
// GDN in one pass over memory: squares of a block of positions are formed in the cache, multiplied with the weights
// there, and the result is applied at once. Nothing of the size of a map is allocated.
#include "gdn.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "rounding.hpp"
#include "tasks.hpp"

#if MLIC_X86
#include <immintrin.h>
#endif

namespace mlic::kernels {
namespace {

// Rows that are multiplied at once.
constexpr size_t kRows = 6;
// Positions of a task in channels-last maps, a multiple of those multiplied at once.
constexpr size_t kPixels = 96;

struct GdnJob {
  GdnMaps maps;
  const float* beta;
  const float*
      weights;  // [C up to a multiple of kRows][C]; channels-last: [panels][C in][panel of C out], zeros behind
  bool inverse;
};

struct GdnGradJob {
  GdnGradMaps maps;
  const float* beta;
  const float *gamma, *transposed;  // [C up to a multiple of kRows][C], zeros behind
  bool inverse;
};

}  // namespace
}  // namespace mlic::kernels

#define MLIC_BODY "gdn.inc"
#include "each_isa.inc"

namespace mlic::kernels {

void gdn(const GdnMaps& maps, const float* beta, const float* gamma, bool inverse, Isa isa, int threads) {
  const size_t channels = maps.channels, panel = MLIC_PICK_OF(isa, panel_width)(maps.channels_last);
  if (maps.batch == 0 || channels == 0 || maps.positions == 0) return;
  size_t tasks, scratch;
  Floats weights;
  if (maps.channels_last) {
    const size_t panels = blocks_of(channels, panel);
    weights = Floats(panels * channels * panel);
    for (size_t o = 0; o < channels; o++) {
      float* to = weights.data() + o / panel * channels * panel + o % panel;
      for (size_t k = 0; k < channels; k++) to[k * panel] = gamma[o * channels + k];
    }
    tasks = blocks_of(maps.batch * maps.positions, kPixels);
    scratch = kPixels * channels;
  } else {
    weights = Floats(round_up(channels, kRows) * channels);
    std::copy(gamma, gamma + channels * channels, weights.data());
    tasks = maps.batch * blocks_of(maps.positions, panel);
    scratch = channels * panel;
  }
  const size_t workers = std::min(tasks, static_cast<size_t>(std::max(threads, 1)));
  std::vector<Floats> squares;
  for (size_t worker = 0; worker < workers; worker++) squares.emplace_back(scratch);
  const GdnJob job{maps, beta, weights.data(), inverse};
  const auto work = maps.channels_last ? MLIC_PICK_OF(isa, pixels_task) : MLIC_PICK_OF(isa, planes_task);
  run_tasks(static_cast<int64_t>(tasks), static_cast<int>(workers), [&](int64_t task, int worker) {
    work(job, static_cast<size_t>(task), squares[static_cast<size_t>(worker)].data());
  });
}

void gdn_backward(const GdnGradMaps& maps, const float* beta, const float* gamma, float* dbeta, float* dgamma,
                  bool inverse, Isa isa, int threads) {
  const size_t channels = maps.channels, panel = MLIC_PICK_OF(isa, panel_width)(false);
  const size_t rows = round_up(channels, kRows), across = round_up(channels, panel);
  std::fill(dbeta, dbeta + channels, 0.0f);
  std::fill(dgamma, dgamma + channels * channels, 0.0f);
  if (maps.batch == 0 || channels == 0 || maps.positions == 0) return;
  Floats weights(rows * channels), transposed(rows * channels);
  std::copy(gamma, gamma + channels * channels, weights.data());
  for (size_t o = 0; o < channels; o++) {
    for (size_t k = 0; k < channels; k++) transposed.data()[k * channels + o] = gamma[o * channels + k];
  }
  // Each worker has a range of its own and sums of its own, so that these do not depend on who was faster.
  const size_t tasks = maps.batch * blocks_of(maps.positions, panel);
  const size_t workers = std::min(tasks, static_cast<size_t>(std::max(threads, 1)));
  std::vector<Floats> scratch, sums;
  for (size_t worker = 0; worker < workers; worker++) {
    scratch.emplace_back(MLIC_PICK_OF(isa, grad_scratch)(channels));
    sums.emplace_back(rows * across + channels);
  }
  const GdnGradJob job{maps, beta, weights.data(), transposed.data(), inverse};
  const auto work = MLIC_PICK_OF(isa, grad_task);
  run_tasks(static_cast<int64_t>(workers), static_cast<int>(workers), [&](int64_t range, int) {
    const size_t part = static_cast<size_t>(range);
    for (size_t task = tasks * part / workers; task < tasks * (part + 1) / workers; task++) {
      work(job, task, scratch[part].data(), sums[part].data());
    }
  });
  for (const Floats& sum : sums) {
    for (size_t o = 0; o < channels; o++) {
      for (size_t k = 0; k < channels; k++) dgamma[o * channels + k] += sum.data()[o * across + k];
      dbeta[o] += sum.data()[rows * across + o];
    }
  }
}

}  // namespace mlic::kernels
