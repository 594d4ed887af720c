// Attention of few queries over what is cached: the query heads of a KV head side by side.
//
// A score is one sum over the head's numbers, in order. What a query sees is then brought into the order of its path,
// and the sums of the softmax and of the values go along it. So a node of a tree gets the bits that plain decoding
// gets, whatever stands beside it and wherever in the cache its ancestors lie; what it does not see is not touched.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common.h"
#include "pool.h"
#include "streams.h"
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

// New keys or values of a pass, [rows * width, kv_heads, dim], rows of tokens `stride` numbers apart.
struct States {
  const void* data;
  int64_t stride, dim;
};

// Copies the states of tokens `first` .. `last` of a pass behind what is cached in `cache` [rows, kv_heads, capacity,
// slot].
inline void append(const Attention& of, const States& states, void* cache, int64_t first, int64_t last) {
  const int64_t size = size_of(of.dtype), width = of.pass->width();
  for (int64_t token = first; token < last; ++token) {
    const int64_t row = token / width, place = of.pass->start(row) + token % width;
    for (int64_t head = 0; head < of.kv_heads; ++head) {
      const char* from = static_cast<const char*>(states.data) + (token * states.stride + head * states.dim) * size;
      char* to = static_cast<char*>(cache) + ((row * of.kv_heads + head) * of.capacity + place) * of.slot * size;
      std::memcpy(to, from, states.dim * size);
    }
  }
}

