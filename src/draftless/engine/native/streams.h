// Products of rows with a packed weight in vectors: the form that any CPU has.
//
// Few rows are bound by how fast the weight can be read, so it is read once, as one stream, for up to twelve rows: while
// rows multiply what lies in the second cache, nothing comes from memory.
// A weight is cut into blocks of outputs, and inputs into units of 32 bits: a float, or two bfloat16 side by side.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "common.h"

namespace draftless {

struct Product {
  DType dtype;         // of x, weight, bias and out
  const void* x;       // [rows, in], rows `x_stride` numbers apart
  const void* weight;  // [width, in], packed
  const void* bias;    // [width], or null
  void* out;           // [rows, width], rows `out_stride` numbers apart
  int64_t rows, in, width, x_stride, out_stride;
};

// Vectors of outputs in a block of a streamed weight, and rows at once: their sums fill the registers.
constexpr int kVectors = 2;
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kStreamedRows = 12;
#else
constexpr int kStreamedRows = 6;
#endif
constexpr int64_t kStreamedOutputs = kVectors * kLanes;
constexpr int64_t kAhead = 2048;  // words that are fetched before they are read

template <class T>
constexpr int64_t kPerUnit = 4 / sizeof(T);

template <class T>
int64_t units_of(int64_t in) {
  return (in + kPerUnit<T> - 1) / kPerUnit<T>;
}

// A unit of a row; what lies behind its end is zero.
template <class T>
DRAFTLESS_INLINE uint32_t unit_at(const T* row, int64_t in, int64_t unit) {
  uint32_t bits = 0;
  std::memcpy(&bits, row + unit * kPerUnit<T>, std::min(kPerUnit<T>, in - unit * kPerUnit<T>) * sizeof(T));
  return bits;
}

template <class T>
DRAFTLESS_INLINE uint32_t whole_unit(const T* row, int64_t unit) {
  uint32_t bits;
  std::memcpy(&bits, row + unit * kPerUnit<T>, sizeof bits);
  return bits;
}

// How a block lies in memory: `kOutputs` outputs, parts of `kPart` of them side by side for a whole part of units.
struct Streamed {  // [units, outputs]
  static constexpr int64_t kOutputs = kStreamedOutputs, kUnits = 1, kStride = kOutputs;
  static int64_t place(int64_t unit, int64_t output) { return unit * kOutputs + output; }
};

struct Tiled {  // [units / 16, outputs / 16, 16, 16]
  static constexpr int64_t kOutputs = 32, kUnits = 16, kStride = 16;
  static int64_t place(int64_t unit, int64_t output) {
    return unit / 16 * 16 * kOutputs + output / 16 * 256 + unit % 16 * 16 + output % 16;
  }
};

template <size_t... kPlaces>
DRAFTLESS_INLINE Words zipped(std::index_sequence<kPlaces...>) {
  return Words{static_cast<uint32_t>(kPlaces / 2 + kPlaces % 2 * kLanes)...};
}

// Swaps rows and columns of kLanes vectors: each of the rounds interleaves the two halves.
DRAFTLESS_INLINE void transpose(Words (&rows)[kLanes]) {
  const Words low = zipped(std::make_index_sequence<kLanes>()), high = low + kLanes / 2;
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Words mixed[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
}

// Packs outputs `first` .. `last` of one block: `from` is the row of the first. Those behind become zero.
template <class Layout, class T>
void pack_block(const T* from, int64_t stride, int64_t in, int64_t first, int64_t last, uint32_t* block) {
  const int64_t units = units_of<T>(in), whole = in / kPerUnit<T>, padded = rounded_up(units, Layout::kUnits);
  for (int64_t unit = 0; unit < padded; unit += kLanes) {
    for (int64_t output = first / kLanes * kLanes; output < Layout::kOutputs; output += kLanes) {
      const T* rows = from + (output - first) * stride;
      if (first <= output && output + kLanes <= last && unit + kLanes <= whole) {
        Words words[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) words[i] = load_vector<Words>(rows + i * stride + unit * kPerUnit<T>);
        transpose(words);
        uint32_t* to = block + Layout::place(unit, output);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) std::memcpy(to + i * Layout::kStride, &words[i], sizeof words[i]);
        continue;
      }
      for (int64_t i = std::max<int64_t>(0, first - output); i < kLanes; ++i) {
        for (int64_t j = unit; j < std::min(padded, unit + kLanes); ++j) {
          const bool is_there = output + i < last && j < units;
          block[Layout::place(j, output + i)] = is_there ? unit_at(rows + i * stride, in, j) : 0;
        }
      }
    }
  }
}

// In how many steps a unit is multiplied: two where each of its bfloat16 becomes a float of its own.
#ifdef __AVX512BF16__
template <class T>
constexpr int kSteps = 1;
#else
template <class T>
constexpr int kSteps = kPerUnit<T>;
#endif

// A unit in all lanes. Behind a barrier: GCC would shift it as a scalar, and then bring two numbers into vectors.
template <class T>
DRAFTLESS_INLINE Words broadcast(uint32_t unit) {
  Words both = all_words(unit);
#if defined(__x86_64__)
  if constexpr (kSteps<T> == 2) asm("" : "+v"(both));
#endif
  return both;
}

// What of a unit step `kStep` multiplies.
template <class T, int kStep>
DRAFTLESS_INLINE Words factor_of(Words unit) {
  if constexpr (kSteps<T> == 1) return unit;
  return kStep == 0 ? unit << 16 : unit & 0xffff0000u;
}

template <class T>
DRAFTLESS_INLINE Floats multiply_add(Words x, Words weight, Floats sum) {
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == 2) return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)weight);
#endif
  return fma((Floats)x, (Floats)weight, sum);
}

