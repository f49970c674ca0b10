// SPDX-License-Identifier: Apache-2.0
// Python's view of softmax attention: addresses and strides in, the GIL released around the kernel.
// mlic_fast/ops/softmax_attention.py checks shapes and types before it calls, and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <tuple>

#include "bindings.hpp"
#include "softmax_attention.hpp"

namespace py = pybind11;

namespace mlic::kernels {
namespace {

// Address and strides of a map: (data, b, c, h, w), strides in elements.
using MapTuple = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;

AttendedMap map_of(const MapTuple& map) {
  const auto [data, b, c, h, w] = map;
  return {reinterpret_cast<const float*>(data), {b, c, h, w}};
}

}  // namespace

void bind_softmax_attention(py::module_& module) {
  module.def(
      "softmax_attention",
      [](const MapTuple& queries, const MapTuple& keys, const MapTuple& values, uintptr_t out,
         const std::array<int64_t, 4>& shape, int64_t heads, bool checkerboard, int64_t radius, int threads) {
        const auto [batch, channels, height, width] = shape;
        const SoftmaxAttention job{map_of(queries), map_of(keys), map_of(values), reinterpret_cast<float*>(out),
                                   batch,           channels,     height,         width,
                                   heads,           checkerboard, radius};
        if (heads < 1 || channels % heads != 0) throw std::invalid_argument("heads must divide the channels");
        if (checkerboard && width % 2 != 0) throw std::invalid_argument("the checkerboard needs an even width");
        if (radius < 0) throw std::invalid_argument("the radius must not be negative");
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release released;
        softmax_attention(job, isa, threads);
      },
      py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("out"), py::arg("shape"), py::arg("heads"),
      py::arg("checkerboard"), py::arg("radius"), py::arg("threads"));
}

}  // namespace mlic::kernels
