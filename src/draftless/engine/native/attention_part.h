// One step after the other of the attention of some queries of a KV head: scores, weights, sums of values.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "common.h"
#include "tiles.h"
#include "visible.h"

namespace draftless {

struct Attention {
  DType dtype;
  const Pass* pass;
  int64_t window;                     // of sliding attention; 0: none
  int64_t heads, kv_heads, key_dim, value_dim;
  const void* query;                  // [rows * width, heads, key_dim], a token's heads behind one another
  int64_t query_stride;               // numbers between tokens
  const void *keys, *values;          // the cache of the layer from the first row of the pass, [rows, kv_heads,
  int64_t capacity, slot;             // capacity, slot]: a slot holds `slot` numbers, of which the dims are used
  void* out;                          // [rows * width, heads, value_dim]
  float scaling, softcap;             // softcap 0: none
};

namespace attention_detail {

constexpr int kGroup = 6;         // queries that share a load of values
constexpr int kWidest = 2 * kStreamedRows / kGroup;  // vectors of values whose sums fill the registers
constexpr float kLog2E = 1.4426950408889634f;

// How a block of keys is packed, and to what multiple the numbers of a query are padded with zeros.
template <class T>
using Keys = std::conditional_t<sizeof(T) == 2, BFloat16Layout, Streamed>;

template <class T>
constexpr int64_t kPadding = Keys<T>::kUnits * kPerUnit<T>;

// Memory of this thread, kept: to fill it with zeros takes as long as to use it. One per type.
template <class T>
T* room_of_thread(size_t size) {
  static thread_local std::vector<T> room;
  if (room.size() < size) room.resize(size);
  return room.data();
}

// tanh(x) to about 1e-7.
DRAFTLESS_INLINE Floats tanh(Floats x) {
  const Floats size = x < Floats{} ? -x : x;
  const Floats power = exp2(size * all(-2.0f * kLog2E));
  const Floats value = (all(1.0f) - power) / (all(1.0f) + power);
  return x < Floats{} ? -value : value;
}

// Adds values [count, ..] from column 0, times weights, to `kWidth` vectors of sums of some queries.
template <class T, int kCount, int kWidth>
void add_values(const T* values, int64_t stride, int64_t count, const float* const* weights, float* const* sums) {
  Floats total[kCount][kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) total[i][j] = load(sums[i] + j * kLanes);
  }
  const float* of[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) of[i] = weights[i];
  for (int64_t key = 0; key < count; ++key) {
    Floats value[kWidth];
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) {
      const T* from = values + key * stride + j * kLanes;
      value[j] = load(from);
      if (j * kLanes * sizeof(T) % 64 == 0) fetch_ahead<64>(from);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const Floats weight = all(of[i][key]);
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) total[i][j] = fma(weight, value[j], total[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) store(sums[i] + j * kLanes, total[i][j]);
  }
}

// The same for the last `columns` < kLanes of a row of values.
template <class T>
void add_last_values(const T* values, int64_t stride, int64_t count, int64_t columns, const float* weights,
                     float* sums) {
  Floats total = load(sums);
  for (int64_t key = 0; key < count; ++key) {
    total = fma(all(weights[key]), load_some(values + key * stride, columns), total);
  }
  store(sums, total);
}

template <class T, int kCount>
void add_columns(const T* values, int64_t stride, int64_t count, int64_t columns, const float* const* weights,
                 float* const* sums) {
  float* to[kCount];
  int64_t column = 0;
  const auto at_column = [&] {
    for (int i = 0; i < kCount; ++i) to[i] = sums[i] + column;
    return to;
  };
  for (; column + kWidest * kLanes <= columns; column += kWidest * kLanes) {
    add_values<T, kCount, kWidest>(values + column, stride, count, weights, at_column());
  }
  for (; column + 2 * kLanes <= columns; column += 2 * kLanes) {
    add_values<T, kCount, 2>(values + column, stride, count, weights, at_column());
  }
  for (; column + kLanes <= columns; column += kLanes) {
    add_values<T, kCount, 1>(values + column, stride, count, weights, at_column());
  }
  if (column == columns) return;
  for (int i = 0; i < kCount; ++i) {
    add_last_values(values + column, stride, count, columns - column, weights[i], sums[i] + column);
  }
}

// Some queries of one KV head of one row. Queries are counted node by node: those of a node are its heads.
template <class T>
class Part {
 public:
  Part(const Attention& attention, int64_t row_, int64_t kv_head_, int64_t first_, int64_t count_)
      : of(attention), row(row_), kv_head(kv_head_), first(first_), count(count_), first_runs(1, 0) {
    const int64_t offset = (row * of.kv_heads + kv_head) * of.capacity * of.slot;
    keys = static_cast<const T*>(of.keys) + offset;
    values = static_cast<const T*>(of.values) + offset;
    begin = of.pass->context(row);
    int64_t end = 0;
    for (int64_t i = 0; i < count; ++i) {
      of.pass->see(row, node_of(i), of.window, runs);
      begin = std::min(begin, runs[first_runs[i]].begin);
      end = std::max(end, runs.back().end);
      first_runs.push_back(runs.size());
    }
    num_keys = end - begin;
    stride = rounded_up(num_keys, Keys<T>::kOutputs);
  }

