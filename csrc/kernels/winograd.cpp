// SPDX-License-Identifier: Apache-2.0
// Winograd's F(2×2, 3×3). A task takes a block of tiles through transform, products and transform back, all in its
// own processor's cache: products over a whole map would have to fetch what another processor transformed.
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

constexpr size_t kCoefficients = 16;

// Floats of the coefficients that a task forms: half of a processor's second cache, of which the weights take the rest.
constexpr size_t kWorkspace = 128 * 1024;

// Tiles of a task are a multiple of kRows, the rows that are multiplied at once, and no fewer than kLeastTiles, so that
// weights which are not in the cache are read for many products.
constexpr size_t kRows = 12;
constexpr size_t kLeastTiles = 2 * kRows, kMostTiles = 8 * kRows;

// Channels of x whose products with the gradient's are summed at once.
constexpr size_t kSums = 4;

// Tiles first … first + count − 1, and where their 16 coefficients lie: [16][count][C] with `stride` floats from one
// coefficient to the next.
struct TileRange {
  size_t first, count, stride;
};

// Transforms of a map to the coefficients of some of its tiles.
struct ForwardJob {
  TiledMap map;
  TileRange range;
  const float* const* rows;  // of all images, margins included
  const float* zeros;
  float* out;
};

// The result's map, or its gradient's, and the coefficients of some of its tiles.
struct OtherJob {
  TiledMap map;
  TileRange range;
  const float* in;
  float* out;
};

// A map x, and another one of the same size that is either the result or a gradient.
struct WinogradMaps {
  TiledMap map, other;
  const float* const* rows;  // of x
  const float* zeros;        // of as many channels as the wider map
};

inline size_t block_tiles(size_t channels, size_t outputs) {
  const size_t fitting = kWorkspace / (kCoefficients * (channels + outputs)) / kRows * kRows;
  return std::min(std::max(fitting, kLeastTiles), kMostTiles);
}

// The same where products are summed: all sums are read and written for each block, so that where there are many the
// blocks are larger, whatever becomes of the cache.
inline size_t summed_tiles(size_t channels, size_t outputs) {
  const size_t worthwhile = std::min<size_t>(channels * outputs / 1024, 12 * kRows) / kRows * kRows;
  return std::max(block_tiles(channels, outputs), worthwhile);
}

// Floats from one coefficient's block to the next one's: no multiple of a page, or all would share a place of the
// cache.
inline size_t block_stride(size_t tiles, size_t channels) {
  return tiles * channels + 16;
}

inline size_t workspace_floats(size_t tiles, size_t channels, size_t outputs) {
  return kCoefficients * (block_stride(tiles, channels) + block_stride(tiles, outputs));
}

// Of a tile: its image, and its first row and column, margins not counted.
struct Place {
  size_t image, row, column;
};

inline Place place_of(const TiledMap& map, size_t tile) {
  const size_t across = map.width / 2, in_image = blocks_of<size_t>(map.height, 2) * across;
  const size_t at = tile % in_image;
  return {tile / in_image, at / across * 2, at % across * 2};
}

}  // namespace
}  // namespace mlic::kernels

#define MLIC_BODY "winograd.inc"
#include "each_isa.inc"

namespace mlic::kernels {
namespace {

// Where each row of a map begins.
std::vector<const float*> rows_of(const std::vector<Piece>& pieces, const TiledMap& map) {
  std::vector<const float*> rows;
  for (const Piece& piece : pieces) {
    for (size_t row = 0; row < piece.rows; row++) rows.push_back(piece.values + row * map.width * map.channels);
  }
  return rows;
}

// The result's map, or the gradient's.
TiledMap with_channels(const TiledMap& map, size_t channels) {
  return {map.batch, map.height, map.width, channels};
}

std::vector<Floats> workspaces(size_t workers, size_t floats) {
  std::vector<Floats> found;
  for (size_t worker = 0; worker < workers; worker++) found.emplace_back(floats);
  return found;
}

}  // namespace

void winograd_convolve(const std::vector<Piece>& x, const TiledMap& map, const WinogradWeights& weights, float* y,
                       Isa isa, int threads) {
  const size_t outputs = weights.outputs;
  const size_t tiles = block_tiles(map.channels, outputs), tasks = blocks_of(map.tiles(), tiles);
  const size_t workers = std::min(tasks, static_cast<size_t>(std::max(threads, 1)));
  const Floats zeros(std::max(map.channels, outputs));
  const std::vector<Floats> rooms = workspaces(workers, workspace_floats(tiles, map.channels, outputs));
  const std::vector<const float*> rows = rows_of(x, map);
  const WinogradMaps maps{map, with_channels(map, outputs), rows.data(), zeros.data()};
  const auto work = MLIC_PICK_OF(isa, convolve_block);
  run_tasks(static_cast<int64_t>(tasks), static_cast<int>(workers), [&](int64_t task, int worker) {
    const size_t first = static_cast<size_t>(task) * tiles, count = std::min(tiles, map.tiles() - first);
    work(maps, first, count, tiles, weights, y, rooms[static_cast<size_t>(worker)].data());
  });
}

void winograd_weights(const float* x, const TiledMap& map, const float* grad, size_t outputs, float* total, Isa isa,
                      int threads) {
  const size_t tiles = summed_tiles(map.channels, outputs), blocks = blocks_of(map.tiles(), tiles);
  const size_t workers = std::min(blocks, static_cast<size_t>(std::max(threads, 1)));
  const size_t floats = kCoefficients * map.channels * outputs;
  const Floats zeros(map.channels);
  const std::vector<Floats> rooms = workspaces(workers, workspace_floats(tiles, map.channels, outputs));
  const std::vector<Floats> sums = workspaces(workers, floats);
  const std::vector<const float*> rows = rows_of({{x, map.batch * map.height}}, map);
  const WinogradMaps maps{map, with_channels(map, outputs), rows.data(), zeros.data()};
  const auto work = MLIC_PICK_OF(isa, weights_block);
  // A task is a fixed share of the blocks, so that sums do not depend on who takes which.
  run_tasks(static_cast<int64_t>(workers), static_cast<int>(workers), [&](int64_t task, int) {
    const size_t share = static_cast<size_t>(task);
    for (size_t block = blocks * share / workers; block < blocks * (share + 1) / workers; block++) {
      const size_t first = block * tiles, count = std::min(tiles, map.tiles() - first);
      work(maps, first, count, tiles, grad, sums[share].data(), rooms[share].data());
    }
  });
  std::fill(total, total + floats, 0.0f);
  for (const Floats& sum : sums) {
    for (size_t i = 0; i < floats; i++) total[i] += sum.data()[i];
  }
}

}  // namespace mlic::kernels
