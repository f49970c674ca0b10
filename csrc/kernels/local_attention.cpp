// SPDX-License-Identifier: Apache-2.0
// Local window attention on the CPU: what does not depend on the instruction set.
//
// Lanes of a vector are non-anchors of one row, so no result depends on what lies in the other lanes. Rows are kept
// with even and odd columns apart: the keys at one offset of neighbouring non-anchors are then adjacent floats.
// A score depends on query and key alone, not on the window, so each of the 81 offsets of a query is computed
// once and used by the 12 or 13 windows that hold both.
#include "local_attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "isa.hpp"
#include "rounding.hpp"
#include "tasks.hpp"

#if MLIC_X86
#include <immintrin.h>
#endif

namespace mlic::kernels {

namespace {

constexpr float kMasked = -100.0f;
// Weights are relative to the largest score of all 81 offsets. A window whose own scores are so much lower that its
// weights sum to less than this is computed again relative to its own largest.
constexpr float kTiny = 1e-12f;

constexpr int64_t kLeft = 2;                 // columns of each parity that a row of floats has before column 0
constexpr int64_t kWidestVector = 16;        // floats; rows are padded for it
constexpr int64_t kRowsAhead = kWindow - 1;  // a query's keys lie up to this many rows from it

// ⌊column / 2⌋, also of negative ones
constexpr int64_t half_of(int64_t column) {
  return column >> 1;
}
constexpr int64_t parity_of(int64_t value) {
  return value & 1;
}

// A call's constants.
struct Plan {
  QkvMaps qkv;
  int64_t pitch;              // floats in a row of one column parity, padding included
  float scale;                // 1 / sqrt(head width), for queries
  Floats outside;             // [2 parities, pitch]: 0 where the column lies inside the map, else −100
  Floats inside;              // [2 parities, pitch]: 1 where the column lies inside the map, else 0
  Floats fusion, projection;  // weights with outputs innermost: [25, C, 2C] and [2C, 2C]
  const float* fusion_bias = nullptr;
  const float* proj_bias = nullptr;
  float* out = nullptr;         // [batch, height, half, 2C], or null: then
  float* attended = nullptr;    // [C, 25, batch, last − first, half] is wanted
  int64_t first = 0, last = 0;  // rows wanted

  explicit Plan(const QkvMaps& maps) : qkv(maps) {
    pitch = round_up(round_up(maps.half(), kWidestVector) + 2 * kLeft, kWidestVector);
    scale = 1.0f / std::sqrt(static_cast<float>(maps.head_width()));
    outside = Floats(static_cast<size_t>(2 * pitch));
    inside = Floats(static_cast<size_t>(2 * pitch));
    for (int64_t i = 0; i < 2 * pitch; ++i) {
      const int64_t at = i % pitch - kLeft;
      const bool in = at >= 0 && at < maps.half();
      outside.data()[i] = in ? 0.0f : kMasked;
      inside.data()[i] = in ? 1.0f : 0.0f;
    }
    last = maps.height;
  }
};

// Consecutive rows of q, k and v of one picture, of one head or both; a ring of `rows` rows.
struct Band {
  int64_t rows, heads, first_head, head_width, pitch;
  Floats floats;  // [rows, 3 parts, heads, head width, 2 parities, pitch]

  Band(const Plan& plan, int64_t rows_, int64_t first_head_, int64_t heads_)
      : rows(rows_),
        heads(heads_),
        first_head(first_head_),
        head_width(plan.qkv.head_width()),
        pitch(plan.pitch),
        floats(static_cast<size_t>(rows_ * 3 * heads_ * plan.qkv.head_width() * 2 * plan.pitch)) {}

  // [head width, 2 parities, pitch]; part 0 is q, scaled, 1 is k, 2 is v
  float* at(int64_t row, int64_t part, int64_t head) const {
    const int64_t slot = (row + 4 * rows) % rows;  // rows ≥ −2·4 are asked for
    return floats.data() + ((slot * 3 + part) * heads + head) * head_width * 2 * pitch;
  }

