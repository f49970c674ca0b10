// SPDX-License-Identifier: Apache-2.0
// Python's view of Winograd's convolution: addresses and sizes in, nothing copied. mlic_fast/ops/winograd.py checks
// before it calls.
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "winograd.hpp"

namespace py = pybind11;

namespace mlic::kernels {
namespace {

// The shape is that in memory, margins included.
TiledMap map_of(const py::tuple& shape, size_t margin = 0) {
  if (shape.size() != 4) throw std::invalid_argument("a map's shape is (batch, height, width, channels)");
  TiledMap map{shape[0].cast<size_t>(), shape[1].cast<size_t>(), shape[2].cast<size_t>(), shape[3].cast<size_t>(),
               margin};
  if (map.width % 2 || map.channels % kWinogradChannels) {
    throw std::invalid_argument("the width must be even, channels a multiple of 16");
  }
  if (map.height < 2 * margin) throw std::invalid_argument("a map has no fewer rows than its margins");
  map.height -= 2 * margin;
  return map;
}

std::vector<Piece> pieces_of(const py::sequence& given, const TiledMap& map) {
  std::vector<Piece> pieces;
  size_t rows = 0;
  for (const py::handle& item : given) {
    const auto [address, count] = item.cast<std::pair<uintptr_t, size_t>>();
    pieces.push_back({reinterpret_cast<const float*>(address), count});
    rows += count;
  }
  if (rows != map.batch * map.rows()) throw std::invalid_argument("the pieces have not as many rows as the map");
  return pieces;
}

size_t checked(size_t outputs) {
  if (outputs == 0 || outputs % kWinogradChannels) throw std::invalid_argument("outputs must be a multiple of 16");
  return outputs;
}

}  // namespace

void bind_winograd(py::module_& module) {
  module.def(
      "winograd_convolve",
      [](const py::sequence& pieces, const py::tuple& shape, uintptr_t coefficients, size_t outputs, size_t panel,
         uintptr_t bias, uintptr_t y, bool pad_rows, bool gelu, size_t factor, int threads) {
        const TiledMap map = map_of(shape, pad_rows ? 0 : 1);
        const WinogradWeights weights{reinterpret_cast<const float*>(coefficients),
                                      checked(outputs),
                                      reinterpret_cast<const float*>(bias),
                                      gelu,
                                      panel,
                                      factor};
        if ((panel != 16 && panel != 32) || outputs % panel)
          throw std::invalid_argument("outputs come in panels of 16 or 32");
        if (factor == 0 || outputs / kWinogradChannels % (factor * factor)) {
          throw std::invalid_argument("a shuffle's channels must be a multiple of 16");
        }
        const std::vector<Piece> x = pieces_of(pieces, map);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        winograd_convolve(x, map, weights, reinterpret_cast<float*>(y), isa, threads);
      },
      py::arg("pieces"), py::arg("shape"), py::arg("coefficients"), py::arg("outputs"), py::arg("panel"),
      py::arg("bias"), py::arg("y"), py::arg("pad_rows"), py::arg("gelu"), py::arg("factor"), py::arg("threads"));
  module.def(
      "winograd_weights",
      [](uintptr_t x, const py::tuple& shape, uintptr_t grad, size_t outputs, uintptr_t total, int threads) {
        const TiledMap map = map_of(shape);
        if (map.height % 2) throw std::invalid_argument("the height must be even");
        checked(outputs);
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        winograd_weights(reinterpret_cast<const float*>(x), map, reinterpret_cast<const float*>(grad), outputs,
                         reinterpret_cast<float*>(total), isa, threads);
      },
      py::arg("x"), py::arg("shape"), py::arg("grad"), py::arg("outputs"), py::arg("total"), py::arg("threads"));
}

}  // namespace mlic::kernels
