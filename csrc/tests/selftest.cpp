// SPDX-License-Identifier: Apache-2.0
// Tests of the range coder that need no Python: for other compilers, other processors, and sanitizers.
//
//   selftest golden_streams.txt
//
// Prints what failed and exits with 1, or prints a count and exits with 0.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "range_coder/decoder.hpp"
#include "range_coder/encoder.hpp"
#include "range_coder/errors.hpp"
#include "range_coder/parallel.hpp"
#include "range_coder/tables.hpp"

namespace {

using Bytes = std::vector<uint8_t>;
using Tables = std::shared_ptr<const mlic::CodingTables>;

int checks = 0;
int failures = 0;

void check(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

template <typename Error, typename Work>
bool throws(const Work& work) {
  try {
    work();
  } catch (const Error&) {
    return true;
  } catch (const std::exception& error) {
    std::printf("unexpected: %s\n", error.what());
  }
  return false;
}

// Small, portable and the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  // A number below `limit`, which is at most 2^32.
  uint64_t below(uint64_t limit) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 32) * limit >> 32;
  }

 private:
  uint64_t state_;
};

struct RowSpec {
  int32_t offset;
  std::vector<int32_t> cdf;
};

Tables make_tables(const std::vector<RowSpec>& rows) {
  size_t columns = 0;
  for (const RowSpec& row : rows) columns = std::max(columns, row.cdf.size());
  std::vector<int32_t> cdfs(rows.size() * columns, 0);
  std::vector<int32_t> lengths;
  std::vector<int32_t> offsets;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::copy(rows[r].cdf.begin(), rows[r].cdf.end(), cdfs.begin() + static_cast<std::ptrdiff_t>(r * columns));
    lengths.push_back(static_cast<int32_t>(rows[r].cdf.size()));
    offsets.push_back(rows[r].offset);
  }
  return std::make_shared<mlic::CodingTables>(cdfs.data(), rows.size(), columns, lengths.data(), offsets.data());
}

template <typename Symbol, typename Index>
Bytes encode(const Tables& tables, const std::vector<Symbol>& symbols, const std::vector<Index>& indexes) {
  mlic::Encoder encoder(tables);
  encoder.push(symbols.data(), indexes.data(), symbols.size());
  return encoder.finish();
}

template <typename Symbol, typename Index>
std::vector<Symbol> decode(const Tables& tables, const Bytes& stream, const std::vector<Index>& indexes, size_t stage) {
  mlic::Decoder decoder(tables, stream.data(), stream.size());
  std::vector<Symbol> symbols(indexes.size());
  for (size_t i = 0; i < indexes.size(); i += stage) {
    decoder.decode(indexes.data() + i, symbols.data() + i, std::min(stage, indexes.size() - i));
  }
  decoder.finish();
  return symbols;
}

struct Case {
  std::string name;
  std::vector<RowSpec> rows;
  std::vector<int32_t> symbols;
  std::vector<int32_t> indexes;
  Bytes stream;
};

std::vector<Case> read_golden(const char* path) {
  std::ifstream file(path);
  std::vector<Case> cases;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "case") {
      cases.emplace_back();
      words >> cases.back().name;
    } else if (kind == "row") {
      RowSpec row{};
      size_t length = 0;
      words >> row.offset >> length;
      for (int32_t value; words >> value;) row.cdf.push_back(value);
      check(row.cdf.size() == length, "golden file: row length");
      cases.back().rows.push_back(row);
    } else if (kind == "symbols") {
      for (int32_t value; words >> value;) cases.back().symbols.push_back(value);
    } else if (kind == "indexes") {
      for (int32_t value; words >> value;) cases.back().indexes.push_back(value);
    } else if (kind == "stream") {
      std::string hex;
      words >> hex;
      for (size_t i = 0; i + 1 < hex.size(); i += 2) {
        cases.back().stream.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
      }
    }
  }
  return cases;
}

// Damaged data either is refused, or is the stream of other symbols: then it must encode to itself.
void check_hostile(const Tables& tables, const Bytes& data, const std::vector<int32_t>& indexes,
                   const std::string& what) {
  std::vector<int32_t> symbols;
  try {
    symbols = decode<int32_t>(tables, data, indexes, 97);
  } catch (const mlic::BitstreamError&) {
    check(true, what);
    return;
  }
  check(encode(tables, symbols, indexes) == data, what + ": decodes, but to what does not encode to it");
}

