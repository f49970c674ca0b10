// SPDX-License-Identifier: Apache-2.0
#include "isa.hpp"

#include <cstdlib>

namespace mlic::kernels {
namespace {

Isa widest_here() {
#if MLIC_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kGeneric;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::kAvx512 : Isa::kAvx2;
#else
  return Isa::kGeneric;
#endif
}

}  // namespace

Isa chosen_isa() {
  static const Isa here = widest_here();
  const char* value = std::getenv("MLIC_FAST_ISA");
  if (value == nullptr || *value == '\0') return here;
  const std::string name = value;
  for (const Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (name != name_of(isa)) continue;
    if (isa > here) {
      throw IsaError("MLIC_FAST_ISA=" + name + ": this processor goes up to " + name_of(here) +
                     "; unset the variable or name a narrower set");
    }
    return isa;
  }
  throw IsaError("MLIC_FAST_ISA=" + name + ": no instruction set is called that; it is one of generic, avx2, avx512");
}

std::string name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kGeneric:
      break;
  }
  return "generic";
}

}  // namespace mlic::kernels
