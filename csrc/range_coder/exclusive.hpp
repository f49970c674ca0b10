// SPDX-License-Identifier: Apache-2.0
// Refuses a second thread inside an object that holds a stream's state.
#pragma once

#include <atomic>

#include "errors.hpp"

namespace mlic {

// Symbols of one stream have an order, so two threads inside one coder are a mistake even where they would not crash.
class Exclusive {
 public:
  explicit Exclusive(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true, std::memory_order_acquire)) {
      throw CodingError("this coder is in use by another thread; give each thread its own Encoder or Decoder");
    }
  }
  ~Exclusive() { busy_.store(false, std::memory_order_release); }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::atomic<bool>& busy_;
};

}  // namespace mlic
