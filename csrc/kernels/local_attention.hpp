// SPDX-License-Identifier: Apache-2.0
// Attention in overlapping 5×5 windows around the non-anchors (row + column even) of a map, float32.
//
// For each non-anchor l, the 25 positions i of its window attend to the 25 positions j of the same window, by
//     score(i, j) = q_i·k_j / sqrt(C/2) + table[offset(i, j)][head] + (i and j anchors inside the map ? 0 : −100);
// q, k and v are zero outside the map. A convolution over the 25 results makes one vector of them.
#pragma once

#include <array>
#include <cstdint>

#include "isa.hpp"

namespace mlic::kernels {

constexpr int kWindow = 5;
constexpr int kArea = kWindow * kWindow;
constexpr int kReach = kWindow / 2;
constexpr int kHeads = 2;
// A key lies −4 … 4 rows and columns from its query: offset (query row − key row + 4)·9 + (query column − key column +
// 4).
constexpr int kSpan = 2 * kWindow - 1;
constexpr int kOffsets = kSpan * kSpan;

// The input of all three functions.
struct QkvMaps {
  const float* data;  // [batch, 3·channels, height, width]: q, k, v; channel c is element c / 2 of head c % 2
  std::array<int64_t, 4> strides;  // of data, in floats
  const float* table;              // [81, 2]: what is added to the scores
  int64_t batch;
  int64_t channels;  // C, even
  int64_t height;    // ≥ 1
  int64_t width;     // even, ≥ 2

  int64_t half() const { return width / 2; }
  int64_t head_width() const { return channels / kHeads; }
};

// All outputs are written completely, in coding order: column j of the packed row is column 2j of even rows and
// 2j + 1 of odd ones. Results do not depend on `threads`. Throws std::bad_alloc. `isa` is what chosen_isa() says.

// out [batch, height, width/2, 2C] = proj(fusion(attended)).
//   fusion_weight [2C, C, 5, 5], fusion_bias [2C], proj_weight [2C, 2C] (out, in), proj_bias [2C], contiguous
void local_attention(const QkvMaps& qkv, const float* fusion_weight, const float* fusion_bias, const float* proj_weight,
                     const float* proj_bias, float* out, Isa isa, int threads);

// attended [C, 25, batch, last − first, width/2]: what the fusion reads for the windows of rows first ≤ row < last.
// Here channels are in the fusion's order, head·C/2 + element.
void local_attention_rows(const QkvMaps& qkv, int64_t first, int64_t last, float* attended, Isa isa, int threads);

// Adds to qkv_grad [batch, 3C, height, width] and table_grad [batch, 2, 81] (doubles) what reaches them
// from attended_grad, the gradient of local_attention_rows' result for the same rows.
void local_attention_rows_backward(const QkvMaps& qkv, int64_t first, int64_t last, const float* attended_grad,
                                   float* qkv_grad, double* table_grad, Isa isa, int threads);

}  // namespace mlic::kernels
