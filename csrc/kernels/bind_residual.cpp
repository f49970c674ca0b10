// SPDX-License-Identifier: Apache-2.0
// Python's view of the residual addition: addresses and strides in, nothing copied. mlic_fast/ops/residual.py checks
// shapes and dtypes before it calls.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <tuple>

#include "bindings.hpp"
#include "residual.hpp"

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
  if (width % 2 != 0) throw std::invalid_argument("residual: maps must have an even width");
  if (first > 1) throw std::invalid_argument("residual: the first column is 0 or 1");
  return {batch, channels, height, width, first};
}

}  // namespace

void bind_residual(py::module_& module) {
  module.def(
      "add_residual",
      [](const MapTuple& values, const MapTuple& logits, const Shape& shape, size_t first, int threads) {
        const Board board = board_of(shape, first);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        add_residual(board, map_of<float>(values), map_of<const float>(logits), isa, threads);
      },
      py::arg("values"), py::arg("logits"), py::arg("shape"), py::arg("first"), py::arg("threads"));
}

}  // namespace mlic::kernels
