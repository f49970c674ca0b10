// SPDX-License-Identifier: Apache-2.0
// Whole numbers of blocks that hold a number of items.
#pragma once

namespace mlic::kernels {

// Blocks of `unit` items that hold n of them.
template <typename Int>
constexpr Int blocks_of(Int n, Int unit) {
  return (n + unit - 1) / unit;
}

// The least multiple of `unit` that is at least n.
template <typename Int>
constexpr Int round_up(Int n, Int unit) {
  return blocks_of(n, unit) * unit;
}

}  // namespace mlic::kernels