  void attend() {
    static thread_local std::vector<float> room;
    if (static_cast<int64_t>(room.size()) < count * (stride + 1)) room.resize(count * (stride + 1));
    scores = room.data();
    score();
    for (int64_t i = 0; i < count; ++i) weigh(i);
    for (int64_t i = 0; i < count; i += kGroup) add(i, std::min<int64_t>(kGroup, count - i));
  }

 private:
  int64_t groups() const { return of.heads / of.kv_heads; }
  int64_t node_of(int64_t query) const { return (first + query) / groups(); }
  int64_t head_of(int64_t query) const { return kv_head * groups() + (first + query) % groups(); }
  int64_t token_of(int64_t query) const { return row * of.pass->width() + node_of(query); }
  float& share_of(int64_t query) const { return scores[count * stride + query]; }

  // Scores of all queries with all keys that one of them sees.
  void score() const {
    constexpr int64_t kKeys = Keys<T>::kOutputs;
    const int64_t dim = rounded_up(of.key_dim, kPadding<T>);
    T* const queries = room_of_thread<T>(count * dim);
    auto* const packed = reinterpret_cast<uint32_t*>(room_of_thread<Words>(dim * kKeys / kPerUnit<T> / kLanes));
    std::memset(queries, 0, count * dim * sizeof(T));
    for (int64_t i = 0; i < count; ++i) {
      const T* query = static_cast<const T*>(of.query) + token_of(i) * of.query_stride + head_of(i) * of.key_dim;
      std::memcpy(queries + i * dim, query, of.key_dim * sizeof(T));
    }
    begin_blocks();
    for (int64_t key = 0; key < num_keys; key += kKeys) {
      const int64_t num = std::min(kKeys, num_keys - key);
      const T* block = keys + (begin + key) * of.slot;
      for (int64_t i = 0; i < kKeys * of.slot; i += 64 / sizeof(T)) fetch_ahead<64>(block + i);
      pack_block<Keys<T>>(block, of.slot, of.key_dim, 0, num, packed);
      multiply_block(queries, dim, packed, scores + key);
    }
    end_blocks();
  }

#ifdef __AMX_BF16__
  static constexpr bool kInTiles = sizeof(T) == 2;
#else
  static constexpr bool kInTiles = false;
#endif

  void begin_blocks() const {
#ifdef __AMX_BF16__
    if (kInTiles) configure_tiles(count);
#endif
  }

  void end_blocks() const {
#ifdef __AMX_BF16__
    if (kInTiles) _tile_release();
#endif
  }

  void multiply_block(const T* queries, int64_t dim, const uint32_t* block, float* to) const {
#ifdef __AMX_BF16__
    if constexpr (kInTiles) {
      const auto multiply = count > kTileRows ? multiply_tiles<true, false> : multiply_tiles<false, false>;
      return multiply(queries, dim, dim / kTileInputs, nullptr, block, to, stride);
    }
#endif
    in_parts<T>(count, [&](int64_t from, int64_t, auto streamed) {
      streamed(queries + from * dim, dim, dim, block, to + from * stride, stride);
    });
  }

