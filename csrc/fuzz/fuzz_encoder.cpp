// SPDX-License-Identifier: Apache-2.0
// libFuzzer harness: any tables, symbols and indexes. They must be refused, or decode to themselves from a stream no
// longer than such symbols can take.
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
  const uint8_t kind = input.byte();
  std::vector<int32_t> symbols(count);
  std::vector<uint8_t> indexes(count);
  for (size_t i = 0; i < count; ++i) {
    // Out of range now and then; and small, middling or any symbols.
    indexes[i] = static_cast<uint8_t>(input.byte() % (tables->size() + (kind == 0 ? 1 : 0)));
    const int32_t offset = indexes[i] < tables->size() ? tables->rows()[indexes[i]].offset : 0;
    const int32_t value = kind % 4 == 0   ? input.word32() >> (kind / 4 % 16)
                          : kind % 4 == 1 ? static_cast<int16_t>(input.word16())
                                          : static_cast<int8_t>(input.byte());
    symbols[i] = static_cast<int32_t>(static_cast<uint32_t>(value) + static_cast<uint32_t>(kind < 128 ? offset : 0));
  }

  mlic::Encoder encoder(tables);
  for (size_t i = 0; i < count; i += stage) {
    const size_t n = std::min(stage, count - i);
    try {
      encoder.push(symbols.data() + i, indexes.data() + i, n);
    } catch (const mlic::CodingError&) {
      // The refused push must have left no trace: drop its symbols here as well.
      symbols.resize(i);
      indexes.resize(i);
      break;
    }
  }
  const std::vector<uint8_t> stream = encoder.finish();
  // 16 bits a symbol and 32 an escape's digits, and the state.
  if (stream.size() > 8 + 6 * symbols.size() + 4) std::abort();
  std::vector<int32_t> decoded(symbols.size());
  mlic::Decoder decoder(tables, stream.data(), stream.size());
  decoder.decode(indexes.data(), decoded.data(), decoded.size());
  decoder.finish();
  if (decoded != symbols) std::abort();
  return 0;
}
