// Products of rows with a packed weight in the tiles of AMX.
//
// A tile instruction rounds otherwise than a vector one, so all numbers of rows are multiplied here, one row too. The
// inputs are padded with zeros to whole tiles: a sum then goes in steps of 32 inputs, whatever rows stand beside it.

#pragma once

#include "streams.h"

#ifdef __AMX_BF16__

#include <sys/syscall.h>
#include <unistd.h>

namespace draftless {

constexpr int64_t kTileRows = 16, kTileInputs = 32, kTileBytes = 1024;
constexpr int64_t kKept = 1 << 19;     // bytes of a weight that stay in the second cache for all rows

inline bool tiles_are_allowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of arch_prctl
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
}

// Tiles 0 .. 3 hold sums [2, 2], 4 and 5 rows of x, 6 and 7 outputs of the weight.
inline void configure_tiles(int64_t rows) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const auto above = static_cast<uint8_t>(std::min(rows, kTileRows));
  const auto below = static_cast<uint8_t>(std::max<int64_t>(1, rows - kTileRows));
  const uint8_t of_tiles[8] = {above, above, below, below, above, below, 16, 16};
  for (int i = 0; i < 8; ++i) {
    config.bytes[i] = 64;
    config.rows[i] = of_tiles[i];
  }
  _tile_loadconfig(&config);
}

// Adds 32 inputs of up to 16 rows, or 32 if `kBoth`, times a block, which is fetched ahead where it is a stream.
template <bool kBoth, bool kIsStream>
DRAFTLESS_INLINE void multiply_step(const BFloat16* x, int64_t x_bytes, const char* weight) {
  if constexpr (kIsStream) fetch_ahead<2 * kTileBytes>(weight);
  _tile_stream_loadd(6, weight, 64);
  _tile_loadd(4, x, x_bytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_stream_loadd(7, weight + kTileBytes, 64);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kBoth) {
    _tile_loadd(5, reinterpret_cast<const char*>(x) + kTileRows * x_bytes, x_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Sums of rows with a block, rows of sums `stride` apart. `whole`: the number of whole tiles of inputs; `tail`: the
// inputs behind them padded with zeros, or null.
template <bool kBoth, bool kIsStream>
void multiply_tiles(const BFloat16* x, int64_t x_stride, int64_t whole, const BFloat16* tail, const void* block,
                    float* sums, int64_t stride) {
  const char* weight = static_cast<const char*>(block);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kBoth) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < whole; ++step, weight += 2 * kTileBytes) {
    multiply_step<kBoth, kIsStream>(x + step * kTileInputs, x_stride * 2, weight);
  }
  if (tail != nullptr) multiply_step<kBoth, kIsStream>(tail, kTileInputs * 2, weight);
  _tile_stored(0, sums, stride * 4);
  _tile_stored(1, sums + 16, stride * 4);
  if constexpr (kBoth) {
    _tile_stored(2, sums + kTileRows * stride, stride * 4);
    _tile_stored(3, sums + kTileRows * stride + 16, stride * 4);
  }
}

// The outputs of some blocks for up to 32 rows from `row` on.
inline void multiply_rows(const Product& product, int64_t row, int64_t first_block, int64_t last_block) {
  constexpr int64_t kRows = 2 * kTileRows;
  const int64_t whole = product.in / kTileInputs, rest = product.in % kTileInputs;
  const int64_t rows = std::min(kRows, product.rows - row), bytes = (whole + (rest != 0)) * 2 * kTileBytes;
  const BFloat16* x = static_cast<const BFloat16*>(product.x) + row * product.x_stride;
  alignas(64) BFloat16 tail[kRows * kTileInputs];
  alignas(64) float sums[kRows * Tiled::kOutputs];
  if (rest != 0) {
    std::memset(tail, 0, sizeof tail);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(tail + i * kTileInputs, x + i * product.x_stride + whole * kTileInputs, rest * 2);
    }
  }
  configure_tiles(rows);
  const auto multiply = row > 0 ? (rows > kTileRows ? multiply_tiles<true, false> : multiply_tiles<false, false>)
                                : (rows > kTileRows ? multiply_tiles<true, true> : multiply_tiles<false, true>);
  for (int64_t index = first_block; index < last_block; ++index) {
    const char* block = static_cast<const char*>(product.weight) + index * bytes;
    multiply(x, product.x_stride, whole, rest == 0 ? nullptr : tail, block, sums, Tiled::kOutputs);
    const int64_t first = index * Tiled::kOutputs, count = std::min(Tiled::kOutputs, product.width - first);
    for (int64_t i = 0; i < rows; ++i) finish<BFloat16>(product, row + i, sums + i * Tiled::kOutputs, first, count);
  }
}

inline void product_by_tiles(const Product& product, int64_t first_block, int64_t last_block) {
  const int64_t kept = std::max<int64_t>(1, kKept / (rounded_up(product.in, kTileInputs) * Tiled::kOutputs * 2));
  for (int64_t block = first_block; block < last_block; block += kept) {
    for (int64_t row = 0; row < product.rows; row += 2 * kTileRows) {
      multiply_rows(product, row, block, std::min(block + kept, last_block));
    }
  }
  _tile_release();
}

using BFloat16Layout = Tiled;

}  // namespace draftless

#else

namespace draftless {

using BFloat16Layout = Streamed;

}  // namespace draftless

#endif
