// SPDX-License-Identifier: Apache-2.0
// Encoder: intervals are looked up as symbols arrive, the state runs over them backwards at the end.
#include "encoder.hpp"

#include <string>

#include "errors.hpp"
#include "exclusive.hpp"

#if !defined(__SIZEOF_INT128__)
#error "a 64-bit target with GCC or clang is needed (128-bit products)"
#endif

namespace mlic {
namespace {

__extension__ using uint128 = unsigned __int128;

constexpr uint32_t kEscape = uint32_t{1} << 31;

inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<uint128>(a) * b) >> 64);
}

[[noreturn]] void refuse_index(size_t position, int64_t index, size_t rows) {
  throw CodingError("index " + std::to_string(index) + " at position " + std::to_string(position) +
                    " is outside the tables' " + std::to_string(rows) + " rows");
}

[[noreturn]] void refuse_symbol(size_t position, int64_t symbol, int64_t index) {
  throw CodingError("symbol " + std::to_string(symbol) + " at position " + std::to_string(position) +
                    " is too far from what row " + std::to_string(index) + " covers (more than 2^27) to be coded");
}

// The state and the words that left it; the stream is both, read backwards.
struct Writer {
  uint64_t state = kLowerBound;
  std::vector<uint32_t> words;

  void emit() {
    words.push_back(static_cast<uint32_t>(state));
    state >>= kWordBits;
  }

  void push_digit(uint32_t digit) {
    if (state >= kBypassLimit) emit();
    state = (state << kDigitBits) | digit;
  }

  // Digits are popped as: how many, then least significant first; so they are pushed the other way round.
  void push_raw(uint32_t raw) {
    uint32_t digits = 0;
    while (digits < kMaxDigits && (raw >> (digits * kDigitBits)) != 0) ++digits;
    for (uint32_t d = digits; d-- > 0;) push_digit((raw >> (d * kDigitBits)) & kDigitMask);
    push_digit(digits);
  }

  void push_interval(const EncodeEntry& entry) {
    const uint64_t frequency = kTotal - entry.complement;
    if ((state >> kRenormShift) >= frequency) emit();
    const uint64_t quotient = multiply_high(state, entry.reciprocal) >> entry.shift;
    state += entry.bias + quotient * entry.complement;
  }
};

}  // namespace

Encoder::Encoder(std::shared_ptr<const CodingTables> tables) : tables_(std::move(tables)) {}

template <typename Symbol, typename Index>
void Encoder::push(const Symbol* symbols, const Index* indexes, size_t count) {
  const Exclusive exclusive(busy_);
  if (finished_) throw CodingError("this encoder is finished; make a new one for the next stream");
  const Row* rows = tables_->rows().data();
  const size_t row_count = tables_->size();
  const size_t pending_before = pending_.size();
  const size_t raws_before = raws_.size();
  try {
    pending_.resize(pending_before + count);
    uint32_t* out = pending_.data() + pending_before;
    for (size_t i = 0; i < count; ++i) {
      // Both are read once: another thread may write to the caller's arrays meanwhile.
      const Index index = indexes[i];
      const int64_t symbol = symbols[i];
      if (static_cast<uint32_t>(index) >= row_count) refuse_index(i, index, row_count);
      const Row row = rows[index];
      const int64_t value = symbol - row.offset;
      if (static_cast<uint64_t>(value) < row.ordinary) {
        out[i] = row.first + static_cast<uint32_t>(value);
        continue;
      }
      const int64_t raw = value < 0 ? -2 * value - 1 : 2 * (value - row.ordinary);
      if (raw >= kRawLimit) refuse_symbol(i, symbol, index);
      raws_.push_back(static_cast<uint32_t>(raw));
      out[i] = (row.first + row.ordinary) | kEscape;
    }
  } catch (...) {
    pending_.resize(pending_before);
    raws_.resize(raws_before);
    throw;
  }
}

template void Encoder::push(const int16_t*, const uint8_t*, size_t);
template void Encoder::push(const int16_t*, const int32_t*, size_t);
template void Encoder::push(const int32_t*, const uint8_t*, size_t);
template void Encoder::push(const int32_t*, const int32_t*, size_t);

std::vector<uint8_t> Encoder::finish() {
  const Exclusive exclusive(busy_);
  if (finished_) throw CodingError("this encoder is finished already");
  const EncodeEntry* entries = tables_->encode_entries().data();
  Writer writer;
  size_t raw = raws_.size();
  for (size_t i = pending_.size(); i-- > 0;) {
    const uint32_t position = pending_[i];
    if (position & kEscape) writer.push_raw(raws_[--raw]);
    writer.push_interval(entries[position & ~kEscape]);
  }
  // Words are read in the opposite order, and of the state the low one first: so the high one leaves first.
  writer.words.push_back(static_cast<uint32_t>(writer.state >> kWordBits));
  writer.words.push_back(static_cast<uint32_t>(writer.state));

  std::vector<uint8_t> stream;
  stream.reserve(writer.words.size() * kWordBytes);
  for (size_t i = writer.words.size(); i-- > 0;) {
    for (int bits = 0; bits < kWordBits; bits += 8) stream.push_back(static_cast<uint8_t>(writer.words[i] >> bits));
  }
  finished_ = true;
  pending_ = {};
  raws_ = {};
  return stream;
}

}  // namespace mlic
