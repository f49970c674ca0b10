// SPDX-License-Identifier: Apache-2.0
// Independent tasks on a given number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace mlic::kernels {

// Calls work(task, worker) once for each task < count; worker < min(count, threads) names the thread, so that it can
// have a workspace. `work` must not throw: allocate before. OpenMP, whose threads are those of PyTorch where it runs
// in the same process; without OpenMP one thread does it all.
void run_tasks(int64_t count, int threads, const std::function<void(int64_t task, int worker)>& work);

// Floats on a boundary of 64 bytes, zero at first.
class Floats {
 public:
  Floats() = default;
  explicit Floats(size_t count);  // throws std::bad_alloc
  ~Floats();
  Floats(Floats&& other) noexcept;
  Floats& operator=(Floats&& other) noexcept;
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;

  float* data() const { return data_; }
  size_t size() const { return size_; }
  void zero();

 private:
  float* data_ = nullptr;  // of size_ floats, or null
  size_t size_ = 0;
};

}  // namespace mlic::kernels
