// SPDX-License-Identifier: Apache-2.0
// Softmax attention between positions of a map, float32, without ever holding all scores.
//
// For each picture and head, a group of W neighbouring channels:
//     score(i, j) = Σ_c q[c][i] k[c][j] / sqrt(W),    out[e][i] = Σ_j softmax_j(score(i, j)) v[e][j].
// Whole form: i and j are all positions. Checkerboard form: i are the non-anchors (row + column even), j the anchors,
// out is zero at the anchors, and a key at most `radius` rows and columns from its query has a score of −100.
#pragma once

#include <array>
#include <cstdint>

#include "isa.hpp"

namespace mlic::kernels {

// A map [batch, channels, height, width]; strides in floats.
struct AttendedMap {
  const float* data;
  std::array<int64_t, 4> strides;
};

struct SoftmaxAttention {
  AttendedMap queries, keys, values;
  float* out;  // [batch, channels, height, width], contiguous; written completely
  int64_t batch;
  int64_t channels;
  int64_t height;  // ≥ 1
  int64_t width;   // ≥ 1; even in the checkerboard form
  int64_t heads;   // divides channels
  bool checkerboard;
  int64_t radius;  // ≥ 0

  int64_t head_width() const { return channels / heads; }
  int64_t positions() const { return height * width; }
  // Positions that are attended from, and as many to.
  int64_t count() const { return checkerboard ? positions() / 2 : positions(); }
};

// Results do not depend on `threads`, nor a picture's on the others. Throws std::bad_alloc. `isa` is what chosen_isa()
// says.
void softmax_attention(const SoftmaxAttention& job, Isa isa, int threads);

}  // namespace mlic::kernels
