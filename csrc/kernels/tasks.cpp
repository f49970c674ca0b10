// SPDX-License-Identifier: Apache-2.0
#include "tasks.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mlic::kernels {

namespace {
constexpr std::align_val_t kAlignment{64};
}

void run_tasks(int64_t count, int threads, const std::function<void(int64_t, int)>& work) {
#ifdef _OPENMP
  const int used = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(count, threads)));
  if (used > 1) {
#pragma omp parallel num_threads(used)
    {
      // dynamic, since another process may hold one of the processors; no task's result depends on its thread.
      // Threads wait once, at the end of the region: how, OMP_WAIT_POLICY says, which the runtime reads when it starts.
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t task = 0; task < count; ++task) work(task, omp_get_thread_num());
    }
    return;
  }
#else
  (void)threads;
#endif
  for (int64_t task = 0; task < count; ++task) work(task, 0);
}

Floats::Floats(size_t count) : size_(count) {
  data_ = static_cast<float*>(::operator new(count * sizeof(float), kAlignment));
  zero();
}

Floats::~Floats() {
  ::operator delete(data_, kAlignment);
}

Floats::Floats(Floats&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Floats& Floats::operator=(Floats&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void Floats::zero() {
  std::memset(data_, 0, size_ * sizeof(float));
}

}  // namespace mlic::kernels
