// SPDX-License-Identifier: Apache-2.0
// Reads tables, indexes and symbols out of a fuzzer's bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "range_coder/errors.hpp"
#include "range_coder/tables.hpp"

namespace mlic::fuzz {

// Whatever is missing at the end reads as 0.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  uint8_t byte() { return next_ == end_ ? 0 : *next_++; }
  uint32_t word16() { return byte() | static_cast<uint32_t>(byte()) << 8; }
  int32_t word32() { return static_cast<int32_t>(word16() | word16() << 16); }
  std::vector<uint8_t> rest() { return {next_, end_}; }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
};

// The first byte chooses between tables of any content, which are nearly always refused, and repaired ones.
// Returns null where they were refused.
inline std::shared_ptr<const CodingTables> read_tables(Input& input) {
  const uint8_t kind = input.byte();
  const size_t rows = 1 + kind % 8;
  const size_t columns = 3 + input.byte() % 30;
  std::vector<int32_t> cdfs(rows * columns, 0);
  std::vector<int32_t> lengths(rows);
  std::vector<int32_t> offsets(rows);
  if (kind >= 240) {
    for (int32_t& value : cdfs) value = input.word32();
    for (int32_t& value : lengths) value = input.word32();
    for (int32_t& value : offsets) value = input.word32();
  } else {
    for (size_t r = 0; r < rows; ++r) {
      const size_t inner = 1 + input.byte() % (columns - 2);
      std::vector<int32_t> cdf{0, static_cast<int32_t>(kTotal)};
      for (size_t k = 0; k < inner; ++k) cdf.push_back(1 + static_cast<int32_t>(input.word16() % 65535));
      std::sort(cdf.begin(), cdf.end());
      cdf.erase(std::unique(cdf.begin(), cdf.end()), cdf.end());
      std::copy(cdf.begin(), cdf.end(), cdfs.begin() + static_cast<std::ptrdiff_t>(r * columns));
      lengths[r] = static_cast<int32_t>(cdf.size());
      offsets[r] = kind >= 120 ? input.word32() % (kMaxOffset + 1) : static_cast<int8_t>(input.byte());
    }
  }
  try {
    return std::make_shared<CodingTables>(cdfs.data(), rows, columns, lengths.data(), offsets.data());
  } catch (const CodingError&) {
    return nullptr;
  }
}

}  // namespace mlic::fuzz
