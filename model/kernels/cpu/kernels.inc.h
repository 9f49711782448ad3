// The kernels, written once over an instruction set. Each file that includes this one defines before it, in namespace
// dslite and unnamed within, a struct Isa with: kLanes, Sum (kLanes float32), Pairs (2·kLanes BF16), and the functions
// used below. No library templates here: inlined under one instruction set, they would leak into code that runs on all.
//
// A row of 2·kLanes values is multiplied pair by pair: lane i of a Sum gets a[2i]·b[2i] + a[2i+1]·b[2i+1].

#include "attention_prefill.inc.h"
#include "gemm.inc.h"
#include "layer.inc.h"

namespace dslite {
namespace {

const Ops kOps = {linear,    by_head,     head,         experts,     layer_scratch, layers, attention_scratch,
                  attention, panel_bytes, many_experts, many_linear, norms};

}  // namespace
}  // namespace dslite
