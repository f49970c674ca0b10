// SPDX-License-Identifier: Apache-2.0
// Many independent streams at once, on threads of our own.
#pragma once

#include <cstddef>
#include <functional>

namespace mlic {

// Calls work(i) once for each i < count, on at most `threads` threads (0: as many as this process may run on), the
// caller's among them. Afterwards, if calls threw, throws the one error with the lowest i, its message led by
// "stream i: "; which one that is does not depend on the threads.
void for_each_stream(size_t count, size_t threads, const std::function<void(size_t)>& work);

}  // namespace mlic
