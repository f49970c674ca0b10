// SPDX-License-Identifier: Apache-2.0
// Decoder: the state's low 16 bits name an interval; the symbol comes out and the interval's share of the state goes.
#include "decoder.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <type_traits>

#include "errors.hpp"
#include "exclusive.hpp"

namespace mlic {
namespace {

// A cursor over the words; a copy of the decoder's own that can live in registers.
struct Reader {
  uint64_t state;
  const uint32_t* next;
  const uint32_t* end;

  // After any pop the state is at least 2^15, so one word is always enough.
  void renormalise() {
    if (state < kLowerBound) {
      if (next == end) throw BitstreamError("the stream ends");
      state = (state << kWordBits) | *next++;
    }
  }

  uint32_t low() const { return static_cast<uint32_t>(state) & (kTotal - 1); }

  void pop(uint32_t frequency, uint32_t distance) {
    state = frequency * (state >> kPrecision) + distance;
    renormalise();
  }

  uint32_t pop_digit() {
    const uint32_t digit = static_cast<uint32_t>(state) & kDigitMask;
    state >>= kDigitBits;
    renormalise();
    return digit;
  }

  // Only the shortest spelling is accepted, which is the one that encoders write: then a stream that decodes
  // is the stream that its symbols encode to.
  uint32_t pop_raw() {
    const uint32_t digits = pop_digit();
    if (digits > kMaxDigits) throw BitstreamError("an escape is longer than any encoder writes");
    uint32_t raw = 0;
    uint32_t digit = 1;
    for (uint32_t d = 0; d < digits; ++d) {
      digit = pop_digit();
      raw |= digit << (d * kDigitBits);
    }
    if (digit == 0) throw BitstreamError("an escape has a leading zero, which no encoder writes");
    return raw;
  }

  // A bucket with several intervals, or the escape.
  int32_t pop_slowly(const CodingTables& tables, const Row& row, const DecodeSlot& slot) {
    const uint32_t* cdf = tables.boundaries().data() + row.first;
    const uint32_t target = low();
    uint32_t first = static_cast<uint32_t>(slot.symbol);
    uint32_t last = first + slot.start;
    while (first < last) {
      const uint32_t middle = (first + last + 1) / 2;
      if (cdf[middle] <= target) {
        first = middle;
      } else {
        last = middle - 1;
      }
    }
    pop(cdf[first + 1] - cdf[first], target - cdf[first]);
    if (first < row.ordinary) return row.offset + static_cast<int32_t>(first);
    const uint32_t raw = pop_raw();
    // |offset| <= 2^30, ordinary <= 2^16 and raw < 2^28: the sum stays within 32 bits.
    const int32_t half = static_cast<int32_t>(raw >> 1);
    return row.offset + ((raw & 1) != 0 ? -half - 1 : half + static_cast<int32_t>(row.ordinary));
  }
};

template <typename Index>
void check_indexes(const Index* indexes, size_t count, size_t rows) {
  using Unsigned = std::make_unsigned_t<Index>;
  if (rows > std::numeric_limits<Unsigned>::max()) return;
  Unsigned largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<Unsigned>(indexes[i]));
  if (largest < rows) return;
  for (size_t i = 0; i < count; ++i) {
    if (static_cast<Unsigned>(indexes[i]) >= rows) {
      throw CodingError("index " + std::to_string(indexes[i]) + " at position " + std::to_string(i) +
                        " is outside the tables' " + std::to_string(rows) + " rows");
    }
  }
}

}  // namespace