  // Scores to weights of what a query sees, in the order of its path.
  void weigh(int64_t query) const {
    float* const to = scores + query * stride;
    int64_t size = 0;
    for (int64_t i = first_runs[query]; i < first_runs[query + 1]; ++i) {
      const float* from = to + runs[i].begin - begin;
      const int64_t length = runs[i].end - runs[i].begin;
      if (from != to + size) std::memmove(to + size, from, length * sizeof(float));
      size += length;
    }
    const Floats nothing = all(-std::numeric_limits<float>::infinity());
    Floats most = nothing;
    std::fill(to + size, to + rounded_up(size, kLanes), 0.0f);
    for (int64_t i = 0; i < size; i += kLanes) {
      Floats score = load(to + i) * all(of.scaling);
      if (of.softcap != 0) score = tanh(score / all(of.softcap)) * all(of.softcap);
      score *= all(kLog2E);
      store(to + i, score);
      if (i + kLanes > size) {
        std::fill(to + size, to + i + kLanes, nothing[0]);
        score = load(to + i);
      }
      most = score > most ? score : most;
    }
    float largest = most[0];
    for (int i = 1; i < kLanes; ++i) largest = std::max(largest, static_cast<float>(most[i]));
    Floats sum{};
    for (int64_t i = 0; i < size; i += kLanes) {
      const Floats weight = exp2(load(to + i) - all(largest));
      sum += weight;
      store(to + i, weight);
    }
    share_of(query) = 1.0f / sum_of(sum);
  }

  // The outputs of up to kGroup queries.
  void add(int64_t query, int64_t num) const {
    const int64_t columns = of.value_dim, size = rounded_up(columns, kLanes);
    float* const room = room_of_thread<float>(num * size);
    std::fill_n(room, num * size, 0.0f);
    const float* weights[kGroup];
    float* sums[kGroup];
    int64_t shared_from = 0, shared_to = of.capacity;
    for (int64_t i = 0; i < num; ++i) {
      const Run& run = runs[first_runs[query + i]];
      shared_from = std::max(shared_from, run.begin);
      shared_to = std::min(shared_to, run.end);
      weights[i] = scores + (query + i) * stride;
      sums[i] = room + i * size;
    }
    const auto add_run = [&](int64_t i, int64_t begin, int64_t end) {
      if (begin >= end) return;
      add_columns<T, 1>(values + begin * of.slot, of.slot, end - begin, columns, weights + i, sums + i);
      weights[i] += end - begin;
    };
    const bool shares = num > 1 && shared_from < shared_to;
    for (int64_t i = 0; i < num && shares; ++i) add_run(i, runs[first_runs[query + i]].begin, shared_from);
    if (shares) {
      add_shared(num, values + shared_from * of.slot, shared_to - shared_from, columns, weights, sums);
    }
    for (int64_t i = 0; i < num; ++i) {
      int64_t begin = shares ? shared_to : 0;
      weights[i] += shares ? shared_to - shared_from : 0;
      for (int64_t j = first_runs[query + i]; j < first_runs[query + i + 1]; ++j) {
        add_run(i, std::max(begin, runs[j].begin), runs[j].end);
      }
      T* out = static_cast<T*>(of.out) + (token_of(query + i) * of.heads + head_of(query + i)) * columns;
      int64_t at = 0;
      const Floats share = all(share_of(query + i));
      for (; at + kLanes <= columns; at += kLanes) store(out + at, load(sums[i] + at) * share);
      if (at < columns) store_some(out + at, load(sums[i] + at) * share, columns - at);
    }
  }

  void add_shared(int64_t num, const T* data, int64_t num_values, int64_t columns, const float* const* weights,
                  float* const* sums) const {
    using Add = void (*)(const T*, int64_t, int64_t, int64_t, const float* const*, float* const*);
    constexpr Add kAdd[kGroup] = {add_columns<T, 1>, add_columns<T, 2>, add_columns<T, 3>,
                                  add_columns<T, 4>, add_columns<T, 5>, add_columns<T, 6>};
    kAdd[num - 1](data, of.slot, num_values, columns, weights, sums);
  }

  const Attention& of;
  int64_t row, kv_head, first, count;  // queries
  const T *keys, *values;              // of the head
  std::vector<Run> runs;               // that they see
  std::vector<int64_t> first_runs;
  int64_t begin, num_keys, stride;     // slots that one of them sees; floats per query in `scores`
  float* scores;                       // [count, stride], and behind them one over the sum of each query's weights
};

}  // namespace attention_detail

}  // namespace draftless
