// SPDX-License-Identifier: Apache-2.0
// Softmax attention on the CPU: what does not depend on the instruction set.
//
// Lanes of a vector are queries, so no result depends on what lies in the other lanes. A task has some queries of one
// head and goes over the keys in blocks, with a running maximum and sum for each query; what it has summed is rescaled
// when the maximum grows. Keys and values are copied once for all tasks, in the order in which products read them.
#include "softmax_attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "rounding.hpp"
#include "tasks.hpp"

#if MLIC_X86
#include <immintrin.h>
#endif

namespace mlic::kernels {

namespace {

constexpr float kExcluded = -100.0f;
// Below every score that is a number. Not −∞: the difference of two would be NaN.
constexpr float kLowest = -3.0e38f;

constexpr int64_t kKeys = 64;     // of a block
constexpr int64_t kQueries = 96;  // of a task: whole groups of vectors, whatever their width
constexpr int64_t kMostRows = 8;  // that a product takes at a time, at most

// Copies of keys and values are made for as many heads at a time as fit in so many floats, but for one at least.
constexpr int64_t kCopiedFloats = 1 << 20;

// Of a head at a time, its keys and values in blocks of kKeys positions, zeros after the last.
struct Copies {
  int64_t blocks, width, rows;  // rows: the head's width, rounded up to what products take
  Floats keys;                  // [heads, blocks, width, kKeys]
  Floats values;                // [heads, blocks, kKeys, rows]

  Copies(const SoftmaxAttention& job, int64_t heads)
      : blocks(blocks_of(job.count(), kKeys)),
        width(job.head_width()),
        rows(round_up(width, kMostRows)),
        keys(static_cast<size_t>(heads * blocks * width * kKeys)),
        values(static_cast<size_t>(heads * blocks * kKeys * rows)) {}

  static int64_t floats_of_head(const SoftmaxAttention& job) {
    return round_up(job.count(), kKeys) * (job.head_width() + round_up(job.head_width(), kMostRows));
  }
  float* keys_of(int64_t head, int64_t block) const { return keys.data() + (head * blocks + block) * width * kKeys; }
  float* values_of(int64_t head, int64_t block) const { return values.data() + (head * blocks + block) * kKeys * rows; }
};

// What one thread needs.
struct Workspace {
  Floats queries;  // [groups, width, lanes of a group], scaled
  Floats out;      // [groups, rows, lanes of a group]
  Floats scores;   // [kKeys, lanes of a group]
  Floats largest;  // [kQueries]
  Floats total;    // [kQueries]

  explicit Workspace(const Copies& copies)
      : queries(static_cast<size_t>(copies.width * kQueries)),
        out(static_cast<size_t>(copies.rows * kQueries)),
        scores(static_cast<size_t>(kKeys * kQueries)),
        largest(static_cast<size_t>(kQueries)),
        total(static_cast<size_t>(kQueries)) {}
};

// Row and column of a position that is attended from (first = 0) or to (first = 1); `first` is the first column of
// row 0 in the checkerboard form.
struct Place {
  int64_t row, column;
  Place(const SoftmaxAttention& job, int64_t index, int64_t first) {
    if (!job.checkerboard) {
      row = index / job.width;
      column = index % job.width;
      return;
    }
    row = index / (job.width / 2);
    column = 2 * (index % (job.width / 2)) + ((row & 1) ^ first);
  }
};

// Puts kExcluded in place of the scores [keys, stride] of keys near their queries.
inline void exclude(const SoftmaxAttention& job, int64_t first_query, int64_t queries, int64_t first_key, int64_t keys,
                    float* scores, int64_t stride) {
  const int64_t half = job.width / 2, reach = job.radius;
  const auto first_row = [&](int64_t row) { return std::max<int64_t>(0, row - reach); };
  const auto last_row = [&](int64_t row) { return std::min(job.height - 1, row + reach); };
  const int64_t from = first_row(first_query / half) * half;
  const int64_t to = (last_row((first_query + queries - 1) / half) + 1) * half;
  if (to <= first_key || first_key + keys <= from) return;
  for (int64_t lane = 0; lane < queries; ++lane) {
    const Place query(job, first_query + lane, 0);
    for (int64_t row = first_row(query.row); row <= last_row(query.row); ++row) {
      // anchors of this row have columns 2j + odd
      const int64_t odd = 1 - (row & 1);
      const int64_t left = std::max<int64_t>(0, query.column - reach);
      const int64_t right = std::min(job.width - 1, query.column + reach);
      if (right < odd) continue;
      const int64_t j = std::max<int64_t>(0, (left - odd + 1) / 2), end = (right - odd) / 2 + 1;
      const int64_t key = std::max(row * half + j, first_key), stop = std::min(row * half + end, first_key + keys);
      for (int64_t k = key; k < stop; ++k) scores[(k - first_key) * stride + lane] = kExcluded;
    }
  }
}

// Copies block `block` of the keys and values of a head of a picture to place `slot`.
void copy_block(const SoftmaxAttention& job, const Copies& copies, int64_t picture, int64_t head, int64_t slot,
                int64_t block) {
  const int64_t width = job.head_width(), first = block * kKeys, n = std::min(kKeys, job.count() - first);
  const auto of_head = [&](const AttendedMap& map) {
    return map.data + picture * map.strides[0] + head * width * map.strides[1];
  };
  const float *keys = of_head(job.keys), *values = of_head(job.values);
  float *to_keys = copies.keys_of(slot, block), *to_values = copies.values_of(slot, block);
  for (int64_t i = 0; i < n; ++i) {
    const Place place(job, first + i, 1);
    const float* key = keys + place.row * job.keys.strides[2] + place.column * job.keys.strides[3];
    const float* value = values + place.row * job.values.strides[2] + place.column * job.values.strides[3];
    for (int64_t c = 0; c < width; ++c) {
      to_keys[c * kKeys + i] = key[c * job.keys.strides[1]];
      to_values[i * copies.rows + c] = value[c * job.values.strides[1]];
    }
  }
}

}  // namespace

}  // namespace mlic::kernels

#define MLIC_BODY "softmax_attention.inc"
#include "each_isa.inc"

namespace mlic::kernels {

void softmax_attention(const SoftmaxAttention& given, Isa isa, int threads) {
  SoftmaxAttention job = given;
  job.radius = std::min(job.radius, std::max(job.height, job.width));
  const auto attend = MLIC_PICK_OF(isa, attend_queries);
  const int64_t heads = job.batch * job.heads, tasks = blocks_of(job.count(), kQueries);
  const int64_t together = std::clamp<int64_t>(kCopiedFloats / Copies::floats_of_head(job), 1, heads);
  const Copies copies(job, together);
  std::vector<Workspace> workspaces;
  for (int64_t i = 0; i < std::min<int64_t>(threads, together * tasks); ++i) workspaces.emplace_back(copies);
  for (int64_t start = 0; start < heads; start += together) {
    const int64_t now = std::min(together, heads - start);
    run_tasks(now * copies.blocks, threads, [&](int64_t task, int) {
      const int64_t slot = task / copies.blocks, of_all = start + slot;
      copy_block(job, copies, of_all / job.heads, of_all % job.heads, slot, task % copies.blocks);
    });
    run_tasks(now * tasks, threads, [&](int64_t task, int worker) {
      const int64_t slot = task / tasks, of_all = start + slot;
      attend(job, copies, workspaces[static_cast<size_t>(worker)], of_all / job.heads, of_all % job.heads, slot,
             task % tasks * kQueries);
    });
  }
}

}  // namespace mlic::kernels
