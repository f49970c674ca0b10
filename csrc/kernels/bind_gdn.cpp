// SPDX-License-Identifier: Apache-2.0
// Python's view of GDN: addresses and sizes in, nothing copied. mlic_fast/ops/gdn.py checks before it calls.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings.hpp"
#include "gdn.hpp"

namespace py = pybind11;

namespace mlic::kernels {

void bind_gdn(py::module_& module) {
  module.def(
      "gdn",
      [](uintptr_t x, uintptr_t residual, uintptr_t y, size_t batch, size_t channels, size_t positions,
         bool channels_last, uintptr_t beta, uintptr_t gamma, bool inverse, int threads) {
        const GdnMaps maps{reinterpret_cast<const float*>(x),
                           reinterpret_cast<const float*>(residual),
                           reinterpret_cast<float*>(y),
                           batch,
                           channels,
                           positions,
                           channels_last};
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        gdn(maps, reinterpret_cast<const float*>(beta), reinterpret_cast<const float*>(gamma), inverse, isa, threads);
      },
      py::arg("x"), py::arg("residual"), py::arg("y"), py::arg("batch"), py::arg("channels"), py::arg("positions"),
      py::arg("channels_last"), py::arg("beta"), py::arg("gamma"), py::arg("inverse"), py::arg("threads"));
  module.def(
      "gdn_backward",
      [](uintptr_t grad, uintptr_t x, uintptr_t dx, size_t batch, size_t channels, size_t positions, bool channels_last,
         bool bfloat16, uintptr_t beta, uintptr_t gamma, uintptr_t dbeta, uintptr_t dgamma, bool inverse, int threads) {
        const GdnGradMaps maps{reinterpret_cast<const void*>(x),
                               reinterpret_cast<const void*>(grad),
                               reinterpret_cast<void*>(dx),
                               batch,
                               channels,
                               positions,
                               channels_last,
                               bfloat16};
        const Isa isa = chosen_isa();  // reads the environment
        py::gil_scoped_release release;
        gdn_backward(maps, reinterpret_cast<const float*>(beta), reinterpret_cast<const float*>(gamma),
                     reinterpret_cast<float*>(dbeta), reinterpret_cast<float*>(dgamma), inverse, isa, threads);
      },
      py::arg("grad"), py::arg("x"), py::arg("dx"), py::arg("batch"), py::arg("channels"), py::arg("positions"),
      py::arg("channels_last"), py::arg("bfloat16"), py::arg("beta"), py::arg("gamma"), py::arg("dbeta"),
      py::arg("dgamma"), py::arg("inverse"), py::arg("threads"));
}

}  // namespace mlic::kernels
