// What the kernels share: types of numbers, and vectors as wide as the CPU's.
//
// Bits must not depend on which loop the compiler vectorises or where it fuses a product and a sum. So all
// arithmetic is written in whole vectors, and a fused one is `fma`, never `a * b + c`.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define DRAFTLESS_INLINE inline __attribute__((always_inline))

namespace draftless {

enum DType : int32_t { kFloat = 0, kBFloat16 = 1 };

struct BFloat16 {  // the upper half of a float
  uint16_t bits;
};

inline int64_t size_of(DType dtype) { return dtype == kFloat ? 4 : 2; }

inline int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// To nearest, ties to even; a NaN stays one.
inline BFloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

DRAFTLESS_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__) && !defined(__AVX2__)
  return (Floats)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__ARM_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;  // there is nothing to fuse them with
#endif
}

DRAFTLESS_INLINE Floats all(float value) { return value - Floats{}; }

DRAFTLESS_INLINE Words all_words(uint32_t value) { return value - Words{}; }

template <class Vector>
DRAFTLESS_INLINE Vector load_vector(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

DRAFTLESS_INLINE Floats load(const float* from) { return load_vector<Floats>(from); }

DRAFTLESS_INLINE Floats load(const BFloat16* from) {
#if defined(__AVX512F__)
  return (Floats)((Words)_mm512_cvtepu16_epi32(load_vector<__m256i>(from)) << 16);
#elif defined(__AVX2__)
  return (Floats)((Words)_mm256_cvtepu16_epi32(load_vector<__m128i>(from)) << 16);
#else
  return (Floats)(__builtin_convertvector(load_vector<Halves>(from), Words) << 16);
#endif
}

DRAFTLESS_INLINE void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

DRAFTLESS_INLINE void store(BFloat16* to, Floats values) {
  const Words bits = (Words)values;
  const Words nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Halves halves = __builtin_convertvector(values == values ? nearest : (bits >> 16 | 0x40), Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// The first `count` of a vector; the others are zero.
template <class T>
inline Floats load_some(const T* from, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

template <class T>
inline void store_some(T* to, Floats values, int64_t count) {
  T padded[kLanes];
  store(padded, values);
  std::memcpy(to, padded, count * sizeof(T));
}

// Fetches, while `kBytes` from `from` on are used, as many of the next window of memory: some lines of each of its
// pages. A core that reads four pages at once reads up to 1.6 times as fast as page by page, as it would by itself.
template <int64_t kBytes>
DRAFTLESS_INLINE void fetch_ahead(const void* from) {
  constexpr int64_t kLine = 64, kPage = 4096, kPages = 4, kWindow = kPages * kPage;
  const auto* const at = static_cast<const char*>(from);
  const int64_t place = reinterpret_cast<uintptr_t>(at) % kWindow / kLine * kLine;
  const char* const next = at - reinterpret_cast<uintptr_t>(at) % kWindow + kWindow;
#pragma GCC unroll 32
  for (int64_t line = place; line < place + kBytes; line += kLine) {
    __builtin_prefetch(next + line / kLine % kPages * kPage + line / kLine / kPages * kLine % kPage);
  }
}

// 2^x to a few units in the last place, for x up to 0; 0 from -120 down; a NaN stays one.
DRAFTLESS_INLINE Floats exp2(Floats x) {
  const Floats shift = all(12582912.0f);  // 1.5 * 2^23: a sum with it has no fraction, its low bits count
  const Floats shifted = x + shift, whole = shifted - shift;
  const Floats rest = x - whole;  // within -1/2 and 1/2: the series of e^(rest ln 2)
  Floats value = all(1.5403530e-4f);
  for (const float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    value = fma(value, rest, all(factor));
  }
  const Floats scale = (Floats)(((Words)shifted - 0x4b400000u + 127) << 23);
  return x < all(-120.0f) ? Floats{} : value * scale;
}

// The sum of the lanes, always in one order.
inline float sum_of(Floats values) {
  float lanes[kLanes];
  store(lanes, values);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace draftless