  // Row `row` of picture b; zeros if it lies outside.
  void read(const Plan& plan, int64_t b, int64_t row) {
    const QkvMaps& qkv = plan.qkv;
    const bool in = row >= 0 && row < qkv.height;
    for (int64_t part = 0; part < 3; ++part) {
      for (int64_t head = 0; head < heads; ++head) {
        float* to = at(row, part, head);
        if (!in) {
          std::memset(to, 0, static_cast<size_t>(head_width * 2 * pitch) * sizeof(float));
          continue;
        }
        const float* from = qkv.data + b * qkv.strides[0] + (part * qkv.channels + first_head + head) * qkv.strides[1] +
                            row * qkv.strides[2];
        const float factor = part == 0 ? plan.scale : 1.0f;
        const int64_t over_element = kHeads * qkv.strides[1], over_column = qkv.strides[3];
        if (over_column == 1) {
          for (int64_t e = 0; e < head_width; ++e) {
            for (int64_t x = 0; x < qkv.width; ++x) {
              to[(2 * e + (x & 1)) * pitch + kLeft + (x >> 1)] = factor * from[e * over_element + x];
            }
          }
        } else {
          for (int64_t x = 0; x < qkv.width; ++x) {
            for (int64_t e = 0; e < head_width; ++e) {
              to[(2 * e + (x & 1)) * pitch + kLeft + (x >> 1)] = factor * from[e * over_element + x * over_column];
            }
          }
        }
      }
    }
  }
};

// For queries of consecutive rows, a number for each offset; a ring of `rows` rows.
struct Scores {
  int64_t rows, heads, pitch;
  Floats floats;  // [rows, heads, 2 parities, 81 offsets, pitch]; a query's column x lies at kLeft + ⌊x / 2⌋

  Scores(const Plan& plan, int64_t rows_, int64_t heads_)
      : rows(rows_),
        heads(heads_),
        pitch(plan.pitch),
        floats(static_cast<size_t>(rows_ * heads_ * 2 * kOffsets * plan.pitch)) {}

  // [81 offsets, pitch]
  float* at(int64_t row, int64_t head, int64_t parity) const {
    const int64_t slot = (row + 4 * rows) % rows;
    return floats.data() + ((slot * heads + head) * 2 + parity) * kOffsets * pitch;
  }

  // Weights of queries that are zero vectors, as all those outside the map are: their scores are the table's entries.
  void fill_outside(const Plan& plan, int64_t row, int64_t first_head) {
    for (int64_t head = 0; head < heads; ++head) {
      const float* table = plan.qkv.table + first_head + head;
      float largest = table[0];
      for (int64_t o = 1; o < kOffsets; ++o) largest = std::max(largest, table[o * kHeads]);
      for (int64_t parity = 0; parity < 2; ++parity) {
        float* to = at(row, head, parity);
        for (int64_t o = 0; o < kOffsets; ++o) {
          std::fill(to + o * pitch, to + (o + 1) * pitch, std::exp(table[o * kHeads] - largest));
        }
      }
    }
  }
};

// Offset in a row of one parity's floats of what lies `columns` columns from the first non-anchors of a vector.
// Non-anchors of row l have columns of parity l % 2.
struct Shift {
  int64_t parity, floats;
  Shift(int64_t own_parity, int64_t columns)
      : parity(parity_of(own_parity + columns)), floats(kLeft + half_of(own_parity + columns)) {}
};

int64_t offset_of(int64_t query_row, int64_t query_column, int64_t key_row, int64_t key_column) {
  return (query_row - key_row + kWindow - 1) * kSpan + (query_column - key_column + kWindow - 1);
}

// What one thread needs for forward.
struct Workspace {
  Band band;
  Scores weights;
  Floats attended;  // [5 queries, C, lanes]
  Floats fused;     // [2C, lanes]
  Floats result;    // [2C, lanes]

  explicit Workspace(const Plan& plan)
      : band(plan, 2 * kRowsAhead + 1, 0, kHeads),
        weights(plan, kWindow, kHeads),
        attended(static_cast<size_t>(kWindow * plan.qkv.channels * kWidestVector)),
        fused(static_cast<size_t>(2 * plan.qkv.channels * kWidestVector)),
        result(static_cast<size_t>(2 * plan.qkv.channels * kWidestVector)) {}
};

// What one thread needs for backward of one head of one picture.
struct BackwardWorkspace {
  Band band, band_grad;         // the rows of all windows and those that their queries' keys lie in
  Scores weights, score_grads;  // the rows of all windows
  Floats attended_grad;         // [5 queries, head width, lanes]

