// SPDX-License-Identifier: Apache-2.0
// Decoder: gives a stream's symbols back, in as many calls as wanted, and knows whether the stream ended as it must.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tables.hpp"

namespace mlic {

class Decoder {
 public:
  // data [size] bytes are copied. Throws BitstreamError if they cannot be a stream: shorter than a state,
  // not a whole number of words, or beginning with a state that no encoder leaves.
  Decoder(std::shared_ptr<const CodingTables> tables, const uint8_t* data, size_t size);

  // out [count] int16_t or int32_t receives the symbols of rows indexes [count] uint8_t or int32_t.
  // Throws CodingError before anything is decoded if an index is outside the tables, and BitstreamError if the stream
  // runs out, holds an escape that no encoder writes, or a symbol that does not fit; the decoder is of no use then.
  template <typename Symbol, typename Index>
  void decode(const Index* indexes, Symbol* out, size_t count);

  // Ends the decoder. Throws BitstreamError unless all words were used and the state is the initial one.
  void finish();

 private:
  std::shared_ptr<const CodingTables> tables_;
  std::vector<uint32_t> words_;
  size_t next_ = 0;       // next word to take, <= words_.size()
  uint64_t state_ = 0;    // in [kLowerBound, kUpperBound) between calls
  uint64_t decoded_ = 0;  // symbols given back by the calls before this one
  bool damaged_ = false;  // a call found the stream damaged
  bool finished_ = false;
  std::atomic<bool> busy_{false};
};

}  // namespace mlic
