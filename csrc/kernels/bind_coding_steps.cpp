// SPDX-License-Identifier: Apache-2.0
// Python's view of the coding steps: addresses and strides in, nothing copied. mlic_fast/ops/coding_steps.py checks
// shapes and dtypes before it calls.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <tuple>

#include "bindings.hpp"
#include "coding_steps.hpp"

namespace py = pybind11;

namespace mlic::kernels {
namespace {

using Address = uintptr_t;
// Address and strides of a map: (data, b, c, h, w), strides in elements.
using MapTuple = std::tuple<Address, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t>;
// Batch, channels, height, width.
using Shape = std::tuple<size_t, size_t, size_t, size_t>;

template <typename T>
Map<T> map_of(const MapTuple& map) {
  const auto [data, b, c, h, w] = map;
  return {reinterpret_cast<T*>(data), b, c, h, w};
}

Board board_of(const Shape& shape, size_t first) {
  const auto [batch, channels, height, width] = shape;
  if (width % 2 != 0) throw std::invalid_argument("coding steps: maps must have an even width");
  if (first > 1) throw std::invalid_argument("coding steps: the first column is 0 or 1");
  return {batch, channels, height, width, first};
}

ScaleTable table_of(Address entries, size_t rows, Address bound) {
  if (rows < 1 || rows > 256) throw std::invalid_argument("coding steps: the scale table must have 1 to 256 rows");
  return {reinterpret_cast<const float*>(entries), rows, *reinterpret_cast<const float*>(bound)};
}

}  // namespace

void bind_coding_steps(py::module_& module) {
  module.def(
      "encode_step",
      [](const MapTuple& values, const MapTuple& y, const MapTuple& scales, const MapTuple& means, const Shape& shape,
         Address table, size_t rows, Address bound, Address symbols, Address indexes, Address flags, size_t first,
         bool clear, bool wide, int threads) {
        const Board board = board_of(shape, first);
        const ScaleTable scale_table = table_of(table, rows, bound);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        encode_step(board, map_of<float>(values), map_of<const float>(y), map_of<const float>(scales),
                    map_of<const float>(means), scale_table, clear, wide, reinterpret_cast<void*>(symbols),
                    reinterpret_cast<uint8_t*>(indexes), reinterpret_cast<uint8_t*>(flags), isa, threads);
      },
      py::arg("values"), py::arg("y"), py::arg("scales"), py::arg("means"), py::arg("shape"), py::arg("table"),
      py::arg("rows"), py::arg("bound"), py::arg("symbols"), py::arg("indexes"), py::arg("flags"), py::arg("first"),
      py::arg("clear"), py::arg("wide"), py::arg("threads"));
  module.def(
      "decode_indexes",
      [](const MapTuple& scales, const MapTuple& means, const Shape& shape, Address table, size_t rows, Address bound,
         Address indexes, Address flags, size_t first, int threads) {
        const Board board = board_of(shape, first);
        const ScaleTable scale_table = table_of(table, rows, bound);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        decode_indexes(board, map_of<const float>(scales), map_of<const float>(means), scale_table,
                       reinterpret_cast<uint8_t*>(indexes), reinterpret_cast<uint8_t*>(flags), isa, threads);
      },
      py::arg("scales"), py::arg("means"), py::arg("shape"), py::arg("table"), py::arg("rows"), py::arg("bound"),
      py::arg("indexes"), py::arg("flags"), py::arg("first"), py::arg("threads"));
  module.def(
      "decode_values",
      [](const MapTuple& values, Address symbols, bool wide, const MapTuple& means, const Shape& shape, size_t first,
         bool clear, int threads) {
        const Board board = board_of(shape, first);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        decode_values(board, map_of<float>(values), reinterpret_cast<const void*>(symbols), wide,
                      map_of<const float>(means), clear, isa, threads);
      },
      py::arg("values"), py::arg("symbols"), py::arg("wide"), py::arg("means"), py::arg("shape"), py::arg("first"),
      py::arg("clear"), py::arg("threads"));
  module.def(
      "residual_step",
      [](const MapTuple& values, const MapTuple& logits, const Shape& shape, size_t first, int threads) {
        const Board board = board_of(shape, first);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        residual_step(board, map_of<float>(values), map_of<const float>(logits), isa, threads);
      },
      py::arg("values"), py::arg("logits"), py::arg("shape"), py::arg("first"), py::arg("threads"));
}

}  // namespace mlic::kernels