namespace attention_detail {

constexpr int64_t kQueries = 48;  // of a KV head at once, so that their scores stay in the cache
constexpr int kGroup = 6;         // queries that share a load of values
constexpr float kLog2E = 1.4426950408889634f;

template <class T>
std::vector<T>& room_of_thread() {
  static thread_local std::vector<T> room;
  return room;
}

// tanh(x) to about 1e-7.
DRAFTLESS_INLINE Floats tanh(Floats x) {
  const Floats size = x < Floats{} ? -x : x;
  const Floats power = exp2(size * all(-2.0f * kLog2E));
  const Floats value = (all(1.0f) - power) / (all(1.0f) + power);
  return x < Floats{} ? -value : value;
}

// Adds values [count, ..] from column 0, times weights, to `kVectors` vectors of sums of some queries.
template <class T, int kCount, int kColumns>
void add_values(const T* values, int64_t stride, int64_t count, const float* const* weights, float* const* sums) {
  Floats total[kCount][kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) total[i][j] = load(sums[i] + j * kLanes);
  }
  const float* of[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) of[i] = weights[i];
  for (int64_t key = 0; key < count; ++key) {
    Floats value[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) value[j] = load(values + key * stride + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const Floats weight = all(of[i][key]);
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) total[i][j] = fma(weight, value[j], total[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) store(sums[i] + j * kLanes, total[i][j]);
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
  for (; column + kVectors * kLanes <= columns; column += kVectors * kLanes) {
    add_values<T, kCount, kVectors>(values + column, stride, count, weights, at_column());
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
struct Part {
  const Attention& of;
  int64_t row, kv_head, first, count;  // queries
  const T *keys, *values;              // of the head
  std::vector<Run> runs;               // that they see
  std::vector<int64_t> first_runs;
  int64_t begin, stride;               // first slot that one of them sees; floats per query in `scores`
  float* scores;                       // [count, stride]

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
    stride = rounded_up(num_keys, kStreamedOutputs);
  }

  int64_t groups() const { return of.heads / of.kv_heads; }
  int64_t node_of(int64_t query) const { return (first + query) / groups(); }
  int64_t head_of(int64_t query) const { return kv_head * groups() + (first + query) % groups(); }
  int64_t token_of(int64_t query) const { return row * of.pass->width() + node_of(query); }
  int64_t key_blocks() const { return stride / kStreamedOutputs; }
  int64_t room() const { return count * stride; }

  // Scores of all queries with some blocks of keys.
  void score(int64_t first_block, int64_t last_block) const {
    const int64_t dim = rounded_up(of.key_dim, kPerUnit<T>);
    auto& queries = room_of_thread<T>();
    if (static_cast<int64_t>(queries.size()) < count * dim) queries.resize(count * dim);
    for (int64_t i = 0; i < count; ++i) {
      const T* query = static_cast<const T*>(of.query) + token_of(i) * of.query_stride + head_of(i) * of.key_dim;
      std::copy(query, query + of.key_dim, queries.data() + i * dim);
    }
    auto& block = room_of_thread<Words>();
    const size_t size = units_of<T>(of.key_dim) * kVectors;
    if (block.size() < size) block.resize(size);
    auto* packed = reinterpret_cast<uint32_t*>(block.data());
    for (int64_t index = first_block; index < last_block; ++index) {
      const int64_t key = index * kStreamedOutputs, num = std::min(kStreamedOutputs, num_keys - key);
      pack_block<Streamed>(keys + (begin + key) * of.slot, of.slot, of.key_dim, 0, num, packed);
      in_parts<T>(count, [&](int64_t from, int64_t, auto streamed) {
        streamed(queries.data() + from * dim, dim, of.key_dim, packed, scores + from * stride + key, stride);
      });
    }
  }

  // Scores to weights of what a query sees, in the order of its path. Their sum becomes one.
  void weigh(int64_t query) const {
    float* to = scores + query * stride;
    int64_t size = 0;
    for (int64_t i = first_runs[query]; i < first_runs[query + 1]; ++i) {
      const int64_t length = runs[i].end - runs[i].begin;
      std::memmove(to + size, scores + query * stride + runs[i].begin - begin, length * sizeof(float));
      size += length;
    }
    for (int64_t i = 0; i < size; i += kLanes) {
      Floats score = load(to + i) * all(of.scaling);
      if (of.softcap != 0) score = tanh(score / all(of.softcap)) * all(of.softcap);
      store(to + i, score * all(kLog2E));
    }
    Floats most = all(-std::numeric_limits<float>::infinity());
    std::fill(to + size, to + rounded_up(size, kLanes), most[0]);
    for (int64_t i = 0; i < size; i += kLanes) {
      const Floats score = load(to + i);
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
    const Floats share = all(1.0f / sum_of(sum));
    for (int64_t i = 0; i < size; i += kLanes) store(to + i, load(to + i) * share);
  }

  // Columns `from` .. `to` of the outputs of up to kGroup queries.
  void add(int64_t query, int64_t num, int64_t from, int64_t to) const {
    auto& room = room_of_thread<float>();
    const int64_t columns = to - from, size = rounded_up(columns, kLanes);
    if (static_cast<int64_t>(room.size()) < kGroup * size) room.resize(kGroup * size);
    std::fill_n(room.begin(), num * size, 0.0f);
    const float* weights[kGroup];
    float* sums[kGroup];
    int64_t shared_from = 0, shared_to = of.capacity;
    for (int64_t i = 0; i < num; ++i) {
      const Run& run = runs[first_runs[query + i]];
      shared_from = std::max(shared_from, run.begin);
      shared_to = std::min(shared_to, run.end);
      weights[i] = scores + (query + i) * stride;
      sums[i] = room.data() + i * size;
    }
    const T* const data = values + from;
    const auto add_run = [&](int64_t i, int64_t begin, int64_t end) {
      if (begin >= end) return;
      add_columns<T, 1>(data + begin * of.slot, of.slot, end - begin, columns, weights + i, sums + i);
      weights[i] += end - begin;
    };
    const bool shares = num > 1 && shared_from < shared_to;
    for (int64_t i = 0; i < num && shares; ++i) add_run(i, runs[first_runs[query + i]].begin, shared_from);
    if (shares) {
      add_shared(num, data + shared_from * of.slot, shared_to - shared_from, columns, weights, sums);
    }
    for (int64_t i = 0; i < num; ++i) {
      int64_t begin = shares ? shared_to : 0;
      weights[i] += shares ? shared_to - shared_from : 0;
      for (int64_t j = first_runs[query + i]; j < first_runs[query + i + 1]; ++j) {
        add_run(i, std::max(begin, runs[j].begin), runs[j].end);
      }
      T* out = static_cast<T*>(of.out) + (token_of(query + i) * of.heads + head_of(query + i)) * of.value_dim + from;
      int64_t at = 0;
      for (; at + kLanes <= columns; at += kLanes) store(out + at, load(sums[i] + at));
      if (at < columns) store_some(out + at, load(sums[i] + at), columns - at);
    }
  }

  void add_shared(int64_t num, const T* data, int64_t num_values, int64_t columns, const float* const* weights,
                  float* const* sums) const {
    using Add = void (*)(const T*, int64_t, int64_t, int64_t, const float* const*, float* const*);
    constexpr Add kAdd[kGroup] = {add_columns<T, 1>, add_columns<T, 2>, add_columns<T, 3>,
                                  add_columns<T, 4>, add_columns<T, 5>, add_columns<T, 6>};
    kAdd[num - 1](data, of.slot, num_values, columns, weights, sums);
  }

  int64_t num_keys;
};

template <class T>
void attend(const Attention& of, Pool& pool) {
  const int64_t queries = of.pass->width() * (of.heads / of.kv_heads);
  const int64_t parts = (queries + kQueries - 1) / kQueries;
  pool.run(of.pass->rows() * of.kv_heads * parts, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> room;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % parts * kQueries, head = index / parts;
      Part<T> part(of, head / of.kv_heads, head % of.kv_heads, first, std::min(kQueries, queries - first));
      if (static_cast<int64_t>(room.size()) < part.room()) room.resize(part.room());
      part.scores = room.data();
      part.score(0, part.key_blocks());
      for (int64_t i = 0; i < part.count; ++i) part.weigh(i);
      for (int64_t i = 0; i < part.count; i += kGroup) {
        part.add(i, std::min<int64_t>(kGroup, part.count - i), 0, of.value_dim);
      }
    }
  });
}

}  // namespace attention_detail

// Attention of all queries of a pass, whose keys and values are in the cache.
inline void attention(const Attention& of, Pool& pool) {
  if (of.dtype == kFloat) return attention_detail::attend<float>(of, pool);
  attention_detail::attend<BFloat16>(of, pool);
}

}  // namespace draftless
