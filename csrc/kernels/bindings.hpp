// SPDX-License-Identifier: Apache-2.0
// The parts of the Python module mlic_fast._cpu_kernels, one function for each subject.
#pragma once

#include <pybind11/pybind11.h>

namespace mlic::kernels {

void bind_residual(pybind11::module_& module);
void bind_local_attention(pybind11::module_& module);
void bind_softmax_attention(pybind11::module_& module);
void bind_gdn(pybind11::module_& module);
void bind_winograd(pybind11::module_& module);

}  // namespace mlic::kernels
