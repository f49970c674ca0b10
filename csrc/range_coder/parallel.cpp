// SPDX-License-Identifier: Apache-2.0
// Threads for independent streams. Plain std::thread: OpenMP's pool is torch's as well, and a forked child of a
// process that has used it hangs.
#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "errors.hpp"

namespace mlic {
namespace {

// A container or taskset may allow fewer processors than the machine has.
size_t available_processors() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

[[noreturn]] void rethrow_for_stream(const std::exception_ptr& error, size_t stream) {
  const std::string prefix = "stream " + std::to_string(stream) + ": ";
  try {
    std::rethrow_exception(error);
  } catch (const CodingError& e) {
    throw CodingError(prefix + e.what());
  } catch (const BitstreamError& e) {
    throw BitstreamError(prefix + e.what());
  }
}

}  // namespace

void for_each_stream(size_t count, size_t threads, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::exception_ptr error;     // guarded by mutex
  size_t error_stream = count;  // guarded by mutex

  // Numbers are handed out in ascending order, so when one fails all lower ones have begun and will be waited for.
  const auto run = [&] {
    while (!stop.load(std::memory_order_relaxed)) {
      const size_t i = next.fetch_add(1);
      if (i >= count) return;
      try {
        work(i);
      } catch (...) {
        stop.store(true, std::memory_order_relaxed);
        const std::lock_guard<std::mutex> lock(mutex);
        if (i < error_stream) {
          error_stream = i;
          error = std::current_exception();
        }
      }
    }
  };

  if (threads == 0) threads = available_processors();
  threads = std::min(threads, count);
  std::vector<std::thread> helpers;
  try {
    while (helpers.size() + 1 < threads) helpers.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run, and this one, do all of the work.
  }
  run();
  for (std::thread& helper : helpers) helper.join();
  if (error) rethrow_for_stream(error, error_stream);
}

}  // namespace mlic
