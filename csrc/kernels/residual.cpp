// SPDX-License-Identifier: Apache-2.0
// Entry point of the residual addition, handed block by block to the body in residual.inc.
#include "residual.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

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

#define MLIC_BODY "residual.inc"
#include "each_isa.inc"

namespace mlic::kernels {
namespace {

// Waking a thread for fewer blocks than these costs more than it saves.
constexpr size_t kBlocksPerTask = 64;

}  // namespace

void add_residual(const Board& board, Map<float> values, Map<const float> logits, Isa isa, int threads) {
  const ResidualJob job{board, values, logits};
  const auto work = MLIC_PICK_OF(isa, residual_block);
  const size_t blocks = blocks_of(board.positions(), kResidualBlock);
  const size_t tasks = blocks_of(blocks, kBlocksPerTask);
  run_tasks(static_cast<int64_t>(tasks), threads, [&](int64_t task, int) {
    const size_t first = static_cast<size_t>(task) * kBlocksPerTask;
    for (size_t block = first; block < std::min(blocks, first + kBlocksPerTask); block++) work(job, block);
  });
}

}  // namespace mlic::kernels
