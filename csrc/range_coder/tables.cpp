// SPDX-License-Identifier: Apache-2.0
// Coding tables: validation and the derived forms for encoding and decoding.
#include "tables.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "errors.hpp"

namespace mlic {
namespace {

// 64 rows of 256 slots, the Gaussian tables' case, are 128 KiB: quick to be back in cache after other work.
constexpr int kMaxBucketBits = 8;
constexpr size_t kMaxSlots = size_t{1} << 17;

// From here on a guess is right often enough to pay for the times when it is wrong.
constexpr uint32_t kFavouriteFrequency = 40000;

[[noreturn]] void refuse(size_t row, const std::string& what) {
  throw CodingError("coding table row " + std::to_string(row) + ": " + what);
}

}  // namespace

CodingTables::CodingTables(const int32_t* cdfs, size_t rows, size_t columns, const int32_t* lengths,
                           const int32_t* offsets) {
  if (rows == 0) throw CodingError("coding tables have no rows; were they computed (model.update())?");
  if (rows > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw CodingError("coding tables have more rows than a 32-bit index can name");
  }
  size_t total = 0;
  for (size_t r = 0; r < rows; ++r) {
    const int32_t length = lengths[r];
    if (length < kMinLength || static_cast<size_t>(length) > columns) {
      refuse(r, "length " + std::to_string(length) + " is outside " + std::to_string(kMinLength) + ".." +
                    std::to_string(columns));
    }
    if (offsets[r] > kMaxOffset || offsets[r] < -kMaxOffset) {
      refuse(r, "offset " + std::to_string(offsets[r]) + " is outside +-2^30");
    }
    const int32_t* cdf = cdfs + r * columns;
    if (cdf[0] != 0) refuse(r, "begins at " + std::to_string(cdf[0]) + " instead of 0");
    for (int32_t k = 1; k < length; ++k) {
      if (cdf[k] <= cdf[k - 1]) {
        refuse(r, "does not increase at column " + std::to_string(k) + " (" + std::to_string(cdf[k - 1]) + ", " +
                      std::to_string(cdf[k]) + ")");
      }
    }
    if (cdf[length - 1] != static_cast<int32_t>(kTotal)) {
      refuse(r, "ends at " + std::to_string(cdf[length - 1]) + " instead of 65536");
    }
    total += static_cast<size_t>(length);
  }
  // The encoder keeps one bit of a 32-bit position for itself.
  if (total >= (size_t{1} << 31)) throw CodingError("coding tables have more than 2^31 entries");

  rows_.reserve(rows);
  boundaries_.reserve(total);
  for (size_t r = 0; r < rows; ++r) {
    const int32_t* cdf = cdfs + r * columns;
    rows_.push_back({static_cast<uint32_t>(boundaries_.size()), static_cast<uint32_t>(lengths[r] - 2), offsets[r]});
    for (int32_t k = 0; k < lengths[r]; ++k) boundaries_.push_back(static_cast<uint32_t>(cdf[k]));
  }
}

const std::vector<EncodeEntry>& CodingTables::encode_entries() const {
  std::call_once(encode_once_, [this] { build_encode_entries(); });
  return encode_entries_;
}

const CodingTables::DecodeTables& CodingTables::decode_tables() const {
  std::call_once(decode_once_, [this] { build_decode_tables(); });
  return decode_tables_;
}

// Why q is exact: let s = shift + 1, so frequency f <= 2^s, and reciprocal = (2^(63+s) + e) / f with 0 <= e < f. Then
// x * reciprocal / 2^(63+s) = x/f + x*e / (f * 2^(63+s)), whose last term is below 2^63 * 2^s / (f * 2^(63+s)) = 1/f;
// x/f is at least 1/f below the next integer or equal to one, so the floor does not change.
void CodingTables::build_encode_entries() const {
  std::vector<EncodeEntry> entries(boundaries_.size());
  for (const Row& row : rows_) {
    for (uint32_t k = 0; k <= row.ordinary; ++k) {
      const uint32_t start = boundaries_[row.first + k];
      const uint32_t frequency = boundaries_[row.first + k + 1] - start;
      EncodeEntry& entry = entries[row.first + k];
      entry.complement = static_cast<uint16_t>(kTotal - frequency);
      if (frequency == 1) {
        entry.reciprocal = ~uint64_t{0};
        entry.bias = start + kTotal - 1;
        entry.shift = 0;
        continue;
      }
      int s = 1;
      while ((uint32_t{1} << s) < frequency) ++s;
      // 2^(63+s) / f by long division in two steps of 63 and s bits, rounded up; f <= 2^16 keeps both within 64 bits.
      const uint64_t high = (uint64_t{1} << 63) / frequency;
      const uint64_t rest = ((uint64_t{1} << 63) % frequency) << s;
      entry.reciprocal = (high << s) + (rest + frequency - 1) / frequency;
      entry.bias = start;
      entry.shift = static_cast<uint8_t>(s - 1);
    }
  }
  encode_entries_ = std::move(entries);
}

void CodingTables::build_decode_tables() const {
  DecodeTables tables{kMaxBucketBits, {}, {}};
  while (tables.bucket_bits > 0 && rows_.size() > (kMaxSlots >> tables.bucket_bits)) --tables.bucket_bits;
  const uint32_t buckets = uint32_t{1} << tables.bucket_bits;
  const uint32_t width = kTotal >> tables.bucket_bits;
  tables.slots.reserve(rows_.size() << tables.bucket_bits);
  tables.favourites.reserve(rows_.size());
  for (const Row& row : rows_) {
    const uint32_t* cdf = boundaries_.data() + row.first;
    uint32_t k = 0;
    for (uint32_t b = 0; b < buckets; ++b) {
      const uint32_t begin = b * width;
      while (cdf[k + 1] <= begin) ++k;
      uint32_t last = k;
      while (cdf[last + 1] < begin + width) ++last;
      if (last == k && k < row.ordinary) {
        tables.slots.push_back({static_cast<uint16_t>(cdf[k]), static_cast<uint16_t>(cdf[k + 1] - cdf[k]),
                                row.offset + static_cast<int32_t>(k)});
      } else {
        tables.slots.push_back({static_cast<uint16_t>(last - k), 0, static_cast<int32_t>(k)});
      }
    }
    Favourite favourite{0, 0, 0};
    for (uint32_t f = 0; f < row.ordinary; ++f) {
      if (cdf[f + 1] - cdf[f] >= kFavouriteFrequency) {
        favourite = {cdf[f], cdf[f + 1] - cdf[f], row.offset + static_cast<int32_t>(f)};
      }
    }
    tables.favourites.push_back(favourite);
  }
  decode_tables_ = std::move(tables);
}

}  // namespace mlic
