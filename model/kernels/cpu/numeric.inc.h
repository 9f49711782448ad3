// Sizes of the kernels that are written over the instruction set Isa, see kernels.inc.h.
#pragma once

#include "scalars.inc.h"

namespace dslite {
namespace {

constexpr int64_t kPairs = 2 * Isa::kLanes;
constexpr int64_t kMaxRows = 256;  // weight rows that a worker takes at once
constexpr int64_t kKeys = 64;       // cached rows of a block of attention

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace dslite
