// SPDX-License-Identifier: Apache-2.0
// The stream format's constants: every number that the bytes depend on stands here and nowhere else.
//
// The format is rANS with a 64-bit state x that is kept in [kLowerBound, kLowerBound << 32) by moving
// 32-bit words between it and the stream. Streams equal those of compressai.ans byte for byte.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlic {

// Probabilities are counts out of 1 << kPrecision; each row of a table ends there.
constexpr int kPrecision = 16;
constexpr uint32_t kTotal = uint32_t{1} << kPrecision;

// The state before the first symbol is pushed, and so after the last one has been popped.
constexpr uint64_t kLowerBound = uint64_t{1} << 31;
constexpr int kWordBits = 32;
constexpr size_t kWordBytes = 4;
// First value that a normalised state cannot have.
constexpr uint64_t kUpperBound = kLowerBound << kWordBits;

// The stream begins with the final state, low word first.
constexpr size_t kStateWords = 2;

// Before a symbol of frequency f is pushed, a word leaves when x >= f << kRenormShift; this makes
// the decoder's "take a word when x < kLowerBound" its exact inverse.
constexpr int kRenormShift = 31 - kPrecision + kWordBits;

// Bypass digits are pushed without a model, 4 bits each; a word leaves first when x >= kBypassLimit.
constexpr int kDigitBits = 4;
constexpr uint32_t kDigitMask = (uint32_t{1} << kDigitBits) - 1;
constexpr uint64_t kBypassLimit = kUpperBound >> kDigitBits;

// An escape's raw value is below 1 << 28, hence at most 7 digits: compressai's encoder never returns from larger ones.
// The count of digits is itself one digit; 15 would mean "more count follows" and so cannot occur.
constexpr int kRawBits = 28;
constexpr uint32_t kRawLimit = uint32_t{1} << kRawBits;
constexpr uint32_t kMaxDigits = kRawBits / kDigitBits;

// A row of a table needs at least one ordinary interval and the escape: three boundaries.
// With fewer, the escape's frequency would be 1 << 16, which 16 bits cannot hold.
constexpr int32_t kMinLength = 3;
// Offsets beyond this could make offset + value leave 32 bits; real ones are below 2^16.
constexpr int32_t kMaxOffset = int32_t{1} << 30;

}  // namespace mlic
