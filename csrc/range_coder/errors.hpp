// SPDX-License-Identifier: Apache-2.0
// What the coder throws: one type for a caller's mistake, one for a damaged stream.
#pragma once

#include <stdexcept>
#include <string>

namespace mlic {

// Symbols, indexes or tables that cannot be coded. Becomes mlic_fast.errors.CodingError.
class CodingError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A stream that no encoder wrote. Becomes mlic_fast.errors.BitstreamError.
class BitstreamError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace mlic
