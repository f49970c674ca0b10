// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU kernels use.
#pragma once

#include <stdexcept>
#include <string>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define MLIC_X86 1
#else
#define MLIC_X86 0
#endif

namespace mlic::kernels {

// An instruction set that was asked for and cannot be had; mlic_fast.errors.BackendError in Python.
class IsaError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Isa { kGeneric, kAvx2, kAvx512 };

// The widest that this processor has, or, if it is narrower, what the environment variable MLIC_FAST_ISA names
// (generic, avx2, avx512). Read anew at each call, from the environment, which Python's threads write to under the GIL:
// to be called with the GIL held, once for each call of a kernel. Throws IsaError for another name, or for a set that
// this processor lacks.
Isa chosen_isa();

// generic, avx2 or avx512
std::string name_of(Isa isa);

// A kernel's entry points are compiled once for each instruction set; this takes the one to call.
template <typename Entry>
Entry pick(Isa isa, Entry generic, [[maybe_unused]] Entry avx2, [[maybe_unused]] Entry avx512) {
  switch (isa) {
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    case Isa::kGeneric:
      break;
  }
  return generic;
}

}  // namespace mlic::kernels

// MLIC_PICK_OF(isa, run) is run of the namespace that fits: generic::run, avx2::run or avx512::run.
#if MLIC_X86
#define MLIC_PICK_OF(isa, entry) ::mlic::kernels::pick(isa, &generic::entry, &avx2::entry, &avx512::entry)
#else
#define MLIC_PICK_OF(isa, entry) ::mlic::kernels::pick(isa, &generic::entry, &generic::entry, &generic::entry)
#endif
