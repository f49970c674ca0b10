// SPDX-License-Identifier: Apache-2.0
// Python's view of Winograd's transforms: addresses and sizes in, nothing copied. mlic_fast/ops/winograd.py checks
// before it calls.
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <stdexcept>

#include "bindings.hpp"
#include "winograd.hpp"

namespace py = pybind11;

namespace mlic::kernels {
namespace {

TiledMap map_of(const py::tuple& shape) {
  if (shape.size() != 4) throw std::invalid_argument("a map's shape is (batch, height, width, channels)");
  const TiledMap map{shape[0].cast<size_t>(), shape[1].cast<size_t>(), shape[2].cast<size_t>(),
                     shape[3].cast<size_t>()};
  if (map.height % 2 || map.width % 2 || map.channels % kWinogradChannels) {
    throw std::invalid_argument("height and width must be even, channels a multiple of 16");
  }
  return map;
}

TileRange range_of(const TiledMap& map, size_t first, size_t count, size_t stride) {
  if (first > map.tiles() || count > map.tiles() - first || stride < count * map.channels) {
    throw std::invalid_argument("tiles outside the map, or coefficients on top of each other");
  }
  return {first, count, stride};
}

}  // namespace

void bind_winograd(py::module_& module) {
  module.def(
      "winograd_input",
      [](uintptr_t x, const py::tuple& shape, size_t first, size_t count, uintptr_t out, size_t stride, int threads) {
        const TiledMap map = map_of(shape);
        const TileRange range = range_of(map, first, count, stride);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        winograd_input(reinterpret_cast<const float*>(x), map, range, reinterpret_cast<float*>(out), isa, threads);
      },
      py::arg("x"), py::arg("shape"), py::arg("first"), py::arg("count"), py::arg("out"), py::arg("stride"),
      py::arg("threads"));
  module.def(
      "winograd_output",
      [](uintptr_t coefficients, size_t stride, const py::tuple& shape, size_t first, size_t count, uintptr_t bias,
         uintptr_t y, int threads) {
        const TiledMap map = map_of(shape);
        const TileRange range = range_of(map, first, count, stride);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        winograd_output(reinterpret_cast<const float*>(coefficients), map, range, reinterpret_cast<const float*>(bias),
                        reinterpret_cast<float*>(y), isa, threads);
      },
      py::arg("coefficients"), py::arg("stride"), py::arg("shape"), py::arg("first"), py::arg("count"), py::arg("bias"),
      py::arg("y"), py::arg("threads"));
  module.def(
      "winograd_gradient",
      [](uintptr_t grad, const py::tuple& shape, size_t first, size_t count, uintptr_t out, size_t stride,
         int threads) {
        const TiledMap map = map_of(shape);
        const TileRange range = range_of(map, first, count, stride);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        winograd_gradient(reinterpret_cast<const float*>(grad), map, range, reinterpret_cast<float*>(out), isa,
                          threads);
      },
      py::arg("grad"), py::arg("shape"), py::arg("first"), py::arg("count"), py::arg("out"), py::arg("stride"),
      py::arg("threads"));
}

}  // namespace mlic::kernels