// Sums of `kRows` rows of x with one streamed block, kStreamedOutputs each, rows `sums_stride` apart.
template <class T, int kRows>
void stream(const T* x, int64_t x_stride, int64_t in, const uint32_t* block, float* sums, int64_t sums_stride) {
  Floats total[kRows][kVectors] = {};
  const auto add_step = [&](int64_t unit, auto unit_of, auto step) __attribute__((always_inline)) {
    Words weight[kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) {
      weight[i] = factor_of<T, step>(load_vector<Words>(block + unit * kStreamedOutputs + i * kLanes));
    }
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      const Words both = factor_of<T, step>(broadcast<T>(unit_of(x + row * x_stride, unit)));
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) total[row][i] = multiply_add<T>(both, weight[i], total[row][i]);
    }
  };
  const auto add = [&](int64_t unit, auto unit_of) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int i = 0; i < kStreamedOutputs; i += 16) __builtin_prefetch(block + unit * kStreamedOutputs + i + kAhead);
    add_step(unit, unit_of, std::integral_constant<int, 0>());
    if constexpr (kSteps<T> == 2) add_step(unit, unit_of, std::integral_constant<int, 1>());
  };
  const int64_t whole = in / kPerUnit<T>;
#pragma GCC unroll 2
  for (int64_t unit = 0; unit < whole; ++unit) add(unit, whole_unit<T>);
  if (whole < units_of<T>(in)) add(whole, [in](const T* row, int64_t unit) { return unit_at(row, in, unit); });
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) store(sums + row * sums_stride + i * kLanes, total[row][i]);
  }
}

template <class T>
using Stream = void (*)(const T*, int64_t, int64_t, const uint32_t*, float*, int64_t);

// The stream of `rows` rows.
template <class T, size_t... kBefore>
Stream<T> stream_of(int64_t rows, std::index_sequence<kBefore...>) {
  constexpr Stream<T> kStreams[] = {stream<T, kBefore + 1>...};
  return kStreams[rows - 1];
}

// Calls `part(first row, number of rows, its stream)` for all rows, evenly: a part of one row reads as much as one of
// twelve.
template <class T, class Part>
void in_parts(int64_t rows, const Part& part) {
  int64_t row = 0;
  for (int64_t parts = (rows + kStreamedRows - 1) / kStreamedRows; parts > 0; --parts) {
    const int64_t count = (rows - row + parts - 1) / parts;
    part(row, count, stream_of<T>(count, std::make_index_sequence<kStreamedRows>()));
    row += count;
  }
}

// Adds the bias to sums of one row, rounds and stores them: outputs `first` .. `first + count`.
template <class T>
DRAFTLESS_INLINE void finish(const Product& product, int64_t row, const float* sums, int64_t first, int64_t count) {
  const T* bias = product.bias == nullptr ? nullptr : static_cast<const T*>(product.bias) + first;
  T* out = static_cast<T*>(product.out) + row * product.out_stride + first;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(out + i, bias == nullptr ? load(sums + i) : load(sums + i) + load(bias + i));
  }
  if (i < count) {
    const Floats sum = load_some(sums + i, count - i);
    store_some(out + i, bias == nullptr ? sum : sum + load_some(bias + i, count - i), count - i);
  }
}

template <class T>
void product_by_streams(const Product& product, int64_t first_block, int64_t last_block) {
  const T* x = static_cast<const T*>(product.x);
  const int64_t size = units_of<T>(product.in) * kStreamedOutputs;
  for (int64_t index = first_block; index < last_block; ++index) {
    const uint32_t* block = static_cast<const uint32_t*>(product.weight) + index * size;
    const int64_t first = index * kStreamedOutputs, count = std::min(kStreamedOutputs, product.width - first);
    in_parts<T>(product.rows, [&](int64_t from, int64_t rows, auto streamed) {
      alignas(64) float sums[kStreamedRows * kStreamedOutputs];
      streamed(x + from * product.x_stride, product.x_stride, product.in, block, sums, kStreamedOutputs);
      for (int64_t i = 0; i < rows; ++i) finish<T>(product, from + i, sums + i * kStreamedOutputs, first, count);
    });
  }
}

}  // namespace draftless
