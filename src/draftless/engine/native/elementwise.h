// What a model does between its products, one token at a time: a list of instructions on short vectors of floats.
//
// Every instruction computes in float, and rounds to bfloat16 where the model's own code would have stored one. Lanes
// never mix but in sums, which go in one order; so the bits of a token do not depend on what stands beside it.

#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>

#include "common.h"

namespace draftless {

// The order is that of `OPS` in engine/cpu/structures.py.
enum Op : int64_t {
  kCopy, kNeg, kAdd, kSub, kMul, kDiv, kMaximum, kMinimum, kRsqrt, kSqrt, kExp, kSilu, kGelu, kGeluTanh, kTanh,
  kSigmoid, kRelu, kCos, kSin, kAbs, kPow, kMean, kSum, kLoad, kStore, kTokenId, kPosition, kEmbed, kErf,
};

struct Operand {
  int64_t base;         // number of the first float in the token's room, or the address of a constant
  int64_t strides[3];
  int64_t is_constant;
};

struct Instruction {
  int64_t op, is_rounded;
  int64_t sizes[3];
  Operand out, a, b;
  int64_t offset, stride, dtype, is_output;  // of loads and stores: the buffer, in bytes a token
  double number;
};

namespace elementwise_detail {

inline Floats rounded(Floats values) {
  const Words bits = (Words)values;
  const Words nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  return values == values ? (Floats)nearest : values;
}

template <class Function>
inline Floats lane_by_lane(Floats values, Function&& function) {
  for (int i = 0; i < kLanes; ++i) values[i] = function(values[i]);
  return values;
}

inline Floats magnitude(Floats x) { return (Floats)((Words)x & 0x7fffffffu); }

inline Floats exp_of_minus(Floats x) {  // e^-x for x >= 0
  return exp2(x * all(-1.4426950408889634f));
}

inline Floats sigmoid(Floats x) {
  const Floats small = exp_of_minus(magnitude(x));
  return (x >= Floats{} ? all(1.0f) : small) / (all(1.0f) + small);
}

inline Floats tanh(Floats x) {
  const Floats small = exp_of_minus(magnitude(x) * all(2.0f));
  const Floats large = (all(1.0f) - small) / (all(1.0f) + small);
  const Floats square = x * x;  // near zero the difference loses its digits, and the series has them
  Floats series = fma(square, all(-17.0f / 315.0f), all(2.0f / 15.0f));
  series = x * fma(square, fma(square, series, all(-1.0f / 3.0f)), all(1.0f));
  const Floats signed_large = x < Floats{} ? -large : large;
  return magnitude(x) < all(0.1f) ? series : signed_large;
}

inline Floats gelu_tanh(Floats x) {
  const Floats inner = all(0.7978845608028654f) * fma(x * x * x, all(0.044715f), x);
  return all(0.5f) * x * (all(1.0f) + tanh(inner));
}

inline Floats gelu(Floats x) {
  return lane_by_lane(x, [](float v) { return 0.5f * v * (1.0f + std::erf(v * 0.70710678118654752f)); });
}

inline Floats power(Floats x, double exponent, bool is_rounded) {
  if (exponent == 0.5 || exponent == -0.5) {  // std::pow differs at -0 and -inf
    const Floats root = lane_by_lane(x, [](float v) { return std::sqrt(v); });
    return exponent == 0.5 ? root : all(1.0f) / root;
  }
  if (exponent == -1) return all(1.0f) / x;
  const Floats square = is_rounded ? rounded(x * x) : x * x;
  if (exponent == 2) return square;
  if (exponent == 3) return square * x;
  if (exponent == -2) return all(1.0f) / square;
  return lane_by_lane(x, [exponent](float v) { return static_cast<float>(std::pow(v, exponent)); });
}

// What is read of an operand whose innermost stride is zero or one: numbers side by side, `step` apart for each vector.
struct Dense {
  Floats same;
  const float* from;
  int64_t step;

