// SPDX-License-Identifier: Apache-2.0
// Transforms of Winograd's F(2×2, 3×3). The matrix products between them are PyTorch's.
#include "winograd.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tasks.hpp"

#if MLIC_X86
#include <immintrin.h>
#endif

namespace mlic::kernels {
namespace {

// Tiles of a task: a few microseconds of work.
constexpr size_t kTiles = 32;

struct WinogradJob {
  TiledMap map;
  TileRange range;
  const float* in;
  float* out;
};

// Of a tile: positions before its image, and its first row and column.
struct Place {
  size_t image, row, column;
};

inline Place place_of(const TiledMap& map, size_t tile) {
  const size_t across = map.width / 2, in_image = map.height / 2 * across;
  const size_t at = tile % in_image;
  return {tile / in_image * map.height * map.width, at / across * 2, at % across * 2};
}

}  // namespace
}  // namespace mlic::kernels

#define MLIC_BODY "winograd.inc"
#include "each_isa.inc"

namespace mlic::kernels {
namespace {

template <class Work>
void on_tiles(const WinogradJob& job, const float* more, Work work, int threads) {
  const size_t count = job.range.count, tasks = (count + kTiles - 1) / kTiles;
  const size_t last = job.range.first + count;
  run_tasks(static_cast<int64_t>(tasks), threads, [&](int64_t task, int) {
    const size_t from = job.range.first + static_cast<size_t>(task) * kTiles;
    work(job, from, std::min(from + kTiles, last), more);
  });
}

}  // namespace

void winograd_input(const float* x, const TiledMap& map, const TileRange& range, float* coefficients, Isa isa,
                    int threads) {
  const Floats zeros(map.channels);
  on_tiles({map, range, x, coefficients}, zeros.data(), MLIC_PICK_OF(isa, input_tiles), threads);
}

void winograd_output(const float* coefficients, const TiledMap& map, const TileRange& range, const float* bias,
                     float* y, Isa isa, int threads) {
  const Floats zeros(map.channels);
  on_tiles({map, range, coefficients, y}, bias == nullptr ? zeros.data() : bias, MLIC_PICK_OF(isa, output_tiles),
           threads);
}

void winograd_gradient(const float* grad, const TiledMap& map, const TileRange& range, float* coefficients, Isa isa,
                       int threads) {
  on_tiles({map, range, grad, coefficients}, nullptr, MLIC_PICK_OF(isa, gradient_tiles), threads);
}

}  // namespace mlic::kernels