Decoder::Decoder(std::shared_ptr<const CodingTables> tables, const uint8_t* data, size_t size)
    : tables_(std::move(tables)) {
  if (size < kStateWords * kWordBytes || size % kWordBytes != 0) {
    throw BitstreamError("a stream has a multiple of 4 bytes, at least 8; this one has " + std::to_string(size));
  }
  words_.resize(size / kWordBytes);
  for (size_t w = 0; w < words_.size(); ++w) {
    const uint8_t* bytes = data + w * kWordBytes;
    words_[w] = static_cast<uint32_t>(bytes[0]) | static_cast<uint32_t>(bytes[1]) << 8 |
                static_cast<uint32_t>(bytes[2]) << 16 | static_cast<uint32_t>(bytes[3]) << 24;
  }
  state_ = static_cast<uint64_t>(words_[1]) << kWordBits | words_[0];
  next_ = kStateWords;
  if (state_ < kLowerBound || state_ >= kUpperBound) {
    throw BitstreamError("the stream's first 8 bytes are not a state that an encoder leaves");
  }
}

template <typename Symbol, typename Index>
void Decoder::decode(const Index* indexes, Symbol* out, size_t count) {
  const Exclusive exclusive(busy_);
  if (finished_) throw CodingError("this decoder is finished; make a new one for the next stream");
  if (damaged_) throw BitstreamError("the stream was found damaged by an earlier call");
  const CodingTables& tables = *tables_;
  const size_t row_count = tables.size();
  check_indexes(indexes, count, row_count);

  const CodingTables::DecodeTables& lookup = tables.decode_tables();
  const Row* rows = tables.rows().data();
  const DecodeSlot* slots = lookup.slots.data();
  const Favourite* favourites = lookup.favourites.data();
  const int bucket_bits = lookup.bucket_bits;
  const int bucket_shift = kPrecision - bucket_bits;

  Reader reader{state_, words_.data() + next_, words_.data() + words_.size()};
  size_t i = 0;
  try {
    for (; i < count; ++i) {
      const size_t index = static_cast<uint32_t>(indexes[i]);
      // Checked above; but another thread may have written to the caller's array since.
      if (index >= row_count) throw CodingError("an index changed while it was in use");
      const uint32_t low = reader.low();
      int32_t symbol;
      const Favourite favourite = favourites[index];
      if (favourite.frequency != 0 && low - favourite.start < favourite.frequency) {
        symbol = favourite.symbol;
        reader.pop(favourite.frequency, low - favourite.start);
      } else {
        const DecodeSlot slot = slots[(index << bucket_bits) + (low >> bucket_shift)];
        if (slot.frequency != 0) {
          symbol = slot.symbol;
          reader.pop(slot.frequency, low - slot.start);
        } else {
          symbol = reader.pop_slowly(tables, rows[index], slot);
        }
      }
      if (symbol != static_cast<Symbol>(symbol)) {
        throw BitstreamError("symbol " + std::to_string(symbol) + " does not fit into 16 bits");
      }
      out[i] = static_cast<Symbol>(symbol);
    }
  } catch (const BitstreamError& error) {
    damaged_ = true;
    throw BitstreamError("damaged stream: " + std::string(error.what()) + " (at position " + std::to_string(i) +
                         ", symbol " + std::to_string(decoded_ + i) + " of the stream)");
  } catch (...) {
    damaged_ = true;
    throw;
  }
  state_ = reader.state;
  next_ = static_cast<size_t>(reader.next - words_.data());
  decoded_ += count;
}

template void Decoder::decode(const uint8_t*, int16_t*, size_t);
template void Decoder::decode(const uint8_t*, int32_t*, size_t);
template void Decoder::decode(const int32_t*, int16_t*, size_t);
template void Decoder::decode(const int32_t*, int32_t*, size_t);

void Decoder::finish() {
  const Exclusive exclusive(busy_);
  if (finished_) throw CodingError("this decoder is finished already");
  if (damaged_) throw BitstreamError("the stream was found damaged by an earlier call");
  if (next_ != words_.size()) {
    throw BitstreamError("damaged stream: " + std::to_string(words_.size() - next_) + " words are left over after " +
                         std::to_string(decoded_) + " symbols");
  }
  if (state_ != kLowerBound) {
    throw BitstreamError("damaged stream: it does not end in the coder's initial state after " +
                         std::to_string(decoded_) + " symbols");
  }
  finished_ = true;
}

}  // namespace mlic
