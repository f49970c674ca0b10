// SPDX-License-Identifier: Apache-2.0
// Residual addition at one parity of the checkerboard: values += tanh(logits) / 2.
#pragma once

#include <cstddef>

#include "isa.hpp"

namespace mlic::kernels {

// Positions handled at once.
constexpr size_t kResidualBlock = 512;

// A map [B, C, h, w]; strides in elements.
template <typename T>
struct Map {
  T* data;
  ptrdiff_t stride_b, stride_c, stride_h, stride_w;
};

// Sizes of both maps, and which parity is added to. Its positions are counted in coding order, as [B, C, h, w/2].
struct Board {
  size_t batch, channels, height, width;  // width even
  size_t first;                           // first column of row 0: 1 for anchors, 0 for the others

  size_t positions() const { return batch * channels * height * (width / 2); }
};

// values += tanh(logits) / 2 at the parity. `isa` is what chosen_isa() says.
void add_residual(const Board& board, Map<float> values, Map<const float> logits, Isa isa, int threads);

}  // namespace mlic::kernels
