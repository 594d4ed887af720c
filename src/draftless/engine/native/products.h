// out = x @ weight.T + bias, on weights that lie in the order in which they are read.
//
// The bits of a row of `out` depend on that row of `x` and on the weight only: every output is one sum in the order
// of the inputs, whatever rows, blocks or threads stand beside it.

#pragma once

#include <cstdint>

#include "streams.h"
#include "tiles.h"

namespace draftless {

// Whether this process may run these products: the system has to allow the tiles of AMX.
inline bool may_multiply() {
#ifdef __AMX_BF16__
  return tiles_are_allowed();
#else
  return true;
#endif
}

// Outputs per block of a packed weight. Weights that are packed side by side need no whole blocks.
inline int64_t block_outputs(DType dtype) {
  return dtype == kFloat ? Streamed::kOutputs : BFloat16Layout::kOutputs;
}

inline int64_t num_blocks(int64_t width, DType dtype) {
  return (width + block_outputs(dtype) - 1) / block_outputs(dtype);
}

inline int64_t block_bytes(int64_t in, DType dtype) {
  const int64_t units = dtype == kFloat ? in : rounded_up(units_of<BFloat16>(in), BFloat16Layout::kUnits);
  return units * block_outputs(dtype) * 4;
}

inline int64_t packed_bytes(int64_t width, int64_t in, DType dtype) {
  return num_blocks(width, dtype) * block_bytes(in, dtype);
}

// Packs a weight [rows, in], its rows `stride` numbers apart, as outputs `first_output` .. of `packed` (aligned to 64
// bytes). The rest of its last block becomes zero, so weights that share a block are packed in ascending order.
inline void pack(const void* weight, int64_t rows, int64_t in, int64_t stride, DType dtype, int64_t first_output,
                 void* packed) {
  const int64_t outputs = block_outputs(dtype), bytes = block_bytes(in, dtype);
  for (int64_t row = 0; row < rows;) {
    const int64_t first = (first_output + row) % outputs, count = std::min(rows - row, outputs - first);
    auto* block = reinterpret_cast<uint32_t*>(static_cast<char*>(packed) + (first_output + row) / outputs * bytes);
    if (dtype == kFloat) {
      pack_block<Streamed>(static_cast<const float*>(weight) + row * stride, stride, in, first, first + count, block);
    } else {
      const auto* from = static_cast<const BFloat16*>(weight) + row * stride;
      pack_block<BFloat16Layout>(from, stride, in, first, first + count, block);
    }
    row += count;
  }
}

// The outputs of blocks `first_block` .. `last_block`, for all rows.
inline void product(const Product& product, int64_t first_block, int64_t last_block) {
  if (product.dtype == kFloat) return product_by_streams<float>(product, first_block, last_block);
#ifdef __AMX_BF16__
  product_by_tiles(product, first_block, last_block);
#else
  product_by_streams<BFloat16>(product, first_block, last_block);
#endif
}

}  // namespace draftless
