// SPDX-License-Identifier: Apache-2.0
// Generalised divisive normalisation with the residual addition, and its gradients.
#pragma once

#include <cstddef>

#include "isa.hpp"

namespace mlic::kernels {

// Maps [B, C, P] (positions innermost), or [B, P, C] if channels_last; float32, dense.
struct GdnMaps {
  const float* x;
  const float* residual;  // or null
  float* y;
  size_t batch, channels, positions;
  bool channels_last;
};

// y = x / sqrt(beta[o] + sum over k of gamma[o][k] x[k]^2) + residual, or x * sqrt(...) + residual if inverse.
// beta [C], gamma [C][C]. Results depend neither on the layout nor on the threads, and those of a position on no other
// one. `isa` is what chosen_isa() says. Throws std::bad_alloc.
void gdn(const GdnMaps& maps, const float* beta, const float* gamma, bool inverse, Isa isa, int threads);

// x, the gradient of y, and that of x, which is written: as GdnMaps, of float32, or of bfloat16 if so.
struct GdnGradMaps {
  const void* x;
  const void* grad;
  void* dx;
  size_t batch, channels, positions;
  bool channels_last, bfloat16;
};

// Writes the gradients of x, of beta [C] and of gamma [C][C]. Computes in float32. That of x depends neither on the
// layout nor on the threads; the others are sums over positions, fixed for a number of threads. Throws std::bad_alloc.
void gdn_backward(const GdnGradMaps& maps, const float* beta, const float* gamma, float* dbeta, float* dgamma,
                  bool inverse, Isa isa, int threads);

}  // namespace mlic::kernels
