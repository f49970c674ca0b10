// SPDX-License-Identifier: Apache-2.0
// Entry points of the coding steps: what a step needs, handed block by block to the bodies in coding_steps.inc.
#include "coding_steps.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "rounding.hpp"
#include "tasks.hpp"

#if MLIC_X86
#include <immintrin.h>
#endif

namespace mlic::kernels {
namespace {

// A run of packed positions of a block within one row of the maps.
struct Run {
  size_t at, length;         // first position within the block, and how many; none: the block has ended
  size_t b, c, row, column;  // where the first one's pair of columns begins in the maps
  size_t parity;             // 1 where the right one of each pair is the coded one
};

struct EncodeJob {
  Board board;
  Map<float> values;
  Map<const float> y, scales, means;
  ScaleTable table;
  bool clear, wide;
  void* symbols;  // int32_t if wide, else int16_t
  uint8_t* indexes;
  uint8_t* flags;
};

struct IndexJob {
  Board board;
  Map<const float> scales, means;
  ScaleTable table;
  uint8_t* indexes;
  uint8_t* flags;
};

struct ValueJob {
  Board board;
  Map<float> values;
  const void* symbols;  // int32_t if wide, else int16_t
  Map<const float> means;
  bool clear, wide;
};

struct ResidualJob {
  Board board;
  Map<float> values;
  Map<const float> logits;
};

Map<const float> read_only(const Map<float>& map) {
  return {map.data, map.stride_b, map.stride_c, map.stride_h, map.stride_w};
}

}  // namespace
}  // namespace mlic::kernels

#define MLIC_BODY "coding_steps.inc"
#include "each_isa.inc"

namespace mlic::kernels {
namespace {

// Waking a thread for fewer blocks than these costs more than it saves.
constexpr size_t kBlocksPerTask = 64;

template <typename Job>
void run_blocks(const Job& job, void (*work)(const Job&, size_t), int threads) {
  const size_t blocks = blocks_of(job.board.packed(), kCodingBlock);
  const size_t tasks = blocks_of(blocks, kBlocksPerTask);
  run_tasks(static_cast<int64_t>(tasks), threads, [&](int64_t task, int) {
    const size_t first = static_cast<size_t>(task) * kBlocksPerTask;
    for (size_t block = first; block < std::min(blocks, first + kBlocksPerTask); block++) work(job, block);
  });
}

}  // namespace

void encode_step(const Board& board, Map<float> values, Map<const float> y, Map<const float> scales,
                 Map<const float> means, const ScaleTable& table, bool clear, bool wide, void* symbols,
                 uint8_t* indexes, uint8_t* flags, Isa isa, int threads) {
  run_blocks(EncodeJob{board, values, y, scales, means, table, clear, wide, symbols, indexes, flags},
             MLIC_PICK_OF(isa, encode_block), threads);
}

void decode_indexes(const Board& board, Map<const float> scales, Map<const float> means, const ScaleTable& table,
                    uint8_t* indexes, uint8_t* flags, Isa isa, int threads) {
  run_blocks(IndexJob{board, scales, means, table, indexes, flags}, MLIC_PICK_OF(isa, index_block), threads);
}

void decode_values(const Board& board, Map<float> values, const void* symbols, bool wide, Map<const float> means,
                   bool clear, Isa isa, int threads) {
  run_blocks(ValueJob{board, values, symbols, means, clear, wide}, MLIC_PICK_OF(isa, value_block), threads);
}

void residual_step(const Board& board, Map<float> values, Map<const float> logits, Isa isa, int threads) {
  run_blocks(ResidualJob{board, values, logits}, MLIC_PICK_OF(isa, residual_block), threads);
}

}  // namespace mlic::kernels
