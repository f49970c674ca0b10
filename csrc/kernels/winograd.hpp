// SPDX-License-Identifier: Apache-2.0
// Transforms of Winograd's F(2×2, 3×3): a 3×3 convolution (stride 1, zero padding 1) as 16 matrix products over tiles.
#pragma once

#include <cstddef>

#include "isa.hpp"

namespace mlic::kernels {

// Channels of a map are a multiple of this.
constexpr size_t kWinogradChannels = 16;

// A map [B, H, W, C], positions of an image in rows and channels innermost; float32, dense; H and W even. Its tiles of
// 2 × 2 positions are counted through the batch, row by row.
struct TiledMap {
  size_t batch, height, width, channels;

  size_t tiles() const { return batch * (height / 2) * (width / 2); }
};

// Tiles first … first + count − 1, and where their 16 coefficients lie: [16][count][C] with `stride` floats from one
// coefficient to the next.
struct TileRange {
  size_t first, count, stride;
};

// Bᵀ d B of the 4 × 4 positions around each tile, zero outside the map.
void winograd_input(const float* x, const TiledMap& map, const TileRange& range, float* coefficients, Isa isa,
                    int threads);

// Aᵀ m A, plus bias [C] unless it is null: the tiles of y.
void winograd_output(const float* coefficients, const TiledMap& map, const TileRange& range, const float* bias,
                     float* y, Isa isa, int threads);

// A g Aᵀ of each tile's gradient: what the products' gradients with respect to the weights are formed with.
void winograd_gradient(const float* grad, const TiledMap& map, const TileRange& range, float* coefficients, Isa isa,
                       int threads);

}  // namespace mlic::kernels
