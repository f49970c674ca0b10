// SPDX-License-Identifier: Apache-2.0
// Steps around the range coder at one colour of the checkerboard: quantise, index, decode, residual.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace mlic::kernels {

// In all functions, `isa` is what chosen_isa() says.

// Packed positions handled at once; each such block reports in one byte of flags.
constexpr size_t kCodingBlock = 512;

// What a byte of flags says. The same numbers stand in kernels/coding_steps.py.
constexpr uint8_t kBadScale = 1;     // a scale is NaN or infinite
constexpr uint8_t kBadValue = 2;     // a mean, or y - mean, is
constexpr uint8_t kLargeSymbol = 4;  // a symbol does not fit in int16 (or in +-2^30, if wide)

// A map [B, C, h, w]; strides in elements.
template <typename T>
struct Map {
  T* data;
  ptrdiff_t stride_b, stride_c, stride_h, stride_w;
};

// Sizes of all maps of a step, and which colour it is for. Packed passes are [B, C, h, w/2], contiguous.
struct Board {
  size_t batch, channels, height, width;  // width even
  size_t first;                           // first column of row 0: 1 for anchors, 0 for the others

  size_t packed() const { return batch * channels * height * (width / 2); }
};

// Boundaries of the indexes.
struct ScaleTable {
  const float* entries;  // [rows], increasing
  size_t rows;           // 1 to 256
  float bound;           // smaller scales count as this one
};

// symbol = round(y - mean), ties to even; index = smallest k with max(scale, bound) <= entries[k], else rows - 1;
// values = symbol + mean at the colour, 0 at the other one if clear.
// symbols: int32_t if wide, saturated at +-2^30, else int16_t, saturated, [packed]; indexes [packed];
// flags [ceil(packed / kCodingBlock)].
void encode_step(const Board& board, Map<float> values, Map<const float> y, Map<const float> scales,
                 Map<const float> means, const ScaleTable& table, bool clear, bool wide, void* symbols,
                 uint8_t* indexes, uint8_t* flags, Isa isa, int threads);

// The same indexes from scales alone; means are only checked. Layouts as in encode_step.
void decode_indexes(const Board& board, Map<const float> scales, Map<const float> means, const ScaleTable& table,
                    uint8_t* indexes, uint8_t* flags, Isa isa, int threads);

// values = symbol + mean at the colour, 0 at the other one if clear. symbols: int32_t if wide, else int16_t, [packed].
void decode_values(const Board& board, Map<float> values, const void* symbols, bool wide, Map<const float> means,
                   bool clear, Isa isa, int threads);

// values += tanh(logits) / 2 at the colour.
void residual_step(const Board& board, Map<float> values, Map<const float> logits, Isa isa, int threads);

}  // namespace mlic::kernels
