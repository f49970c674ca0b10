// SPDX-License-Identifier: Apache-2.0
// Encoder: takes symbols in the order in which they will be decoded, gives the stream at the end.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tables.hpp"

namespace mlic {

class Encoder {
 public:
  explicit Encoder(std::shared_ptr<const CodingTables> tables);

  // symbols [count] int16_t or int32_t, indexes [count] uint8_t or int32_t (the row of each symbol).
  // Throws CodingError naming the first position that cannot be coded; nothing of that call is kept then.
  template <typename Symbol, typename Index>
  void push(const Symbol* symbols, const Index* indexes, size_t count);

  // The stream of all symbols pushed so far. Ends the encoder.
  std::vector<uint8_t> finish();

 private:
  std::shared_ptr<const CodingTables> tables_;
  // rANS is last in, first out, so symbols wait here until the end: the position of each one's interval in the
  // tables, with kEscape set where a raw value follows.
  std::vector<uint32_t> pending_;
  std::vector<uint32_t> raws_;  // raw values of the escapes, in order; each < kRawLimit
  bool finished_ = false;
  std::atomic<bool> busy_{false};
};

}  // namespace mlic
