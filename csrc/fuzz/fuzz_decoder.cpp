// SPDX-License-Identifier: Apache-2.0
// libFuzzer harness: any bytes as a stream. They must be refused, or be exactly what their symbols encode to.
#include <cstdlib>

#include "input.hpp"
#include "range_coder/decoder.hpp"
#include "range_coder/encoder.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mlic::fuzz::Input input(data, size);
  const auto tables = mlic::fuzz::read_tables(input);
  if (tables == nullptr) return 0;
  const size_t count = input.word16() % 700;
  const size_t stage = 1 + input.byte();
  const uint8_t pattern = input.byte();
  const bool narrow = pattern % 2 == 0;
  std::vector<int32_t> indexes(count);
  for (size_t i = 0; i < count; ++i) {
    indexes[i] = static_cast<int32_t>((i * pattern / 3) % tables->size());
  }
  // One index in some inputs lies outside the tables.
  if (pattern == 251 && count > 0) indexes[count / 2] = input.word32();
  const std::vector<uint8_t> stream = input.rest();

  std::vector<int32_t> symbols(count);
  try {
    mlic::Decoder decoder(tables, stream.data(), stream.size());
    for (size_t i = 0; i < count; i += stage) {
      const size_t n = std::min(stage, count - i);
      if (narrow) {
        std::vector<int16_t> out(n);
        decoder.decode(indexes.data() + i, out.data(), n);
        std::copy(out.begin(), out.end(), symbols.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        decoder.decode(indexes.data() + i, symbols.data() + i, n);
      }
    }
    decoder.finish();
  } catch (const mlic::BitstreamError&) {
    return 0;
  } catch (const mlic::CodingError&) {
    if (pattern != 251) std::abort();
    return 0;
  }
  mlic::Encoder encoder(tables);
  encoder.push(symbols.data(), indexes.data(), count);
  if (encoder.finish() != stream) std::abort();
  return 0;
}