  Dense(const float* operand, int64_t stride)
      : same(all(*operand)), from(stride == 0 ? reinterpret_cast<const float*>(&same) : operand),
        step(stride * kLanes) {}
  Dense(const Dense&) = delete;
};

template <bool kIsRounded, class Function>
inline void each_dense(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* to, int64_t count,
                       const Function& function) {
  Dense of_a(a, a_stride), of_b(b, b_stride);
  const auto value = [&](Floats x, Floats y) {
    const Floats found = function(x, y);
    return kIsRounded ? rounded(found) : found;
  };
  for (; count >= kLanes; count -= kLanes, of_a.from += of_a.step, of_b.from += of_b.step, to += kLanes) {
    store(to, value(load(of_a.from), load(of_b.from)));
  }
  if (count > 0) store_some(to, value(load_some(of_a.from, count), load_some(of_b.from, count)), count);
}

template <class Function>
inline void each(const Instruction& instruction, float* room, const Function& function) {
  const Instruction it = instruction;  // a copy: what is stored below cannot change it
  const auto place = [room](const Operand& of) {
    return of.is_constant ? reinterpret_cast<const float*>(of.base) : room + of.base;
  };
  const int64_t a_stride = it.a.strides[2], b_stride = it.b.strides[2], out_stride = it.out.strides[2];
  const auto dense = it.is_rounded ? each_dense<true, Function> : each_dense<false, Function>;
  for (int64_t i = 0; i < it.sizes[0]; ++i) {
    for (int64_t j = 0; j < it.sizes[1]; ++j) {
      const float* a = place(it.a) + i * it.a.strides[0] + j * it.a.strides[1];
      const float* b = place(it.b) + i * it.b.strides[0] + j * it.b.strides[1];
      float* to = room + it.out.base + i * it.out.strides[0] + j * it.out.strides[1];
      if ((a_stride | b_stride) >> 1 == 0 && out_stride == 1) {
        dense(a, a_stride, b, b_stride, to, it.sizes[2], function);
        continue;
      }
      for (int64_t k = 0; k < it.sizes[2]; ++k) {
        Floats value = function(all(a[k * a_stride]), all(b[k * b_stride]));
        to[k * out_stride] = (it.is_rounded ? rounded(value) : value)[0];
      }
    }
  }
}

// The sum or mean of the innermost axis, whose stride is one.
inline void reduce(const Instruction& it, float* room, bool is_mean) {
  const float* a = it.a.is_constant ? reinterpret_cast<const float*>(it.a.base) : room + it.a.base;
  for (int64_t i = 0; i < it.sizes[0]; ++i) {
    for (int64_t j = 0; j < it.sizes[1]; ++j) {
      const float* from = a + i * it.a.strides[0] + j * it.a.strides[1];
      Floats sums{}, more{};
      int64_t k = 0;
      for (; k + 2 * kLanes <= it.sizes[2]; k += 2 * kLanes) {
        sums += load(from + k);
        more += load(from + k + kLanes);
      }
      for (; k < it.sizes[2]; k += kLanes) {
        sums += load_some(from + k, it.sizes[2] - k < kLanes ? it.sizes[2] - k : kLanes);
      }
      float value = sum_of(sums + more);
      if (is_mean) value /= static_cast<float>(it.sizes[2]);
      if (it.is_rounded) value = to_float(to_bfloat16(value));
      room[it.out.base + i * it.out.strides[0] + j * it.out.strides[1]] = value;
    }
  }
}

template <class T>
inline void widen(const T* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_float(from[i]);
}

template <class T>
inline void narrow(const float* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store_some(to + i, load_some(from + i, count - i), count - i);
}

inline void read(int64_t dtype, const void* from, int64_t count, float* to) {
  if (dtype == kFloat) return widen(static_cast<const float*>(from), count, to);
  widen(static_cast<const BFloat16*>(from), count, to);
}

}  // namespace elementwise_detail

// One token of a pass: `room` is its floats, `buffers` and `output` begin at the token 0 of a pass of `tokens`.
struct Token {
  int64_t index, tokens, id, position;
  char *buffers, *output;
  int64_t output_stride;  // bytes a token
  float* room;
  std::atomic<bool>* is_outside;  // becomes true when an embedding has no row for this token
};

inline void execute(const Instruction& it, const Token& token) {
  using namespace elementwise_detail;
  float* const room = token.room;
  const auto buffer = [&] {
    return it.is_output ? token.output + token.index * token.output_stride
                        : token.buffers + it.offset * token.tokens + token.index * it.stride;
  };
#define EACH(expression) return each(it, room, [&](Floats a, Floats b) { (void)b; return expression; })
  switch (static_cast<Op>(it.op)) {
    case kCopy: EACH(a);
    case kNeg: EACH(-a);
    case kAdd: EACH(a + b);
    case kSub: EACH(a - b);
    case kMul: EACH(a * b);
    case kDiv: EACH(a / b);
    case kMaximum: EACH(a > b || a != a ? a : b);
    case kMinimum: EACH(a < b || a != a ? a : b);
    case kRsqrt: EACH(all(1.0f) / lane_by_lane(a, [](float v) { return std::sqrt(v); }));
    case kSqrt: EACH(lane_by_lane(a, [](float v) { return std::sqrt(v); }));
    case kExp: EACH(lane_by_lane(a, [](float v) { return std::exp(v); }));
    case kSilu: EACH(a * sigmoid(a));
    case kGelu: EACH(gelu(a));
    case kGeluTanh: EACH(gelu_tanh(a));
    case kTanh: EACH(elementwise_detail::tanh(a));
    case kSigmoid: EACH(sigmoid(a));
    case kRelu: EACH(a > Floats{} || a != a ? a : Floats{});
    case kCos: EACH(lane_by_lane(a, [](float v) { return std::cos(v); }));
    case kSin: EACH(lane_by_lane(a, [](float v) { return std::sin(v); }));
    case kAbs: EACH(magnitude(a));
    case kErf: EACH(lane_by_lane(a, [](float v) { return std::erf(v); }));
    case kPow: EACH(power(a, it.number, it.is_rounded));
    case kMean: return reduce(it, room, true);
    case kSum: return reduce(it, room, false);
    case kLoad: return read(it.dtype, buffer(), it.sizes[2], room + it.out.base);
    case kStore:
      if (it.dtype == kFloat) return narrow(room + it.a.base, it.sizes[2], reinterpret_cast<float*>(buffer()));
      return narrow(room + it.a.base, it.sizes[2], reinterpret_cast<BFloat16*>(buffer()));
    case kTokenId: room[it.out.base] = static_cast<float>(token.id); return;
    case kPosition: room[it.out.base] = static_cast<float>(token.position); return;
    case kEmbed: {  // `a` is the index of a row of the table at `b`, which has `number` rows
      const bool is_inside = room[it.a.base] >= 0 && room[it.a.base] < it.number;
      if (!is_inside) token.is_outside->store(true, std::memory_order_relaxed);
      const int64_t index = is_inside ? static_cast<int64_t>(room[it.a.base]) : 0;
      return read(it.dtype, reinterpret_cast<const char*>(it.b.base) + index * it.stride, it.sizes[2],
                  room + it.out.base);
    }
  }
#undef EACH
}

}  // namespace draftless
