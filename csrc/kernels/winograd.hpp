// SPDX-License-Identifier: Apache-2.0
// Winograd's F(2×2, 3×3): a 3×3 convolution (stride 1, zero padding 1) as 16 matrix products over tiles.
#pragma once

#include <cstddef>
#include <vector>

#include "isa.hpp"
#include "rounding.hpp"

namespace mlic::kernels {

// Channels of a map are a multiple of this.
constexpr size_t kWinogradChannels = 16;

// A map [B, H, W, C], positions of an image in rows and channels innermost; float32, dense; W even. Its tiles of 2 × 2
// positions are counted through the batch, row by row; where H is odd, the last row's have a half outside.
struct TiledMap {
  size_t batch, height, width, channels;
  size_t margin = 0;  // rows above each image, and below it, that are in memory: it has H + 2·margin there

  size_t tiles() const { return batch * blocks_of<size_t>(height, 2) * (width / 2); }
  size_t rows() const { return height + 2 * margin; }  // of an image, in memory
};

// A convolution's weights g, as G g Gᵀ: [16][outputs / panel][channels][panel].
struct WinogradWeights {
  const float* coefficients;
  size_t outputs;     // a multiple of kWinogradChannels
  const float* bias;  // [outputs], or null
  bool gelu;          // whether GELU follows
  size_t panel;       // columns of a panel of weights, 32 or 16
  size_t factor;      // whether a pixel shuffle follows: it is 1, or the outputs are [factor][factor][C]
};

// Some rows of a map, those of all images counted.
struct Piece {
  const float* values;
  size_t rows;
};

// y [B, H · factor, W · factor, C], C = outputs / factor², = convolution of the map that the pieces make up one after
// the other. Zeros stand for what lies outside of it. C is a multiple of kWinogradChannels.
void winograd_convolve(const std::vector<Piece>& x, const TiledMap& map, const WinogradWeights& weights, float* y,
                       Isa isa, int threads);

// What the weights' gradient is formed of: the sum over tiles of (Bᵀ d B)[channel] (A y' Aᵀ)[output] for each of the 16
// coefficients, [16][channels][outputs]. d: x's tiles; y': those of grad [B, H, W, outputs]; H even, no margin. The
// same for the same number of threads.
void winograd_weights(const float* x, const TiledMap& map, const float* grad, size_t outputs, float* total, Isa isa,
                      int threads);

}  // namespace mlic::kernels
