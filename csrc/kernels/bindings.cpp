// SPDX-License-Identifier: Apache-2.0
// mlic_fast._cpu_kernels, put together.
#include "bindings.hpp"

#include <exception>

#include "isa.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_cpu_kernels, module) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const mlic::kernels::IsaError& error) {
      const py::object type = py::module_::import("mlic_fast.errors").attr("BackendError");
      PyErr_SetString(type.ptr(), error.what());
    }
  });

  // the instruction set that kernels use now: generic, avx2 or avx512
  module.def("isa", [] { return mlic::kernels::name_of(mlic::kernels::chosen_isa()); });
  mlic::kernels::bind_residual(module);
  mlic::kernels::bind_gdn(module);
  mlic::kernels::bind_local_attention(module);
  mlic::kernels::bind_softmax_attention(module);
  mlic::kernels::bind_winograd(module);
}