void test_golden(const Case& golden) {
  const Tables tables = make_tables(golden.rows);
  const std::vector<uint8_t> narrow(golden.indexes.begin(), golden.indexes.end());
  check(encode(tables, golden.symbols, golden.indexes) == golden.stream, golden.name + ": encode");
  check(encode(tables, golden.symbols, narrow) == golden.stream, golden.name + ": encode, uint8 indexes");
  for (const size_t stage : {size_t{1}, size_t{7}, size_t{100000}}) {
    check(decode<int32_t>(tables, golden.stream, golden.indexes, stage) == golden.symbols, golden.name + ": decode");
    check(decode<int32_t>(tables, golden.stream, narrow, stage) == golden.symbols, golden.name + ": decode, uint8");
  }
  const auto fits = [](int32_t s) { return s == static_cast<int16_t>(s); };
  if (std::all_of(golden.symbols.begin(), golden.symbols.end(), fits)) {
    const std::vector<int16_t> small(golden.symbols.begin(), golden.symbols.end());
    check(encode(tables, small, narrow) == golden.stream, golden.name + ": encode, int16 symbols");
    check(encode(tables, small, golden.indexes) == golden.stream,
          golden.name + ": encode, int16 symbols, int32 indexes");
    check(decode<int16_t>(tables, golden.stream, narrow, 50) == small, golden.name + ": decode, int16");
    check(decode<int16_t>(tables, golden.stream, golden.indexes, 50) == small, golden.name + ": decode, int16, int32");
  } else {
    const auto narrow_decode = [&] { decode<int16_t>(tables, golden.stream, narrow, 50); };
    check(throws<mlic::BitstreamError>(narrow_decode), golden.name + ": symbols beyond int16 are refused");
  }
}

void test_hostile(const Case& golden) {
  const Tables tables = make_tables(golden.rows);
  const Bytes& stream = golden.stream;
  for (size_t size = 0; size < stream.size(); size += size < 64 ? 1 : 41) {
    const Bytes cut(stream.begin(), stream.begin() + static_cast<std::ptrdiff_t>(size));
    const auto work = [&] { decode<int32_t>(tables, cut, golden.indexes, 1000); };
    check(throws<mlic::BitstreamError>(work), golden.name + ": truncated");
  }
  for (const size_t extra : {1u, 2u, 3u, 4u, 8u}) {
    Bytes longer = stream;
    longer.resize(stream.size() + extra);
    const auto work = [&] { decode<int32_t>(tables, longer, golden.indexes, 1000); };
    check(throws<mlic::BitstreamError>(work), golden.name + ": over-long");
  }
  Random random(stream.size());
  for (int k = 0; k < 200; ++k) {
    Bytes flipped = stream;
    flipped[random.below(stream.size())] ^= static_cast<uint8_t>(1 << random.below(8));
    check_hostile(tables, flipped, golden.indexes, golden.name + ": bit flipped");
    Bytes noise(4 * (2 + random.below(40)));
    for (uint8_t& byte : noise) byte = static_cast<uint8_t>(random.below(256));
    check_hostile(tables, noise, golden.indexes, golden.name + ": noise");
  }
}

std::vector<RowSpec> random_rows(Random& random, size_t count) {
  std::vector<RowSpec> rows;
  for (size_t r = 0; r < count; ++r) {
    std::vector<int32_t> cdf{0, static_cast<int32_t>(mlic::kTotal)};
    const size_t inner = 1 + random.below(random.below(8) == 0 ? 3000 : 30);
    for (size_t k = 0; k < inner; ++k) cdf.push_back(1 + static_cast<int32_t>(random.below(65535)));
    std::sort(cdf.begin(), cdf.end());
    cdf.erase(std::unique(cdf.begin(), cdf.end()), cdf.end());
    rows.push_back({static_cast<int32_t>(random.below(200)) - 100, cdf});
  }
  return rows;
}

void test_round_trips() {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    // More rows than slots are kept for is the case in which every look-up is a search.
    const size_t row_count = seed == 7 ? 140000 : seed == 8 ? 3000 : 1 + random.below(300);
    std::vector<RowSpec> rows = random_rows(random, std::min<size_t>(row_count, 300));
    while (rows.size() < row_count) rows.push_back({0, {0, 30000, 65000, 65536}});
    const Tables tables = make_tables(rows);
    std::vector<int32_t> symbols;
    std::vector<int32_t> indexes;
    const size_t count = seed < 3 ? seed : random.below(3000);
    for (size_t i = 0; i < count; ++i) {
      const size_t row = random.below(rows.size());
      const auto length = static_cast<int64_t>(rows[row].cdf.size());
      int64_t value = static_cast<int64_t>(random.below(static_cast<uint64_t>(length - 2)));
      if (random.below(20) == 0) {
        const int64_t distance = static_cast<int64_t>(random.below(uint64_t{1} << random.below(28)));
        value = random.below(2) == 0 ? -1 - distance : length - 2 + distance;
      }
      symbols.push_back(static_cast<int32_t>(value) + rows[row].offset);
      indexes.push_back(static_cast<int32_t>(row));
    }
    const Bytes stream = encode(tables, symbols, indexes);
    check(decode<int32_t>(tables, stream, indexes, 1 + random.below(500)) == symbols, "round trip");
  }
}

