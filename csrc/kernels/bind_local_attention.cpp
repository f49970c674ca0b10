// SPDX-License-Identifier: Apache-2.0
// Python's view of local window attention: addresses and strides in, the GIL released around the kernel. Nothing else:
// mlic_fast/ops/local_attention.py has checked shapes, types and strides, and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "bindings.hpp"
#include "local_attention.hpp"

namespace py = pybind11;

namespace mlic::kernels {
namespace {

using Address = uintptr_t;

const float* floats(Address address) {
  return reinterpret_cast<const float*>(address);
}
float* floats_out(Address address) {
  return reinterpret_cast<float*>(address);
}

QkvMaps maps(Address qkv, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& strides, Address table) {
  return {floats(qkv), strides, floats(table), shape[0], shape[1] / 3, shape[2], shape[3]};
}

}  // namespace

void bind_local_attention(py::module_& module) {
  module.def(
      "local_attention",
      [](Address qkv, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& strides, Address table,
         Address fusion_weight, Address fusion_bias, Address proj_weight, Address proj_bias, Address out, int threads) {
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release released;
        mlic::kernels::local_attention(maps(qkv, shape, strides, table), floats(fusion_weight), floats(fusion_bias),
                                       floats(proj_weight), floats(proj_bias), floats_out(out), isa, threads);
      },
      py::arg("qkv"), py::arg("shape"), py::arg("strides"), py::arg("table"), py::arg("fusion_weight"),
      py::arg("fusion_bias"), py::arg("proj_weight"), py::arg("proj_bias"), py::arg("out"), py::arg("threads"));

  module.def(
      "local_attention_rows",
      [](Address qkv, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& strides, Address table,
         int64_t first, int64_t last, Address attended, int threads) {
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release released;
        mlic::kernels::local_attention_rows(maps(qkv, shape, strides, table), first, last, floats_out(attended), isa,
                                            threads);
      },
      py::arg("qkv"), py::arg("shape"), py::arg("strides"), py::arg("table"), py::arg("first"), py::arg("last"),
      py::arg("attended"), py::arg("threads"));

  module.def(
      "local_attention_rows_backward",
      [](Address qkv, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& strides, Address table,
         int64_t first, int64_t last, Address attended_grad, Address qkv_grad, Address table_grad, int threads) {
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release released;
        mlic::kernels::local_attention_rows_backward(maps(qkv, shape, strides, table), first, last,
                                                     floats(attended_grad), floats_out(qkv_grad),
                                                     reinterpret_cast<double*>(table_grad), isa, threads);
      },
      py::arg("qkv"), py::arg("shape"), py::arg("strides"), py::arg("table"), py::arg("first"), py::arg("last"),
      py::arg("attended_grad"), py::arg("qkv_grad"), py::arg("table_grad"), py::arg("threads"));
}

}  // namespace mlic::kernels