  explicit BackwardWorkspace(const Plan& plan)
      : band(plan, plan.last - plan.first + 2 * (kReach + kRowsAhead), 0, 1),
        band_grad(plan, band.rows, 0, 1),
        weights(plan, plan.last - plan.first + 2 * kReach, 1),
        score_grads(plan, weights.rows, 1),
        attended_grad(static_cast<size_t>(kWindow * plan.qkv.head_width() * kWidestVector)) {}
};

}  // namespace

}  // namespace mlic::kernels

#define MLIC_BODY "local_attention_body.inc"
#include "each_isa.inc"

namespace mlic::kernels {

namespace {

// Rows first ≤ row < last of every picture, split so that each thread has as much to do: the windows of a block's
// first rows need queries of the rows before it once more, so blocks are as large as they may be.
void run_blocks(const Plan& plan, Isa isa, int threads) {
  const auto run = MLIC_PICK_OF(isa, rows_forward);
  const int64_t rows = plan.last - plan.first;
  const int64_t wanted = threads / std::gcd<int64_t>(threads, plan.qkv.batch);
  const int64_t blocks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, rows / kWindow));
  const int64_t count = plan.qkv.batch * blocks;
  std::vector<Workspace> workspaces;
  for (int64_t i = 0; i < std::min<int64_t>(threads, count); ++i) workspaces.emplace_back(plan);
  run_tasks(count, threads, [&](int64_t task, int worker) {
    const int64_t b = task / blocks, block = task % blocks;
    run(plan, workspaces[static_cast<size_t>(worker)], b, plan.first + rows * block / blocks,
        plan.first + rows * (block + 1) / blocks);
  });
}

}  // namespace

void local_attention(const QkvMaps& qkv, const float* fusion_weight, const float* fusion_bias, const float* proj_weight,
                     const float* proj_bias, float* out, Isa isa, int threads) {
  Plan plan(qkv);
  const int64_t C = qkv.channels, outputs = 2 * C;
  plan.fusion = Floats(static_cast<size_t>(kArea * C * outputs));
  plan.projection = Floats(static_cast<size_t>(outputs * outputs));
  // by one thread: waiting for the others would take longer than the copy
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t i = 0; i < kArea; ++i) {
      float* to = plan.fusion.data() + (i * C + c) * outputs;
      for (int64_t o = 0; o < outputs; ++o) to[o] = fusion_weight[(o * C + c) * kArea + i];
    }
  }
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t i = 0; i < outputs; ++i) plan.projection.data()[i * outputs + o] = proj_weight[o * outputs + i];
  }
  plan.fusion_bias = fusion_bias;
  plan.proj_bias = proj_bias;
  plan.out = out;
  run_blocks(plan, isa, threads);
}

void local_attention_rows(const QkvMaps& qkv, int64_t first, int64_t last, float* attended, Isa isa, int threads) {
  Plan plan(qkv);
  plan.first = first;
  plan.last = last;
  plan.attended = attended;
  run_blocks(plan, isa, threads);
}

void local_attention_rows_backward(const QkvMaps& qkv, int64_t first, int64_t last, const float* attended_grad,
                                   float* qkv_grad, double* table_grad, Isa isa, int threads) {
  Plan plan(qkv);
  plan.first = first;
  plan.last = last;
  const auto run = MLIC_PICK_OF(isa, rows_backward);
  const int64_t count = qkv.batch * kHeads;
  std::vector<BackwardWorkspace> workspaces;
  for (int64_t i = 0; i < std::min<int64_t>(threads, count); ++i) workspaces.emplace_back(plan);
  run_tasks(count, threads, [&](int64_t task, int worker) {
    run(plan, workspaces[static_cast<size_t>(worker)], task / kHeads, task % kHeads, attended_grad, qkv_grad,
        table_grad);
  });
}

}  // namespace mlic::kernels