void test_refusals() {
  const auto row = [](std::vector<int32_t> cdf, int32_t offset) {
    return throws<mlic::CodingError>([&] { make_tables({{0, {0, 9, 65536}}, {offset, cdf}}); });
  };
  check(!row({0, 1, 65536}, -mlic::kMaxOffset), "a good table is accepted");
  check(row({0, 65536}, 0), "table without an ordinary interval");
  check(row({1, 2, 65536}, 0), "table that does not begin at 0");
  check(row({0, 2, 65535}, 0), "table that does not end at 65536");
  check(row({0, 7, 7, 65536}, 0), "table with an empty interval");
  check(row({0, -5, 65536}, 0), "table that decreases");
  check(row({0, 65536, 65536}, 0), "table with an empty escape");
  check(row({0, 1, 65536}, std::numeric_limits<int32_t>::min()), "offset out of range");
  check(throws<mlic::CodingError>([] { make_tables({}); }), "no rows");

  const Tables tables = make_tables({{0, {0, 9, 65536}}, {-5, {0, 1000, 65536}}});
  const std::vector<int32_t> row0{0};
  const auto codes = [&](int32_t symbol, int32_t index) {
    return !throws<mlic::CodingError>([&] {
      const Bytes stream = encode(tables, std::vector<int32_t>{symbol}, std::vector<int32_t>{index});
      check(decode<int32_t>(tables, stream, std::vector<int32_t>{index}, 1).at(0) == symbol, "one symbol");
    });
  };
  constexpr int32_t kFar = 1 << 27;
  check(codes(0, 0) && codes(-kFar, 0) && codes(kFar, 0), "the farthest symbols");
  check(!codes(-kFar - 1, 0) && !codes(kFar + 1, 0), "symbols beyond the farthest");
  check(codes(-kFar - 5, 1) && codes(kFar - 5, 1) && !codes(kFar - 4, 1), "the farthest symbols with an offset");
  check(!codes(std::numeric_limits<int32_t>::min(), 1) && !codes(std::numeric_limits<int32_t>::max(), 1), "extremes");
  check(!codes(0, 2) && !codes(0, -1), "index out of range");

  mlic::Encoder encoder(tables);
  const std::vector<int32_t> good{0, 3, 0};
  const std::vector<int32_t> bad{0, 3, kFar + 1};
  const std::vector<int32_t> rows{0, 0, 0};
  encoder.push(good.data(), rows.data(), 3);
  check(throws<mlic::CodingError>([&] { encoder.push(bad.data(), rows.data(), 3); }), "a bad push");
  check(encoder.finish() == encode(tables, good, rows), "a refused push leaves nothing behind");
  check(throws<mlic::CodingError>([&] { encoder.finish(); }), "a finished encoder");

  const Bytes nothing = encode(tables, std::vector<int32_t>{}, std::vector<int32_t>{});
  check(nothing == Bytes({0, 0, 0, 128, 0, 0, 0, 0}), "the stream of no symbols is the initial state");
  mlic::Decoder decoder(tables, nothing.data(), nothing.size());
  const int32_t outside = 2;
  int32_t symbol = 0;
  check(throws<mlic::CodingError>([&] { decoder.decode(&outside, &symbol, 1); }), "decode: index out of range");
  decoder.finish();
  check(throws<mlic::CodingError>([&] { decoder.decode(row0.data(), &symbol, 1); }), "a finished decoder");
}

void test_parallel(const Case& golden) {
  const Tables tables = make_tables(golden.rows);
  for (const size_t threads : {0u, 1u, 5u}) {
    std::vector<Bytes> streams(23);
    mlic::for_each_stream(streams.size(), threads,
                          [&](size_t i) { streams[i] = encode(tables, golden.symbols, golden.indexes); });
    check(std::count(streams.begin(), streams.end(), golden.stream) == 23, "parallel encode");
    std::string message;
    try {
      mlic::for_each_stream(50, threads, [](size_t i) {
        if (i % 10 == 4) throw mlic::BitstreamError("bad");
      });
    } catch (const mlic::BitstreamError& error) {
      message = error.what();
    }
    check(message == "stream 4: bad", "the first stream's error is reported");
  }
}

template <typename Test>
void run(const std::string& name, const Test& test) {
  try {
    test();
  } catch (const std::exception& error) {
    check(false, name + ": " + error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::printf("usage: selftest golden_streams.txt\n");
    return 2;
  }
  const std::vector<Case> cases = read_golden(argv[1]);
  check(cases.size() == 5, "the golden file has five cases");
  for (const Case& golden : cases) {
    run(golden.name, [&] { test_golden(golden); });
    run(golden.name, [&] { test_hostile(golden); });
    run(golden.name, [&] { test_parallel(golden); });
  }
  run("round trips", test_round_trips);
  run("refusals", test_refusals);
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
