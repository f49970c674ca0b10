// SPDX-License-Identifier: Apache-2.0
// Coding tables: validated once, immutable, with the derived forms that make coding fast.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "format.hpp"

namespace mlic {

// One row: the distribution that one index selects.
struct Row {
  uint32_t first;     // where its boundaries begin in boundaries() and its intervals in encode_entries()
  uint32_t ordinary;  // number of ordinary intervals, > 0; interval `ordinary` is the escape
  int32_t offset;     // symbol of interval 0, |offset| <= kMaxOffset
};

// What pushing one interval takes. With q = floor(x / frequency) the new state is
// x + bias + q * complement, and q = mulhi(x, reciprocal) >> shift is exact for all x < 2^63.
struct EncodeEntry {
  uint64_t reciprocal;  // ceil(2^(64 + shift) / frequency); 2^64 - 1 if frequency is 1
  uint32_t bias;        // start of the interval; + 65535 if frequency is 1, where q comes out as x - 1
  uint16_t complement;  // 2^16 - frequency, never 0 because a row has two intervals
  uint8_t shift;        // ceil(log2(frequency)) - 1, 0 if frequency is 1
};

// What the states x whose low 16 bits fall into one bucket decode to.
struct DecodeSlot {
  uint16_t start;      // of the interval; if frequency is 0: how many intervals begin inside the bucket
  uint16_t frequency;  // of the interval; 0 where the bucket holds more than one interval or the escape
  int32_t symbol;      // offset included; if frequency is 0: the interval in which the bucket begins
};

// The interval of a row that nearly always comes: popping it on a guess shortens the chain of dependent
// instructions by the table look-up. frequency 0: the row has no such interval.
struct Favourite {
  uint32_t start;
  uint32_t frequency;
  int32_t symbol;
};

class CodingTables {
 public:
  // cdfs [rows, columns], lengths [rows], offsets [rows]. Row r uses its first lengths[r] columns: 0, then strictly
  // increasing boundaries, the last of them 65536; the last interval is the escape. Copies what it needs.
  // Throws CodingError, naming the row, unless all of this holds.
  CodingTables(const int32_t* cdfs, size_t rows, size_t columns, const int32_t* lengths, const int32_t* offsets);
  CodingTables(const CodingTables&) = delete;
  CodingTables& operator=(const CodingTables&) = delete;

  size_t size() const { return rows_.size(); }
  const std::vector<Row>& rows() const { return rows_; }
  // All rows' boundaries, one row after the other.
  const std::vector<uint32_t>& boundaries() const { return boundaries_; }

  // Made at first use, by whichever thread comes first. 16 bytes a boundary.
  const std::vector<EncodeEntry>& encode_entries() const;

  struct DecodeTables {
    int bucket_bits;                    // a row has 1 << bucket_bits slots
    std::vector<DecodeSlot> slots;      // [rows << bucket_bits]
    std::vector<Favourite> favourites;  // [rows]
  };
  // Made at first use. At most kMaxSlots slots, or one a row if there are more rows than that.
  const DecodeTables& decode_tables() const;

 private:
  void build_encode_entries() const;
  void build_decode_tables() const;

  std::vector<Row> rows_;
  std::vector<uint32_t> boundaries_;
  mutable std::once_flag encode_once_;
  mutable std::vector<EncodeEntry> encode_entries_;
  mutable std::once_flag decode_once_;
  mutable DecodeTables decode_tables_{0, {}, {}};
};

}  // namespace mlic
